import pytest
import torch

from hesse.linalg import Dense, FunctionOperator
from hesse.testing import ConformanceError, check_linear_operator


def test_all_checks_run_on_a_definite_matrix():
    """Oracle: the count promised in the docstring, less the direct solve that a stored matrix does not have."""
    m = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    assert len(check_linear_operator(Dense(m, is_psd=True), m)) == 30


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda x: x + 1, "zero_maps_to_zero"),
        (lambda x: x * x, "homogeneity"),
        (lambda x: x * torch.arange(1.0, x.shape[-1] + 1, dtype=x.dtype), "columns_are_independent"),
        (lambda x: x.mul_(2.0), "operand_is_left_alone"),
    ],
)
def test_what_is_broken_is_named(break_it, named):
    """Oracle: operators that break one known promise each."""
    operator = FunctionOperator(break_it, (4, 4), dtype=torch.float64, rmatmat_fn=lambda y: y)
    with pytest.raises(ConformanceError, match=named):
        check_linear_operator(operator, gradcheck=False, movable=False)


def test_wrong_adjoint_and_wrong_flags_are_named():
    """Oracle: a matrix whose adjoint, symmetry and sign are misdeclared."""
    m = torch.tensor([[1.0, 5.0], [0.0, -3.0]], dtype=torch.float64)
    wrong = FunctionOperator(lambda x: m @ x, (2, 2), dtype=torch.float64, rmatmat_fn=lambda y: m @ y)
    with pytest.raises(ConformanceError, match="adjoint_identity"):
        check_linear_operator(wrong, m, movable=False)
    with pytest.raises(ConformanceError, match="symmetry_flag"):
        check_linear_operator(Dense(m, is_symmetric=True), m)
    with pytest.raises(ConformanceError, match="psd_flag"):
        check_linear_operator(Dense(torch.diag(m.diagonal()), is_psd=True))
    with pytest.raises(ConformanceError, match="dense_agreement"):
        check_linear_operator(Dense(m), m + 1)
