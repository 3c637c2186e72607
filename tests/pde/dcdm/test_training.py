"""Training on Ritz vectors against finite differences, eigenvalues and itself, resumed."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from hesse.errors import ConvergenceError
from hesse.io import load_tensors, save_tensors
from hesse.linalg import PoissonStencil
from hesse.pde.dcdm import (
    DCDMNet,
    DeepConjugateDirection,
    conjugate_directions,
    dcdm_loss,
    ritz_training_set,
)
from tests.pde.dcdm.cases import Constant, obstacle, random_spd, right_hand_sides, scipy_matrix, seeded


def test_loss_gradient_by_finite_differences():
    """Oracle: central differences in float64 of the loss along a random direction in weight space."""
    grid = (6, 5)
    operator = PoissonStencil(torch.ones(grid, dtype=torch.bool), dtype=torch.float64)
    network = DCDMNet(2, 3, generator=seeded(0)).double()
    b = torch.randn(30, 4, dtype=torch.float64, generator=seeded(1))
    weights = list(network.parameters())

    def loss():
        return dcdm_loss(operator, lambda x: network(x.T.reshape(-1, *grid)).reshape(4, -1).T, b)

    grads = torch.autograd.grad(loss(), weights)
    drawn = [torch.randn(w.shape, dtype=torch.float64, generator=seeded(2)) for w in weights]
    slope = sum(float((g * d).sum()) for g, d in zip(grads, drawn, strict=True))
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for weight, d in zip(weights, drawn, strict=True):
                weight += step * d
            values.append(float(loss()))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_loss_is_what_one_line_search_leaves():
    """Oracle: one step of the solver from zero; 0 for the exact inverse, and the scale of f cancels."""
    operator = random_spd(20)
    b = torch.randn(20, 3, dtype=torch.float64, generator=seeded(1))
    mixed = torch.randn(20, 20, dtype=torch.float64, generator=seeded(2))
    one = conjugate_directions(operator, b, lambda r: mixed @ r, max_steps=1)
    expected = (one.residual / b.norm(dim=0)).square().mean()
    for scale in (1.0, -300.0):
        torch.testing.assert_close(dcdm_loss(operator, lambda r, c=scale: c * mixed @ r, b), expected)
    inverse = torch.linalg.inv(operator.to_dense())
    assert float(dcdm_loss(operator, lambda r: inverse @ r, b)) < 1e-20
    assert float(dcdm_loss(operator, torch.zeros_like, b)) == 1.0


def test_ritz_values_are_eigenvalues():
    """Oracle: scipy's eigsh at both ends of the spectrum, all of dense eigh for a full run."""
    operator = PoissonStencil(torch.ones(14, 17, dtype=torch.bool), dtype=torch.float64)  # no eigenvalue twice
    few = ritz_training_set(operator, 100, generator=seeded(0), dtype=torch.float64)
    matrix = scipy_matrix(operator)
    for which, mine in (("SA", few.values[:3]), ("LA", few.values[-3:])):
        peer = np.sort(scipy.sparse.linalg.eigsh(matrix, 3, which=which, return_eigenvectors=False))
        np.testing.assert_allclose(mine.numpy(), peer, rtol=1e-8)
    gram = few.vectors.T @ few.vectors
    torch.testing.assert_close(gram, torch.eye(100, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(few.vectors.T @ (operator @ few.vectors), torch.diag(few.values), rtol=0, atol=1e-9)


def test_samples_weigh_the_low_half_nine_times():
    """Oracle: the second moments of the coefficients before normalisation, 81 to 1, over 4000 draws."""
    operator = PoissonStencil(torch.ones(12, 13, dtype=torch.bool), dtype=torch.float64)
    ritz = ritz_training_set(operator, 40, dtype=torch.float64, generator=seeded(0))
    assert ritz.num_low == 22
    b = ritz.sample(4000, generator=seeded(1))
    torch.testing.assert_close(b.norm(dim=0), torch.ones(4000, dtype=torch.float64))
    power = (ritz.vectors.T @ b).square().mean(1)
    assert float(power[:22].mean() / power[22:].mean()) == pytest.approx(81, rel=0.1)


def test_null_space_is_left_out_of_the_training_set():
    """Oracle: cells outside the fluid are the operator's null space."""
    fluid = obstacle((8, 8))
    ritz = ritz_training_set(PoissonStencil(fluid), 64, generator=seeded(0))
    assert len(ritz.values) <= int(fluid.sum())
    assert float(ritz.vectors[~fluid.flatten()].abs().max()) < 1e-6


def test_training_lowers_the_loss_and_the_steps():
    """Oracle: the loss of the untrained network, and its number of solver steps, on a square not seen in training."""
    operator = PoissonStencil(torch.ones(16, 16, dtype=torch.bool))
    solver = DeepConjugateDirection(DCDMNet(2, 8, generator=seeded(0)), fallback=None, max_steps=400)
    other = PoissonStencil(obstacle((20, 20)), dtype=torch.float64)
    b = right_hand_sides(other.fluid, 2)
    untrained = solver.solve(other, b).num_steps
    solver.fit(operator, num_ritz=100, num_steps=150, noise=0.1, generator=seeded(0))
    assert float(solver.losses[-20:].mean()) < 0.4 * float(solver.losses[:5].mean())
    assert solver.solve(other, b).require().num_steps < 0.5 * untrained


def test_training_on_drawn_obstacles():
    """Oracle: the loss falls; every operator drawn is another one, and the mask reaches the network."""
    drawn = []

    def draw(generator):
        fluid = torch.ones(12, 12, dtype=torch.bool)
        at = torch.randint(1, 8, (2,), generator=generator)
        fluid[at[0] : at[0] + 3, at[1] : at[1] + 3] = False
        drawn.append(tuple(at.tolist()))
        return PoissonStencil(fluid)

    full = PoissonStencil(torch.ones(12, 12, dtype=torch.bool))
    solver = DeepConjugateDirection(DCDMNet(2, 6, mask_channel=True, generator=seeded(0)))
    solver.fit(full, num_ritz=60, num_steps=120, operator_fn=draw, generator=seeded(0))
    assert len(drawn) == 120
    assert len(set(drawn)) > 20
    assert float(solver.losses[-20:].mean()) < 0.5 * float(solver.losses[:5].mean())


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_interrupted_training_goes_on_to_the_bit(tmp_path, noise):
    """Oracle: the uninterrupted run; in between everything passes through a file."""
    operator = PoissonStencil(torch.ones(10, 10, dtype=torch.bool))
    settings = {"num_ritz": 40, "num_steps": 30, "batch_size": 4, "noise": noise}
    whole = DeepConjugateDirection(DCDMNet(2, 4, generator=seeded(1))).fit(operator, generator=seeded(0), **settings)
    half = DeepConjugateDirection(DCDMNet(2, 4, generator=seeded(1)))
    half.fit(operator, generator=seeded(0), stop_after=13, **settings)
    save_tensors(tmp_path / "half.safetensors", half.state_dict())
    resumed = DeepConjugateDirection().load_state_dict(load_tensors(tmp_path / "half.safetensors"))
    resumed.resume(operator)
    assert torch.equal(resumed.losses, whole.losses)
    mine, theirs = resumed.state_dict(), whole.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_dead_network_is_started_again(monkeypatch):
    """Oracle: a network whose ReLUs are all dead has loss one; a fresh start learns. The check is moved to step 30."""
    monkeypatch.setattr("hesse.pde.dcdm.schedule._CHECK_AT", 30)
    operator = PoissonStencil(torch.ones(10, 10, dtype=torch.bool))
    network = DCDMNet(2, 6, generator=seeded(0))
    with torch.no_grad():
        network.exit.weight.zero_()
        network.exit.bias.zero_()
        for layer in (network.closing[0], network.after[0][-1].second):
            layer.weight.zero_()
            layer.bias.fill_(-1)
        network.coarse[-1].second.weight.zero_()
        network.entry.weight.zero_()
        network.entry.bias.zero_()
    solver = DeepConjugateDirection(network)
    solver.fit(operator, num_ritz=50, num_steps=60, generator=seeded(0))
    assert float(solver.losses[-10:].mean()) < 0.9
    with pytest.raises(ConvergenceError, match="attempt 1"):  # a network of one's own can not be started again
        DeepConjugateDirection(Constant(0.0)).fit(operator, num_ritz=50, num_steps=60, generator=seeded(0))
