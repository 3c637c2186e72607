"""The sliding window against the dense inverse for the gradients it holds."""

import math
import threading

import pytest
import torch

from benchmarks.curvature._published import dynamic_coefficients, dynamic_product, static_rows
from hesse.curvature import GradientWindow
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError, SingularError

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stream(count, d, seed=0, dtype=F64):
    return torch.randn(count, d, generator=seeded(seed), dtype=dtype)


def dense_solve(pushed, size, damping, x):
    """Form F in float64 and solve; its inverse times x would lose more digits than the window does."""
    held = pushed[-size:].double()
    return torch.linalg.solve(held.mT @ held / size + damping * torch.eye(held.shape[1], dtype=F64), x.double())


def error(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.fixture(params=[10**9, 1], ids=["factored anew", "updated"])
def how(request, monkeypatch):
    monkeypatch.setattr("hesse.curvature.mfac.window._UPDATE_FROM", request.param)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("damping", [1e-1, 1e-5])
def test_every_push_is_followed(damping):
    """Oracle: the dense inverse in float64 after each of 3 m + 5 pushes, the first ones into an empty window."""
    window, pushed = GradientWindow(60, 8, damping, dtype=F64), stream(29, 60)
    x = stream(2, 60, seed=1).mT
    for i in range(len(pushed)):
        update = window.push_and_solve(pushed[i])
        assert error(update, dense_solve(pushed[: i + 1], 8, damping, pushed[i])) <= 1e-9
        wanted = dense_solve(pushed[: i + 1], 8, damping, x)
        assert error(window.solve(x), wanted) <= 1e-9
    assert error(window.solve(x[:, 0]), wanted[:, 0]) <= 1e-9


@pytest.mark.usefixtures("how")
def test_three_times_around_at_size():
    """Oracle: the dense inverse in float64, 300 coordinates, 40 rows, 120 pushes, to 1e-9."""
    window, pushed = GradientWindow(300, 40, 1e-4, dtype=F64), stream(120, 300, seed=2)
    for gradient in pushed:
        window.push(gradient)
    x = stream(3, 300, seed=3).mT
    assert error(window.solve(x), dense_solve(pushed, 40, 1e-4, x)) <= 1e-9


def test_the_update_does_not_drift(monkeypatch):
    """Oracle: the factor computed anew, after m - 1 updates in a row of nearly parallel gradients."""
    monkeypatch.setattr("hesse.curvature.mfac.window._UPDATE_FROM", 1)
    m = 150
    window = GradientWindow(30, m, 1e-7, dtype=F64)
    base = stream(1, 30, seed=4)
    for noise in stream(2 * m - 1, 30, seed=5):
        window.push(base[0] + 1e-2 * noise)
    torch.testing.assert_close(window.factor, window._factored(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("damping", [1e-3, 1e-5, 1e-7])
def test_float32_loses_nothing_to_small_damping(damping):
    """Oracle: the dense inverse in float64 of the float32 gradients; the published recurrence fails at 1e-7."""
    window, pushed = GradientWindow(300, 40, damping), stream(60, 300, seed=6, dtype=torch.float32)
    for gradient in pushed[:-1]:
        window.push(gradient)
    update = window.push_and_solve(pushed[-1])
    wanted = dense_solve(pushed, 40, damping, pushed[-1])
    assert update.dtype == torch.float32
    assert error(update, wanted) <= 1e-6
    if damping == 1e-7:
        held = pushed[-40:]
        D, B = dynamic_coefficients(held @ held.mT, damping)
        assert error(dynamic_product(held, D, B, damping, held[-1]), wanted) > 1


def test_published_coefficients_are_what_the_window_replaces():
    """Oracle: the published identities in float64: V = B G to 1e-12, and the same product as the window's."""
    held, damping = stream(40, 300, seed=7), 1e-3
    D, B = dynamic_coefficients(held @ held.mT, damping)
    V, q = static_rows(held, damping)
    assert error(B @ held, V) <= 1e-12
    assert error(40 + D.diagonal(), q) <= 1e-12
    window = GradientWindow(300, 40, damping, dtype=F64)
    for gradient in held:
        window.push(gradient)
    x = stream(1, 300, seed=8)[0]
    assert error(window.solve(x), dynamic_product(held, D, B, damping, x)) <= 1e-9


def test_repeated_and_zero_gradients():
    """Oracle: closed forms, g / (λ + ‖g‖²) for a window of one gradient over and over, then g / λ for one of zeros."""
    window, gradient = GradientWindow(20, 6, 1e-6, dtype=F64), stream(1, 20, seed=9)[0]
    for _ in range(9):
        update = window.push_and_solve(gradient)
    # equal rows share the coefficient, whose parts cancel to ‖g‖² / λ roundings of float64
    assert error(update, gradient / (1e-6 + gradient.square().sum())) <= 1e-8
    for _ in range(6):
        update = window.push_and_solve(torch.zeros(20, dtype=F64))
    assert not bool(update.any())
    torch.testing.assert_close(window.solve(gradient), gradient / 1e-6)


def test_half_precision_is_storage_only():
    """Oracle: the dense inverse for the rounded gradients."""
    window, pushed = GradientWindow(50, 8, 1e-4, dtype=torch.bfloat16), stream(13, 50, seed=10)
    for gradient in pushed:
        update = window.push_and_solve(gradient)
    rounded = pushed.bfloat16()
    assert window.rows.dtype == torch.bfloat16
    assert update.dtype == torch.float32
    assert error(update, dense_solve(rounded, 8, 1e-4, rounded[-1])) <= 1e-6


def test_coordinates_may_be_split():
    """Oracle: one window over all coordinates; two threads hold half each and exchange vectors of length m only."""
    pushed, halves = stream(11, 40, seed=11), (slice(0, 17), slice(17, 40))
    barrier, board = threading.Barrier(2), {}

    def reducer(rank):
        def reduce(tensor):
            board[rank] = tensor.clone()
            barrier.wait(timeout=30)
            total = board[0] + board[1]
            barrier.wait(timeout=30)
            return total

        return reduce

    found = {}

    def work(rank):
        part = pushed[:, halves[rank]]
        window = GradientWindow(part.shape[1], 4, 1e-3, dtype=F64, reduce_fn=reducer(rank))
        for gradient in part:
            found[rank] = window.push_and_solve(gradient)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = GradientWindow(40, 4, 1e-3, dtype=F64)
    for gradient in pushed:
        update = whole.push_and_solve(gradient)
    torch.testing.assert_close(torch.cat([found[0], found[1]]), update)


@pytest.mark.usefixtures("how")
def test_state_goes_on_bit_by_bit():
    """Oracle: the window that was never saved."""
    window, pushed = GradientWindow(20, 5, 1e-3), stream(15, 20, seed=12, dtype=torch.float32)
    for gradient in pushed[:8]:
        window.push(gradient)
    state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in window.state_dict().items()}
    again = GradientWindow.from_state_dict(state)
    for gradient in pushed[8:]:
        assert torch.equal(window.push_and_solve(gradient), again.push_and_solve(gradient))


def test_damping_may_change():
    """Oracle: a window built with the new damping."""
    pushed = stream(7, 20, seed=13)
    windows = [GradientWindow(20, 5, damping, dtype=F64) for damping in (1e-3, 1e-1)]
    for gradient in pushed:
        for window in windows:
            window.push(gradient)
    windows[0].set_damping(1e-1)
    torch.testing.assert_close(windows[0].solve(pushed[0]), windows[1].solve(pushed[0]))


def test_bad_input_is_refused():
    """Oracle: the error classes and the names in their messages; a refused gradient leaves the window as it was."""
    for damping in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="damping"):
            GradientWindow(3, 2, damping)
    with pytest.raises(ArgumentError, match="dim"):
        GradientWindow(0, 2)
    with pytest.raises(ArgumentError, match="size"):
        GradientWindow(3, 0)
    with pytest.raises(ArgumentTypeError, match="int64"):
        GradientWindow(3, 2, dtype=torch.int64)
    window = GradientWindow(3, 2)
    window.push(torch.ones(3))
    with pytest.raises(NumericalError, match="NaN"):
        window.push(torch.tensor([1.0, math.nan, 0.0]))
    with pytest.raises(NumericalError, match="float16"):
        GradientWindow(3, 2, dtype=torch.float16).push(torch.full((3,), 1e6))
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        window.push(torch.ones(4))
    with pytest.raises(ShapeError, match="solve"):
        window.solve(torch.ones(4, 2))
    with pytest.raises(ShapeError, match="solve"):
        window.solve(torch.ones(()))
    with pytest.raises(ArgumentError, match="damping"):
        window.set_damping(-1.0)
    assert window.num_pushes == 1
    assert torch.equal(window.rows, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    with pytest.raises(ArgumentError, match="gram"):
        GradientWindow.from_state_dict({"rows": torch.ones(2, 3)})
    with pytest.raises(ShapeError, match="fit"):
        GradientWindow.from_state_dict(window.state_dict() | {"gram": torch.ones(3, 3)})
    wide = GradientWindow(20, 8, 1.0, dtype=F64)
    for _ in range(8):
        wide.push(torch.full((20,), 1e6, dtype=F64))
    with pytest.raises(SingularError, match="larger damping"):
        wide.set_damping(1e-9)
