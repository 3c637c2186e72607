"""Pointwise differential equations F[u] = f: the residual operator F, and its linearisation by autograd.

Shapes: u and every derivative have the shape of the grid, (N_1, …, N_d).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError

__all__ = [
    "Advection",
    "AllenCahn",
    "CustomEquation",
    "Derivatives",
    "Equation",
    "Helmholtz",
    "Orders",
    "Poisson",
    "linearize",
]

Orders = tuple[int, ...]
"""How often u is differentiated along each axis: (2, 0) is u_xx in two dimensions, (0, 0) is u."""


class Derivatives:
    """Partial derivatives of u by name: ``d(axis, order)``, and ``d.mixed((1, 1))`` for those across axes.

    Parameters
    ----------
    dim : int
        Number of axes.
    compute_fn : callable
        From orders to the tensor; called once for each.
    """

    def __init__(self, dim: int, compute_fn: Callable[[Orders], Tensor]) -> None:
        self.dim = dim
        self.seen: dict[Orders, Tensor] = {}
        self._compute_fn = compute_fn

    def __call__(self, axis: int, order: int = 1) -> Tensor:
        """Give d^order u / dx_axis^order.

        Parameters
        ----------
        axis : int
            0 <= axis < d.
        order : int, default 1
            At least 1; 2 at most unless the kernel is Gaussian.

        Returns
        -------
        Tensor, shape of the grid
            The derivative.

        Raises
        ------
        ArgumentError
            If there is no such axis.
        """
        if not 0 <= axis < self.dim:
            raise ArgumentError(f"Derivatives: the equation asks for axis {axis}, the domain has {self.dim}")
        return self.mixed(tuple(order if j == axis else 0 for j in range(self.dim)))

    def mixed(self, orders: Orders) -> Tensor:
        """Give the derivative of these orders along the axes.

        Parameters
        ----------
        orders : tuple of int
            One an axis.

        Returns
        -------
        Tensor, shape of the grid
            The derivative.
        """
        if orders not in self.seen:
            self.seen[orders] = self._compute_fn(orders)
        return self.seen[orders]


class Equation(Protocol):
    """F as a pointwise function of u and its derivatives; ``is_linear`` promises that it is affine in them.

    An equation that is also an ``nn.Module`` has its parameters learned with the kernel's: an inverse problem.
    """

    @property
    def is_linear(self) -> bool:
        """Whether one Gauss-Newton step is exact."""
        ...

    def residual(self, u: Tensor, d: Derivatives) -> Tensor:
        """Evaluate F[u] on the grid."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """F[u] = Σ_j ∂²u/∂x_j²; the equation is Δu = f."""

    is_linear = True

    def residual(self, u: Tensor, d: Derivatives) -> Tensor:
        """Evaluate the Laplacian.

        Parameters
        ----------
        u : Tensor, shape of the grid
            Values.
        d : Derivatives
            Of u.

        Returns
        -------
        Tensor, shape of the grid
            F[u].
        """
        return sum((d(axis, 2) for axis in range(1, u.ndim)), d(0, 2))


@dataclass(frozen=True, slots=True)
class Helmholtz:
    """F[u] = Δu + k² u, ``wavenumber`` k in radians a unit of length."""

    wavenumber: float
    is_linear = True

    def residual(self, u: Tensor, d: Derivatives) -> Tensor:
        """Evaluate Δu + k² u.

        Parameters
        ----------
        u : Tensor, shape of the grid
            Values.
        d : Derivatives
            Of u.

        Returns
        -------
        Tensor, shape of the grid
            F[u].
        """
        return Poisson().residual(u, d) + self.wavenumber**2 * u


@dataclass(frozen=True, slots=True)
class AllenCahn:
    """F[u] = Δu + u (u² - 1)."""

    is_linear = False

    def residual(self, u: Tensor, d: Derivatives) -> Tensor:
        """Evaluate Δu + u³ - u.

        Parameters
        ----------
        u : Tensor, shape of the grid
            Values.
        d : Derivatives
            Of u.

        Returns
        -------
        Tensor, shape of the grid
            F[u].
        """
        return Poisson().residual(u, d) + u * (u.square() - 1)


@dataclass(frozen=True, slots=True)
class Advection:
    """F[u] = β u_x + u_t on (x, t); ``speed`` β in lengths a unit of time."""

    speed: float
    is_linear = True

    def residual(self, u: Tensor, d: Derivatives) -> Tensor:
        """Evaluate β u_x + u_t, axis 0 being x and axis 1 being t.

        Parameters
        ----------
        u : Tensor, shape of the grid
            Values.
        d : Derivatives
            Of u.

        Returns
        -------
        Tensor, shape of the grid
            F[u].
        """
        return self.speed * d(0, 1) + d(1, 1)


class CustomEquation(nn.Module):
    """A user's own F, from a function; coefficients given by name are learned.

    Parameters
    ----------
    residual_fn : callable
        ``(u, d) -> Tensor`` or, with coefficients, ``(u, d, **coefficients) -> Tensor``; pointwise in u and ``d(…)``.
    is_linear : bool, default False
        Promise that it is affine in u and its derivatives, which spares the inner iteration.
    coefficients : mapping of str to float, optional
        First guesses of unknown coefficients.
    """

    def __init__(
        self,
        residual_fn: Callable[..., Tensor],
        *,
        is_linear: bool = False,
        coefficients: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.residual_fn = residual_fn
        self.is_linear = is_linear
        start = {name: torch.tensor(float(value), dtype=torch.float64) for name, value in (coefficients or {}).items()}
        self.coefficients = nn.ParameterDict({name: nn.Parameter(value) for name, value in start.items()})

    def residual(self, u: Tensor, d: Derivatives) -> Tensor:
        """Evaluate the function.

        Parameters
        ----------
        u : Tensor, shape of the grid
            Values.
        d : Derivatives
            Of u.

        Returns
        -------
        Tensor, shape of the grid
            F[u].
        """
        return self.residual_fn(u, d, **dict(self.coefficients.items()))


def linearize(equation: Equation, u: Tensor, d: Derivatives) -> tuple[Tensor, dict[Orders, Tensor]]:
    """Evaluate F[u] and the coefficients of its linearisation F'(u) h = Σ c_orders ∂^orders h.

    Parameters
    ----------
    equation : Equation
        F, pointwise: that is what makes one backward pass give all the coefficients.
    u : Tensor, shape of the grid
        Where.
    d : Derivatives
        Of u there.

    Returns
    -------
    Tensor, shape of the grid
        F[u].
    dict of orders to Tensor, shape of the grid
        One coefficient a derivative that F uses, u itself among them under zeros.

    Raises
    ------
    ArgumentError
        If F uses neither u nor a derivative.
    """
    with torch.enable_grad():
        value = u.detach().requires_grad_()
        leaves = Derivatives(d.dim, lambda orders: d.mixed(orders).detach().requires_grad_())
        out = equation.residual(value, leaves)
        inputs = {(0,) * d.dim: value, **leaves.seen}
        if not out.requires_grad:
            raise ArgumentError("linearize: the equation uses neither u nor a derivative of it")
        gradients = torch.autograd.grad(out.sum(), list(inputs.values()), allow_unused=True)
    found = zip(inputs, gradients, strict=True)
    return out.detach(), {orders: gradient for orders, gradient in found if gradient is not None}
