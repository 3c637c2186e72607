import sys

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError, SingularError
from hesse.linalg import sketched_lstsq, streamed_lstsq
from hesse.linalg.streamed_lstsq import _GROUP_NUMBERS

N, D = 3000, 12


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def problem(n=N, d=D, k=None, dtype=torch.float64):
    g = seeded(0)
    A = torch.randn(n, d, dtype=dtype, generator=g)
    return A, torch.randn(n, *(() if k is None else (k,)), dtype=dtype, generator=g)


def walk(A, b, size):
    """A function that starts a new walk, and the list of walks that were started."""
    walks = []

    def start():
        walks.append(1)
        return zip(A.split(size), b.split(size), strict=True)

    return start, walks


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(sys.modules["hesse.linalg.streamed_lstsq"], "_GROUP_NUMBERS", 1 << 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("size", [1, 7, 256, 1000, N])
@pytest.mark.usefixtures("small_groups")
def test_the_numbers_of_the_stored_problem_in_whatever_blocks(dtype, k, size):
    """Oracle: `sketched_lstsq` on all rows at once, from the same generator; groups of rows below and above M."""
    A, b = problem(k=k, dtype=dtype)
    start, walks = walk(A, b, size)
    for sketch_size in (40, 900):
        found = streamed_lstsq(start, N, sketch_size=sketch_size, generator=seeded(5))
        wanted = sketched_lstsq(A, b, sketch_size=sketch_size, generator=seeded(5))
        assert found.dtype == dtype
        single = dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-3 if single else 1e-9, atol=1e-4 if single else 1e-10)
    assert len(walks) == 2


def test_groups_of_full_size():
    """Oracle: `sketched_lstsq`; more rows than a group of 8 MB holds."""
    A, b = problem(n=90_000, d=15)
    assert A.numel() > _GROUP_NUMBERS
    found = streamed_lstsq(list(zip(A.split(10_000), b.split(10_000), strict=True)), 90_000, generator=seeded(1))
    torch.testing.assert_close(found, sketched_lstsq(A, b, generator=seeded(1)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("damping", [0.0, 30.0])
def test_more_passes_reach_the_full_solution(damping):
    """Oracle: dense least squares, and a count of the passes."""
    A, b = problem()
    exact = torch.linalg.solve(A.mT @ A + damping * torch.eye(D), A.mT @ b)
    errors, passes = [], []
    for refine in (0, 1, 30):
        start, walks = walk(A, b, 500)
        x = streamed_lstsq(start, N, sketch_size=300, refine=refine, damping=damping, generator=seeded(0))
        errors.append(float((A @ (x - exact)).norm()))
        passes.append(len(walks))
    ratio = D / 300
    assert passes[:2] == [1, 2]
    assert passes[2] <= 30
    assert errors[1] <= 2 * ratio**0.5 / (1 + ratio) * errors[0]
    assert errors[2] <= 1e-12 * float((A @ exact).norm())


def test_information():
    """Oracle: `sketched_lstsq`'s own record, field by field; a loader of torch serves as the stream."""
    A, b = problem(k=2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(A, b), batch_size=700)
    for refine in (0, 25):
        x, info = streamed_lstsq(loader, N, refine=refine, return_info=True, generator=seeded(2))
        wanted_x, wanted = sketched_lstsq(A, b, refine=refine, return_info=True, generator=seeded(2))
        torch.testing.assert_close(x, wanted_x, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(info.residual_norm, wanted.residual_norm)
        torch.testing.assert_close(info.coordinate_bound, wanted.coordinate_bound, rtol=1e-2, atol=1e-9)
        assert (info.sketch_size, info.num_sketches) == (wanted.sketch_size, wanted.num_sketches)
        assert info.converged == wanted.converged == (refine > 0)


def test_half_precision_rows():
    """Oracle: dense float64 least squares of the rounded rows, within rounding of the result."""
    A, b = (t.to(torch.bfloat16) for t in problem())
    start, _ = walk(A, b, 400)
    x = streamed_lstsq(start, N, refine=20, generator=seeded(0))
    assert x.dtype == torch.bfloat16
    exact = torch.linalg.lstsq(A.double(), b.double().unsqueeze(1)).solution.squeeze(1)
    torch.testing.assert_close(x.double(), exact, rtol=1e-2, atol=1e-4)


def test_rank_deficiency():
    """Oracle: the error, and the solution of least norm by the pseudo-inverse."""
    A, b = problem()
    A[:, 3] = A[:, 2]
    start, _ = walk(A, b, 400)
    with pytest.raises(SingularError, match="rank 11 of 12"):
        streamed_lstsq(start, N, generator=seeded(0))
    x = streamed_lstsq(start, N, rcond=1e-10, refine=40, generator=seeded(0))
    torch.testing.assert_close(x, torch.linalg.pinv(A, rtol=1e-10) @ b, rtol=1e-9, atol=1e-11)


def test_bad_streams_are_named():
    """Oracle: the error taxonomy."""
    A, b = problem()
    pairs = list(zip(A.split(500), b.split(500), strict=True))
    with pytest.raises(ShapeError, match="has 3000"):
        streamed_lstsq(pairs, N + 1)
    with pytest.raises(ShapeError, match="3000 or more"):
        streamed_lstsq(pairs, N - 1)
    with pytest.raises(ShapeError, match="empty"):
        streamed_lstsq([], N)
    with pytest.raises(ShapeError, match="after 500 rows"):
        streamed_lstsq([pairs[0], (A[:5, :3], b[:5])], 505)
    with pytest.raises(ShapeError, match="after 500 rows"):
        streamed_lstsq([pairs[0], (A[:5].float(), b[:5].float())], 505)
    with pytest.raises(ShapeError, match="N >= D"):
        streamed_lstsq([(A[:4], b[:4])], 4)
    with pytest.raises(ArgumentTypeError, match="pair"):
        streamed_lstsq([A], N)
    with pytest.raises(ArgumentTypeError, match="iterable"):
        streamed_lstsq(3, N)
    with pytest.raises(ArgumentError, match="used up"):
        streamed_lstsq(iter(pairs), N, refine=1)
    assert streamed_lstsq(iter(pairs), N).shape == (D,)
    with pytest.raises(ArgumentError, match="eps"):
        streamed_lstsq(pairs, N, eps=0.5, sketch_size=100)
    with pytest.raises(ArgumentError, match="at least D"):
        streamed_lstsq(pairs, N, sketch_size=5)
    with pytest.raises(NumericalError, match="NaN"):
        streamed_lstsq([(A * torch.nan, b)], N)
