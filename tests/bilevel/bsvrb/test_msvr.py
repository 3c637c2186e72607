import pytest
import torch

from hesse.bilevel.bsvrb.msvr import MSVR, msvr_gamma, msvr_update
from hesse.errors import ArgumentError, ShapeError


def test_factor():
    """Oracle: the formula, and STORM's as its limit with all blocks probed."""
    assert msvr_gamma(100, 10, 0.1) == pytest.approx(90 / (10 * 0.9) + 0.9)
    assert msvr_gamma(7, 7, 0.3) == pytest.approx(0.7)
    assert msvr_gamma(7, 7, 1.0) == 0.0


def test_update_is_a_loop_over_blocks():
    """Oracle: the formula written out for every block; the others keep their estimates bit for bit."""
    g = torch.Generator().manual_seed(0)
    tracker = MSVR(6, (2, 3), 0.2, dtype=torch.float64)
    tracker.value = torch.randn(6, 2, 3, dtype=torch.float64, generator=g)
    held = tracker.value.clone()
    index = torch.tensor([4, 1])
    now, before = torch.randn(2, 2, 2, 3, dtype=torch.float64, generator=g)
    tracker.update(index, now, before)
    gamma = 4 / (2 * 0.8) + 0.8
    for i in range(6):
        expected = held[i]
        if i in (4, 1):
            k = index.tolist().index(i)
            expected = 0.8 * held[i] + 0.2 * now[k] + gamma * (now[k] - before[k])
        torch.testing.assert_close(tracker.value[i], expected, rtol=1e-14, atol=0 if i not in (4, 1) else 1e-14)


def test_at_rest_it_converges():
    """Oracle: the fixed values themselves; a visit leaves 1 - a of the error."""
    g = torch.Generator().manual_seed(1)
    truth = torch.randn(10, 3, dtype=torch.float64, generator=g)
    tracker = MSVR(10, (3,), 0.5, dtype=torch.float64)
    for _ in range(400):
        index = torch.randperm(10, generator=g)[:2]
        tracker.update(index, truth[index], truth[index])
    torch.testing.assert_close(tracker.value, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", ["msvr", "storm", 0.0, 9.9])
def test_lag_of_a_steady_drift(gamma):
    """Oracle: the fixed point of the mean error where every h_i(t) = t: m / (I a) - 1 - γ / a steps.

    It is zero at γ = m / I - a, 9.9 here: near the formula's factor where a is small, and far from the others'.
    """
    g = torch.Generator().manual_seed(2)
    m, probed, alpha = 20, 2, 0.1
    tracker = MSVR(m, (), alpha, gamma, dtype=torch.float64)
    factor = {"msvr": msvr_gamma(m, probed, alpha), "storm": 0.9}.get(gamma, gamma)
    lags = []
    for t in range(8000):
        index = torch.randperm(m, generator=g)[:probed]
        tracker.update(index, torch.full((probed,), float(t)).double(), torch.full((probed,), t - 1.0).double())
        if t > 1000:
            lags.append(float((t - tracker.value).mean()))
    expected = m / (probed * alpha) - 1 - factor / alpha
    assert abs(sum(lags) / len(lags) - expected) < 0.02 * m / (probed * alpha)


def test_gradients_flow_through_an_update():
    """Oracle: finite differences."""
    g = torch.Generator().manual_seed(3)
    held, now, before = (torch.randn(2, 3, dtype=torch.float64, generator=g, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda a, b, c: msvr_update(a, b, c, 0.1, 7.0), (held, now, before))


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="0 < alpha"):
        MSVR(4, (), 0.0)
    with pytest.raises(ArgumentError, match="num_probed"):
        msvr_gamma(4, 5, 0.1)
    with pytest.raises(ArgumentError, match="infinite"):
        MSVR(4, (), 1.0).update(torch.tensor([0]), torch.zeros(1), torch.zeros(1))
    with pytest.raises(ArgumentError, match="'msvr', 'storm' or a number"):
        MSVR(4, (), 0.1, "adam")
    with pytest.raises(ShapeError, match="probes of shape"):
        MSVR(4, (3,), 0.1).update(torch.tensor([0, 1]), torch.zeros(2, 2), torch.zeros(2, 3))
