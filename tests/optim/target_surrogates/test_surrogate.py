"""The surrogate: values, majorisation, minimisers and curvature of every divergence."""

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError, SingularError
from hesse.optim import target_surrogate
from hesse.optim.target_surrogates.surrogate import curvature_root, mirror_step

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


METRIC = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]], dtype=F64)
DIVERGENCES = ["euclidean", "kl", METRIC]


def points(divergence, seed=0):
    z_t, z = draw(4, 3, seed=seed), draw(4, 3, seed=seed + 1)
    return (z_t.softmax(-1), z.softmax(-1)) if isinstance(divergence, str) and divergence == "kl" else (z_t, z)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_value_is_the_written_out_sum(divergence):
    """Oracle: a loop over data."""
    z_t, z = points(divergence)
    gradient, eta = draw(4, 3, seed=5), 0.7
    total = 0.0
    for g, new, old in zip(gradient, z, z_t, strict=True):
        v = new - old
        if isinstance(divergence, torch.Tensor):
            distance = v @ divergence @ v / 2
        elif divergence == "kl":
            distance = (new * (new.log() - old.log())).sum()
        else:
            distance = v @ v / 2
        total += float(g @ v + distance / eta)
    assert float(target_surrogate(z, z_t, gradient, eta, divergence)) == pytest.approx(total / 4, rel=1e-12)


def test_majorises_cross_entropy_for_any_outputs():
    """Oracle: the inequality h <= h(z_t) + g with η = 1/L_z = 2, and equality at z_t."""
    labels = torch.tensor([0, 1, 2, 1])
    z_t = draw(4, 3)
    gradient = z_t.softmax(-1) - torch.eye(3, dtype=F64)[labels]
    base = torch.nn.functional.cross_entropy(z_t, labels)
    for seed in range(200):
        z = z_t + 10 ** (seed / 50 - 3) * draw(4, 3, seed=seed)
        assert base + target_surrogate(z, z_t, gradient, 2.0) >= torch.nn.functional.cross_entropy(z, labels) - 1e-14
    assert target_surrogate(z_t, z_t, gradient, 2.0) == 0


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_mirror_step_minimises_over_all_outputs(divergence):
    """Oracle: 300 random competitors around it, on the simplex for "kl"."""
    z_t, _ = points(divergence)
    gradient = draw(4, 3, seed=5)
    best = mirror_step(z_t, gradient, 0.7, divergence)
    value = target_surrogate(best, z_t, gradient, 0.7, divergence)
    for seed in range(300):
        noise = 0.1 * draw(4, 3, seed=seed + 10)
        other = (best.log() + noise).softmax(-1) if isinstance(divergence, str) and divergence == "kl" else best + noise
        assert target_surrogate(other, z_t, gradient, 0.7, divergence) >= value


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_curvature_root_squares_to_the_hessian(divergence):
    """Oracle: the dense Hessian by autograd; and W⁻ᵀ undoes Wᵀ."""
    z_t, z = points(divergence)
    z_t, z = z_t[:1], z[:1]
    hessian = torch.autograd.functional.hessian(
        lambda flat: target_surrogate(flat.reshape(1, 3), z_t, torch.zeros(1, 3, dtype=F64), 0.7, divergence),
        z.reshape(-1),
    )
    root = curvature_root(z, 0.7, divergence)
    columns = torch.eye(3, dtype=F64)
    product = torch.stack([root.adjoint(root.forward(c.unsqueeze(0))).squeeze(0) for c in columns])
    torch.testing.assert_close(product, hessian)
    torch.testing.assert_close(root.inverse_adjoint(root.adjoint(z)), z)


def test_eta_of_every_coordinate():
    """Oracle: a constant tensor means the same as its number."""
    z_t, z = points("euclidean")
    gradient = draw(4, 3, seed=5)
    everywhere = target_surrogate(z, z_t, gradient, torch.full((4, 3), 0.3, dtype=F64))
    torch.testing.assert_close(everywhere, target_surrogate(z, z_t, gradient, 0.3))


def test_a_softmax_that_underflows_keeps_finite_gradients():
    """Oracle: finiteness of value and gradient with a probability of exactly zero."""
    logits = torch.tensor([[0.0, -2000.0, 1.0]], dtype=F64, requires_grad=True)
    z = logits.softmax(-1)
    (slope,) = torch.autograd.grad(target_surrogate(z, z.detach(), torch.ones(1, 3, dtype=F64), 1.0, "kl"), logits)
    assert torch.isfinite(slope).all()


def test_float32_and_vmap():
    """Oracle: the double-precision value; a loop over seeds."""
    z_t, z, gradient = (draw(6, 4, 3, seed=s) for s in range(3))
    batched = torch.vmap(lambda a, b, c: target_surrogate(a, b, c, 0.5))(z, z_t, gradient)
    looped = torch.stack([target_surrogate(a, b, c, 0.5) for a, b, c in zip(z, z_t, gradient, strict=True)])
    torch.testing.assert_close(batched, looped)
    single = target_surrogate(z[0].float(), z_t[0].float(), gradient[0].float(), 0.5)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(float(looped[0]), rel=1e-5)
    assert target_surrogate(z[0].bfloat16(), z_t[0].bfloat16(), gradient[0].bfloat16(), 0.5).dtype == torch.float32


def test_refusals():
    """Oracle: the error's class and the name in it."""
    z = draw(4, 3)
    with pytest.raises(ShapeError, match="one shape"):
        target_surrogate(z, z[:3], z, 1.0)
    with pytest.raises(ShapeError, match="matrix"):
        target_surrogate(z, z, z, 1.0, torch.eye(2, dtype=F64))
    with pytest.raises(ShapeError, match="matrix"):
        target_surrogate(z[:, 0], z[:, 0], z[:, 0], 1.0, torch.eye(4, dtype=F64))
    with pytest.raises(ArgumentError, match="divergence"):
        target_surrogate(z, z, z, 1.0, "bregman")
    with pytest.raises(SingularError, match="positive definite"):
        curvature_root(z, 1.0, -torch.eye(3, dtype=F64))
