"""Gauss-Newton on the surrogate: the model linearised, its least-squares problem solved by LSQR without a matrix.

Shapes: outputs z (b, ..., p) with R numbers in all, P parameters in all; J (R, P) is the derivative of the outputs.
"""

import torch
from torch import Tensor

from hesse.linalg import FunctionOperator, armijo, lsqr
from hesse.optim.target_surrogates.inner import InnerOptions, InnerProblem, InnerResult, line
from hesse.optim.target_surrogates.schedules import EtaSearch
from hesse.optim.target_surrogates.surrogate import curvature_root, target_surrogate

__all__ = ["gauss_newton", "newton_line_search"]


def gauss_newton(problem: InnerProblem, z: Tensor, options: InnerOptions) -> InnerResult:
    """Gauss-Newton steps on the surrogate, each an LSQR solve with the Jacobian J of the outputs, and a line search.

        d = argmin ‖W J d + W⁻ᵀ ∂g/∂z‖,   WᵀW = D''/η

    One step is exact for outputs linear in the parameters and a quadratic divergence.

    Parameters
    ----------
    problem : InnerProblem
        The surrogate.
    z : Tensor, shape (b, ...)
        Outputs at the present parameters, with graph.
    options : InnerOptions
        Limits; ``tol`` is also LSQR's.

    Returns
    -------
    InnerResult
        Lower at every step. Two backward passes a step of LSQR.
    """
    value, first_gain = float(problem.value(z).detach()), 0.0
    for count in range(options.num_steps):
        direction, slope, norm = _newton_direction(problem, z, options.tol)
        if not (norm > options.tol and slope < 0):
            return InnerResult(value, count)
        origin = problem.snapshot()
        value_at, last = line(problem, direction)
        found = armijo(value_at, value, slope)
        if not found.converged:
            problem.move(origin)
            return InnerResult(value, count)
        gain, value, z = value - found.value, found.value, last[0]
        first_gain = first_gain or gain
        if gain < options.min_progress * first_gain:
            return InnerResult(found.value, count + 1)
    return InnerResult(value, options.num_steps)


def newton_line_search(problem: InnerProblem, z: Tensor, search: EtaSearch, tol: float) -> InnerResult:
    """Search η by values of the loss along θ + η d, d the Gauss-Newton step for η = 1; sets ``problem.eta``.

    For outputs linear in the parameters these are the minimisers of the surrogate for every η, so that the step may
    be far above 1/L_z where the loss is flat.

    Parameters
    ----------
    problem : InnerProblem
        The surrogate, with η = 1.
    z : Tensor, shape (b, ...)
        Outputs at the present parameters, with graph.
    search : EtaSearch
        With the loss at z.
    tol : float
        Of LSQR, and of the gradient.

    Returns
    -------
    InnerResult
        The point, after one step; two backward passes a step of LSQR.
    """
    direction, slope, norm = _newton_direction(problem, z, tol)
    if not (norm > tol and slope < 0):
        return InnerResult(float(problem.value(z.detach()).detach()), 0)
    origin = problem.snapshot()
    last: list[Tensor] = []

    @torch.no_grad()
    def objective(eta: float) -> float:
        problem.move(origin, direction, eta)
        last[:] = [problem.outputs()]
        return search.loss_at(last[0]) + float(problem.penalty(last[0].new_zeros(())))

    with torch.no_grad():
        penalty = float(problem.penalty(z.new_zeros(())))
        problem.eta = search.run(objective, search.value + penalty, slope)
        problem.move(origin, direction, problem.eta)
        return InnerResult(float(problem.value(problem.outputs())), 1)


def _newton_direction(problem: InnerProblem, z: Tensor, tol: float) -> tuple[list[Tensor], float, float]:
    # the step, the slope of the surrogate along it, and the norm of the surrogate's gradient
    sizes = [p.numel() for p in problem.params]
    root = curvature_root(z.detach(), problem.eta, problem.divergence)
    leaf = z.detach().requires_grad_()
    (slope_z,) = torch.autograd.grad(
        target_surrogate(leaf, problem.z_t, problem.gradient, problem.eta, problem.divergence), leaf
    )
    # Jᵀu is linear in u, so that its own reverse-mode derivative is J v, whatever u
    anywhere = torch.zeros_like(z, requires_grad=True)
    pulled = torch.autograd.grad(
        z, problem.params, anywhere, create_graph=True, allow_unused=True, materialize_grads=True
    )
    decays = torch.cat(
        [
            torch.full((p.numel(),), d, dtype=z.dtype, device=z.device)
            for p, d in zip(problem.params, problem.decays, strict=True)
        ]
    )
    ridge = (len(z) * decays).sqrt()
    point = torch.cat([p.detach().reshape(-1) for p in problem.params]).to(z.dtype)

    def pull(rows: Tensor) -> Tensor:
        pieces = torch.autograd.grad(
            z, problem.params, rows, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([piece.reshape(-1) for piece in pieces])

    def forward(block: Tensor) -> Tensor:
        vector = block[:, 0]
        pieces = [piece.reshape(p.shape) for piece, p in zip(vector.split(sizes), problem.params, strict=True)]
        (image,) = torch.autograd.grad(pulled, anywhere, pieces, retain_graph=True)
        return torch.cat([root.forward(image).reshape(-1), ridge * vector]).unsqueeze(1)

    def adjoint(block: Tensor) -> Tensor:
        rows, rest = block[: z.numel(), 0].reshape(z.shape), block[z.numel() :, 0]
        return (pull(root.adjoint(rows)) + ridge * rest).unsqueeze(1)

    slope_theta = pull(slope_z) + decays * point
    operator = FunctionOperator(
        forward, (z.numel() + sum(sizes), sum(sizes)), dtype=z.dtype, device=z.device, rmatmat_fn=adjoint
    )
    residual = torch.cat([root.inverse_adjoint(len(z) * slope_z).reshape(-1), ridge * point])
    solved = lsqr(operator, -residual, atol=tol, btol=tol, conlim=0).x
    direction = [piece.reshape(p.shape) for piece, p in zip(solved.split(sizes), problem.params, strict=True)]
    return direction, float((slope_theta.double() * solved.double()).sum()), float(slope_theta.norm())
