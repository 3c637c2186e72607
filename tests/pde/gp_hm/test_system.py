"""The log joint, its gradient, and the values that maximise it."""

import torch
from torch.distributions import MultivariateNormal

from hesse.pde.gp_hm import AllenCahn, Face, Poisson, SpectralMixture1d
from hesse.pde.gp_hm.conditions import build_conditions
from hesse.pde.gp_hm.equations import linearize
from hesse.pde.gp_hm.inner import InnerSolver
from hesse.pde.gp_hm.system import Precisions, axis_factors, derivatives, log_joint, unwhiten, whiten

ORDERS = frozenset({0, 1, 2})


def setting(sizes, seed=0, boundary=0.3):
    grids = [torch.linspace(0, 1, n, dtype=torch.float64) for n in sizes]
    kernels = [SpectralMixture1d(3, "matern52", 2.0) for _ in sizes]
    conditions = build_conditions(boundary, grids, kernels)
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(*sizes, dtype=torch.float64, generator=g)
    precisions = Precisions(
        20.0, torch.tensor(0.4).double().requires_grad_(), torch.tensor(-0.3).double().requires_grad_()
    )
    return grids, kernels, conditions, f, precisions


def factors(kernels, grids, jitter=1e-6):
    return [axis_factors(k, g, ORDERS, jitter, j) for j, (k, g) in enumerate(zip(kernels, grids, strict=True))]


def detached(kernels, grids, jitter=1e-6):
    return [axis.detach() for axis in factors(kernels, grids, jitter)]


def test_prior_is_the_normal_density():
    """Oracle: the dense multivariate normal on a 6 x 5 grid, up to the constant."""
    grids, kernels, conditions, f, _ = setting((6, 5))
    axes = detached(kernels, grids, jitter=1e-4)  # so that the dense oracle keeps nine digits
    nothing = Precisions(1e-300, torch.zeros(()).double(), torch.tensor(-700.0).double())
    J = log_joint(axes, whiten(axes, f), Poisson(), f, conditions, nothing) - 0.5 * f.numel() * nothing.log_v
    K = torch.kron(*(axis.lower @ axis.lower.mT for axis in axes))
    dense = MultivariateNormal(torch.zeros(30).double(), K).log_prob(f.reshape(-1))
    constant = 15 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    torch.testing.assert_close(J, dense + constant, rtol=1e-9, atol=1e-9)


def test_profiled_values():
    """Oracle: torch.linalg.solve of the dense normal equations, one and two axes; conjugate gradients agree."""
    for sizes in ((12,), (7, 6)):
        grids, kernels, conditions, f, precisions = setting(
            sizes, boundary=[Face(0, "low", 1.0), Face(0, "high", 2.0, 1, 0.5)]
        )
        axes = detached(kernels, grids)
        solver = InnerSolver(Poisson(), f, conditions)
        normal, _ = solver.normal_equations(axes, torch.zeros_like(f), precisions)
        P, B, n = normal.dense_equation(), normal.rows.dense(), f.numel()
        H = torch.eye(n).double() + normal.boundary * B.mT @ B + normal.equation * P.mT @ P
        rhs = normal.boundary * B.mT @ conditions.values + normal.equation * P.mT @ f.reshape(-1)
        wanted = torch.linalg.solve(H, rhs).reshape(f.shape)
        torch.testing.assert_close(solver.solve(axes, torch.zeros_like(f), precisions), wanted, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(normal.apply(f).reshape(-1), H @ f.reshape(-1), rtol=1e-10, atol=1e-8)
        if len(sizes) == 2:
            free = InnerSolver(Poisson(), f, conditions, dense_limit=0, rtol=1e-12)
            torch.testing.assert_close(free.solve(axes, torch.zeros_like(f), precisions), wanted, rtol=1e-4, atol=1e-6)
            assert free.num_cg_steps < n


def test_gradient_of_the_profiled_objective():
    """Oracle: central differences of max over U of J; the gradient holds U fixed (envelope theorem)."""
    grids, kernels, conditions, f, precisions = setting((10,))
    kernel = kernels[0]

    def best(track):
        axes = factors(kernels, grids)
        fixed = [a.detach() for a in axes]
        z = InnerSolver(Poisson(), f, conditions).solve(fixed, torch.zeros_like(f), precisions)
        used = axes if track else fixed
        return log_joint(used, whiten(used, unwhiten(fixed, z)), Poisson(), f, conditions, precisions)

    best(True).backward()
    for parameter in (kernel.frequency, kernel.raw_weight, kernel.log_scale, precisions.log_v, precisions.log_tau):
        flat = parameter.data.view(-1)
        h, i = 1e-5, len(flat) - 1
        flat[i] += h
        up = best(False)
        flat[i] -= 2 * h
        down = best(False)
        flat[i] += h
        torch.testing.assert_close(parameter.grad.view(-1)[i], ((up - down) / (2 * h)).detach(), rtol=1e-4, atol=1e-4)


def test_linearisation():
    """Oracle: the derivative of Δu + u³ - u by hand."""
    grids, kernels, _, f, _ = setting((6, 5))
    axes = detached(kernels, grids)
    value, terms = linearize(AllenCahn(), f, derivatives(axes, whiten(axes, f)))
    torch.testing.assert_close(terms[0, 0], 3 * f.square() - 1)
    assert bool((terms[2, 0] == 1).all())
    assert bool((terms[0, 2] == 1).all())
    assert value.shape == f.shape
