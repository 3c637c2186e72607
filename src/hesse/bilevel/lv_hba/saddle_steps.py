"""Step sizes of LV-HBA from norms of second derivatives at the start, by power iteration on products.

Shapes: x (N,), y and θ (M,), λ (K,).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.bilevel.lv_hba.lagrangian import LowerLagrangian
from hesse.curvature.hessian import hessian
from hesse.errors import ArgumentError
from hesse.linalg.basic import FunctionOperator
from hesse.linalg.eigen.power import power_iteration, spectral_norm

__all__ = ["SaddleMethod", "lv_steps", "saddle_operator"]

SaddleMethod = Literal["jacobi", "optimistic", "extragradient"]

_POWER_STEPS = 10
_POWER_TOL = 0.03
_HEADROOM = 1.1  # power iteration comes from below
_BETA = 0.3  # of γ₂; the bound is one half


def lv_steps(
    lagrangian: LowerLagrangian,
    x: Tensor,
    y: Tensor,
    gamma: tuple[float, float],
    c0: float,
    *,
    method: SaddleMethod,
    lr_x: float | Literal["auto"],
    lr_saddle: float | Literal["auto"],
    lr_z: float | Literal["auto"],
    generator: Generator | None = None,
) -> tuple[float, float, float]:
    """Replace every "auto" by a number; the rules are in the docstring of `LVHBA`.

    Parameters
    ----------
    lagrangian : LowerLagrangian
        Of the lower level.
    x, y : Tensor, shapes (N,) and (M,)
        The start.
    gamma : tuple of float
        γ₁ and γ₂.
    c0 : float
        First penalty.
    method : {"jacobi", "optimistic", "extragradient"}
        Of the saddle.
    lr_x, lr_saddle, lr_z : float or "auto"
        As given.
    generator : torch.Generator, optional
        Of the first vectors, on the CPU. Default: torch's global generator.

    Returns
    -------
    lr_x, lr_saddle, lr_z : float
        Positive where they were "auto".

    Raises
    ------
    ArgumentError
        If a step is another word than "auto".
    """
    for name, value in (("lr_x", lr_x), ("lr_saddle", lr_saddle), ("lr_z", lr_z)):
        if isinstance(value, str) and value != "auto":
            raise ArgumentError(f"LVHBA: {name} must be a number or 'auto', got {value!r}")
    if isinstance(lr_x, str):
        upper = _joint_norm(lagrangian.oracle.value, x, y, generator)
        lower = _joint_norm(lagrangian.oracle.lower_value, x, y, generator)
        lr_x = 1 / (upper / c0 + lower + 1 / gamma[0])
    if isinstance(lr_saddle, str):
        operator = saddle_operator(lagrangian, x, y, gamma)
        size = _HEADROOM * float(
            spectral_norm(
                operator, max_steps=_POWER_STEPS, tol=_POWER_TOL, start=_start(operator.shape[1], x, generator)
            ).eigenvalues[0]
        )
        modulus = min(1 / gamma[0], 1 / gamma[1]) if lagrangian.num_rows else 1 / gamma[0]
        lr_saddle = modulus / size**2 if method == "jacobi" else 0.5 / size
    return lr_x, lr_saddle, _BETA * gamma[1] if isinstance(lr_z, str) else lr_z


def saddle_operator(
    lagrangian: LowerLagrangian, x: Tensor, theta: Tensor, gamma: tuple[float, float]
) -> FunctionOperator:
    """Differentiate the field of (θ, λ) at λ = 0:  [[g_yy + I/γ₁, J_yᵀ], [-J_y, I/γ₂]].

    Parameters
    ----------
    lagrangian : LowerLagrangian
        Of the lower level; all data are used.
    x, theta : Tensor, shapes (N,) and (M,)
        Where.
    gamma : tuple of float
        γ₁ and γ₂.

    Returns
    -------
    LinearOperator, shape (M + K, M + K)
        Its symmetric part is at least min(1/γ₁, 1/γ₂) for a convex g.
    """
    size, order = len(theta), len(theta) + lagrangian.num_rows
    curved = lagrangian.oracle.lower_hessian(x, theta)
    theta = theta.detach().requires_grad_()
    with torch.enable_grad():
        rows = lagrangian.rows(x, theta)
        dummy = torch.zeros_like(rows).requires_grad_()
        # linear in the dummy: differentiating it again gives products with J itself
        pulled = (
            torch.autograd.grad(rows, theta, dummy, create_graph=True, allow_unused=True, materialize_grads=True)[0]
            if rows.requires_grad
            else torch.zeros_like(theta)
        )

    def product(column: Tensor, sign: float) -> Tensor:
        along, weights = column[:size], column[size:]
        top = curved @ along + along / gamma[0]
        bottom = weights / gamma[1]
        if rows.requires_grad:
            options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            top = top + sign * torch.autograd.grad(rows, theta, weights, **options)[0]
            bottom = bottom - sign * torch.autograd.grad(pulled, dummy, along, **options)[0]
        return torch.cat([top, bottom])

    def columns(sign: float) -> Callable[[Tensor], Tensor]:
        return lambda block: torch.stack([product(column, sign) for column in block.unbind(-1)], dim=-1)

    return FunctionOperator(
        columns(1.0), (order, order), dtype=theta.dtype, device=theta.device, rmatmat_fn=columns(-1.0)
    )


def _joint_norm(value: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, generator: Generator | None) -> float:
    def loss(variables: dict[str, Tensor], _: None) -> Tensor:
        return value(variables["x"], variables["y"])

    operator = hessian(loss, {"x": x, "y": y}, [(None,)], keep_graph=True)
    found = power_iteration(
        operator, max_steps=_POWER_STEPS, tol=_POWER_TOL, start=_start(operator.shape[1], x, generator)
    )
    return _HEADROOM * float(found.eigenvalues[0].abs())


def _start(size: int, like: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(size, dtype=like.dtype, generator=generator).to(like.device)
