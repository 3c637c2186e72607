"""Asking the oracle: scale, shape, counts, and what is refused."""

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim import OracleCounter
from hesse.optim.target_surrogates.oracle import ask_oracle, check_scaling

Z = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)


def half_squared(z):
    return z.square().sum(1).mean() / 2


def test_gradient_of_a_mean_has_rows_of_single_data():
    """Oracle: closed form; the gradient of ½‖z‖² is z, whichever way it is asked for."""
    torch.testing.assert_close(ask_oracle(Z, None, half_squared, "none").gradient, Z)
    torch.testing.assert_close(ask_oracle(Z, lambda z: z, None, "none").gradient, Z)
    torch.testing.assert_close(ask_oracle(Z, lambda z: z / len(z), None, "mean").gradient, Z)
    assert ask_oracle(Z, None, half_squared, "none").loss == pytest.approx(float(half_squared(Z)))


def test_a_simulator_in_numpy_and_one_that_reuses_its_buffer():
    """Oracle: closed form; a later write to the buffer changes nothing."""
    buffer = np.zeros((2, 2))

    def simulator(z):
        buffer[:] = z.numpy()
        return buffer

    answer = ask_oracle(Z, simulator, None, "none")
    buffer[:] = 7.0
    torch.testing.assert_close(answer.gradient, Z)
    assert ask_oracle(Z.float(), lambda z: z.numpy().tolist(), None, "none").gradient.dtype == torch.float32


def test_counter():
    """Oracle: the number of calls made."""
    oracle = OracleCounter(half_squared)
    oracle(Z)
    with torch.no_grad():
        oracle(Z.clone().requires_grad_())
    torch.testing.assert_close(oracle.gradient(Z), Z)
    ask_oracle(Z, None, oracle, "none")
    assert (oracle.num_gradients, oracle.num_values) == (2, 2)
    own = OracleCounter(half_squared, gradient=lambda z: 2 * z)
    torch.testing.assert_close(own.gradient(Z), 2 * Z)


def test_scaling_is_judged_by_the_loss():
    """Oracle: right, divided by b, and against a sum; the last two are off by b."""
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kind in (torch.float32, torch.float64):
        assert check_scaling(z.to(kind), z.to(kind), half_squared) == 2
        with pytest.raises(ArgumentError, match="divided by b"):
            check_scaling(z.to(kind), z.to(kind) / 50, half_squared)
    with pytest.raises(ArgumentError, match="is a sum"):
        check_scaling(z, z, lambda z: z.square().sum() / 2)
    assert check_scaling(z[:4], z[:4] / 4, half_squared) == 0


def test_refusals():
    """Oracle: the error's class and what it says."""
    with pytest.raises(ShapeError, match="one row a datum"):
        ask_oracle(Z, lambda z: z.mean(0), None, "none")
    with pytest.raises(NumericalError, match="NaN"):
        ask_oracle(Z, lambda z: z * torch.nan, None, "none")
    with pytest.raises(NumericalError, match="target_loss is"):
        ask_oracle(Z, None, lambda z: half_squared(z) + torch.inf, "none")
    with pytest.raises(ShapeError, match="scalar"):
        ask_oracle(Z, None, lambda z: z.square().sum(1), "none")
    with pytest.raises(ArgumentTypeError, match="autograd"):
        ask_oracle(Z, None, lambda z: half_squared(z.detach()), "none")
    with pytest.raises(ArgumentTypeError, match="neither"):
        ask_oracle(Z, None, None, "none")
    with pytest.raises(ArgumentTypeError, match="callable"):
        OracleCounter(3.0)
