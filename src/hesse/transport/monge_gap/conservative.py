"""Whether a vector field is a gradient: the antisymmetric part of its Jacobian, by random probes."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = ["conservative_penalty"]


def conservative_penalty(
    F: Callable[[Tensor], Tensor], x: Tensor, num_probes: int = 1, *, generator: Generator | None = None
) -> Tensor:
    """Mean over x of ‖J - Jᵀ‖²_F with J = Jac F(x), as E |Jv - Jᵀv|² over random sign vectors v: unbiased.

    Zero if and only if F is the gradient of a function (on a domain without holes). For maps T = Id - ∇h* ∘ F this is
    necessary for optimality, not sufficient: the function must be c-concave as well.

    Parameters
    ----------
    F : callable
        From shape (N, D) to (N, D), each row by itself (no normalisation over the batch), twice differentiable.
    x : Tensor, shape (N, D)
        Where to look.
    num_probes : int, default 1
        Each costs one forward-mode and one reverse-mode product. In training one is enough: the batch averages.
    generator : torch.Generator, optional
        Source of the signs, on the device of x. Default: torch's global generator.

    Returns
    -------
    Tensor, shape ()
        Differentiable in the parameters of F. In two dimensions exact with any probes.

    Raises
    ------
    ArgumentError
        If ``num_probes < 1``.
    ShapeError
        If F changes the shape.
    """
    if num_probes < 1:
        raise ArgumentError(f"conservative_penalty: expected num_probes >= 1, got {num_probes}")
    points = x.detach().requires_grad_()
    total = x.new_zeros(())
    for _ in range(num_probes):
        bits = torch.randint(2, x.shape, generator=generator, device=x.device)
        v = bits.to(x.dtype) * 2 - 1
        values, forward = torch.func.jvp(F, (points,), (v,))[:2]
        if values.shape != x.shape:
            raise ShapeError(f"conservative_penalty: F maps {tuple(x.shape)} to {tuple(values.shape)}")
        (backward,) = torch.autograd.grad(values, points, v, create_graph=True)
        total = total + (forward - backward).square().sum(-1).mean()
    return total / num_probes
