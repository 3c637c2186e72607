import pytest
import torch

from hesse.errors import ArgumentError, MemoryLimitError, NumericalError, ShapeError
from hesse.linalg.basic import FunctionOperator
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.eigen.lanczos import block_lanczos, lanczos


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric_with(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    n = len(values)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=seeded(seed))).Q
    matrix = Q * values @ Q.T
    return (matrix + matrix.T) / 2


DECAY = torch.arange(1, 201, dtype=torch.float64) ** -2


@pytest.mark.parametrize("kind", ["full", "selective", "none"])
def test_recurrence_holds(kind):
    """Oracle: the identity A Q = Q T + beta q e^T, for two starts side by side."""
    matrix = symmetric_with(DECAY)
    start = torch.randn(200, 2, dtype=torch.float64, generator=seeded(1))
    state = lanczos(matrix, 40, start=start, reorthogonalize=kind, keep_basis=True)
    for column in range(2):
        Q = state.basis[:, :, column].T
        gap = matrix @ Q - Q @ state.tridiagonal()[column]
        gap[:, -1] -= state.beta[-1, column] * state.current[:, column]
        assert float(gap.abs().max()) < (1e-8 if kind == "selective" else 1e-14)


def test_full_reorthogonalisation_keeps_the_basis_orthonormal():
    """Oracle: the identity Q^T Q = I on a spectrum that loses orthogonality within 15 steps without it."""
    state = lanczos(symmetric_with(DECAY), 60, generator=seeded(1))
    Q = state.basis[:, :, 0]
    torch.testing.assert_close(Q @ Q.T, torch.eye(60, dtype=torch.float64), rtol=0, atol=1e-14)


def test_selective_is_semi_orthogonal_with_fewer_sweeps():
    """Oracle: |Q^T Q - I| stays below sqrt(eps), and T equals that of the full run to rounding in its Ritz values."""
    values = torch.linspace(0, 1, 300, dtype=torch.float64) ** 0.5
    values[-1] = 2.0  # an outlier converges first and is what comes back
    matrix = symmetric_with(values)
    start = torch.randn(300, dtype=torch.float64, generator=seeded(1))
    full = lanczos(matrix, 60, start=start)
    selective = lanczos(matrix, 60, start=start, reorthogonalize="selective")
    Q = selective.basis[:, :, 0]
    assert float((Q @ Q.T - torch.eye(60, dtype=torch.float64)).abs().max()) < 1e-7
    assert 0 < selective.num_reorthogonalizations < 40
    torch.testing.assert_close(selective.ritz()[0], full.ritz()[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "selective", "none"])
def test_a_resumed_run_is_the_uninterrupted_run(kind):
    """Oracle: one run of 30 steps, bit for bit."""
    matrix = symmetric_with(DECAY)
    start = torch.randn(200, 3, dtype=torch.float64, generator=seeded(2))
    whole = lanczos(matrix, 30, start=start, reorthogonalize=kind)
    half = lanczos(matrix, 13, start=start, reorthogonalize=kind)
    resumed = lanczos(matrix, 17, state=half, reorthogonalize=kind)
    assert torch.equal(resumed.alpha, whole.alpha)
    assert torch.equal(resumed.beta, whole.beta)
    assert half.num_steps == 13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_ritz_values_and_residual_bounds(dtype):
    """Oracle: eigvalsh; every Ritz value has an eigenvalue within its residual."""
    n = 120
    matrix = torch.randn(n, n, dtype=dtype, generator=seeded(0))
    matrix = (matrix + matrix.mH) / 2
    exact = torch.linalg.eigvalsh(matrix.to(torch.complex128 if dtype.is_complex else torch.float64))
    values, weights, residuals = lanczos(matrix, 50, generator=seeded(1)).ritz()
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    distance = (values[0].unsqueeze(1) - exact).abs().amin(1)
    assert bool((distance <= residuals[0] + rounding).all())
    assert abs(float(values[0, -1] - exact[-1])) < 1e-4
    assert abs(float(weights.sum()) - 1) < 1e-12


def test_invariant_subspace_restarts_with_zero_coupling():
    """Oracle: closed form; a start inside a three-dimensional eigenspace gives beta = 0 after three steps."""
    values = torch.cat([torch.tensor([3.0, 2.0, 1.0]), torch.linspace(4, 9, 17)]).double()
    start = torch.zeros(20, dtype=torch.float64)
    start[:3] = 1
    state = lanczos(torch.diag(values), 20, start=start, generator=seeded(0))
    assert float(state.beta[2, 0]) == 0
    torch.testing.assert_close(state.ritz()[0][0], values.sort().values, rtol=0, atol=1e-12)


def test_zero_operator_and_order_one():
    """Oracle: closed form; all Ritz values are zero, and a number is its own eigenvalue."""
    state = lanczos(torch.zeros(6, 6, dtype=torch.float64), 4, generator=seeded(0))
    assert float(state.alpha.abs().max()) == 0
    assert float(state.beta.abs().max()) == 0
    one = lanczos(torch.full((1, 1), 3.0, dtype=torch.float64), 80)
    assert one.num_steps == 1
    assert float(one.alpha) == pytest.approx(3)


def test_columns_do_not_depend_on_their_neighbours():
    """Oracle: invariance; each start run alone."""
    matrix = symmetric_with(DECAY)
    start = torch.randn(200, 3, dtype=torch.float64, generator=seeded(2))
    together = lanczos(matrix, 12, start=start)
    alone = lanczos(matrix, 12, start=start[:, 1])
    torch.testing.assert_close(together.alpha[:, 1], alone.alpha[:, 0], rtol=1e-10, atol=1e-13)


def test_block_lanczos_identities():
    """Oracle: Q^H Q = I, T = Q^H A Q, and the residual in the last block alone."""
    matrix = symmetric_with(DECAY)
    found = block_lanczos(matrix, torch.randn(200, 4, dtype=torch.float64, generator=seeded(1)), 12)
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(48, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.basis.T @ matrix @ found.basis, found.T, rtol=0, atol=1e-13)
    gap = matrix @ found.basis - found.basis @ found.T
    gap[:, -4:] -= found.next @ found.coupling
    assert float(gap.abs().max()) < 1e-13


def test_block_lanczos_sees_multiplicity():
    """Oracle: closed form; a triple eigenvalue appears three times with a block of three."""
    values = torch.cat([torch.full((3,), 5.0), torch.linspace(0, 1, 37)]).double()
    found = block_lanczos(symmetric_with(values), torch.randn(40, 3, dtype=torch.float64, generator=seeded(1)), 10)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(found.T)[-3:], torch.full((3,), 5.0, dtype=torch.float64), rtol=0, atol=1e-8
    )


def test_block_lanczos_with_dependent_columns():
    """Oracle: Q^H Q = I although every block after the first is dependent (A = I)."""
    start = torch.randn(20, 3, dtype=torch.float64, generator=seeded(0))
    found = block_lanczos(torch.eye(20, dtype=torch.float64), start, 6)
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(18, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.T, torch.eye(18, dtype=torch.float64), rtol=0, atol=1e-12)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    eye = torch.eye(4, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="symmetric"):
        lanczos(torch.triu(torch.ones(4, 4)))
    with pytest.raises(ArgumentError, match="declared"):
        lanczos(as_linear_operator(eye))
    with pytest.raises(ShapeError, match="start"):
        lanczos(eye, start=torch.ones(3, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="zero"):
        lanczos(eye, start=torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="basis"):
        lanczos(eye, keep_basis=False)
    with pytest.raises(ArgumentError, match="exclude"):
        lanczos(eye, start=torch.ones(4, dtype=torch.float64), state=lanczos(eye, 2))
    with pytest.raises(NumericalError, match="NaN"):
        lanczos(as_linear_operator(lambda x: x * torch.nan, shape=(5, 5), is_symmetric=True))


def test_every_step_is_reported():
    """Oracle: the state returned at the end, which is the last one reported; each continues to the same bits."""
    matrix = symmetric_with(torch.linspace(-1, 2, 30, dtype=torch.float64))
    seen = []
    whole = lanczos(matrix, 6, start=torch.ones(30, 2, dtype=torch.float64) + torch.eye(30, 2), on_step=seen.append)
    assert [state.num_steps for state in seen] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(seen[-1].current, whole.current)
    again = lanczos(matrix, 4, state=seen[1])
    assert torch.equal(again.alpha, whole.alpha)
    assert torch.equal(again.current, whole.current)


def test_too_large_a_basis_is_refused_before_any_product():
    """Oracle: the error, and that no product was made; without a basis the same run is small enough to begin."""
    products = []
    huge = FunctionOperator(lambda x: products.append(1) or x, (10**9, 10**9), is_psd=True)
    with pytest.raises(MemoryLimitError, match=r"lanczos: needs about .*num_steps"):
        lanczos(huge, 10_000)
    with pytest.raises(MemoryLimitError, match=r"lanczos.*num_steps"):
        lanczos(huge, 10_000, start=torch.ones(1, 1).expand(10**9, 2), recurrence_dtype=torch.float32)
    with pytest.raises(MemoryLimitError, match=r"block_lanczos.*num_steps"):
        block_lanczos(huge, torch.ones(1, 1).expand(10**9, 2), 10_000)
    assert not products


def test_memory_is_asked_for_all_steps_on_resuming(monkeypatch):
    """Oracle: the sizes that the check is asked for: all steps with a basis, at most N, and none without."""
    asked = []
    monkeypatch.setitem(lanczos.__globals__, "require_memory", lambda _call, _a, **sizes: asked.append(sizes))
    matrix = torch.diag(torch.arange(1.0, 31.0))
    for reorthogonalize in ("full", "none"):
        state = lanczos(matrix, 20, start=torch.ones(30, 2), reorthogonalize=reorthogonalize)
        lanczos(matrix, 15, state=state, reorthogonalize=reorthogonalize)
    assert [sizes["size"] for sizes in asked] == [20, 30, 0, 0]
    assert {sizes["columns"] for sizes in asked} == {2}
