"""The exact augmented Lagrangian, a merit function whose minimisation leads to KKT points without a dual loop.

    A(x, λ) = L + (η₁/2) ‖c‖² + (η₂/2) ‖∇ₓL‖²,   L = f + λᵀc

Shapes: x (N,), λ (M,), G (M, N).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.optim.adasketch.problem import ConstrainedProblem, Point, VectorFunction

__all__ = ["AugmentedLagrangianMerit", "merit_gradient", "merit_value"]


def merit_value(point: Point, eta1: float, eta2: float) -> Tensor:
    """Evaluate A from first-order information.

    Parameters
    ----------
    point : Point
        Where.
    eta1, eta2 : float
        Weights of infeasibility and of the gradient.

    Returns
    -------
    Tensor, shape ()
        In the units of f.
    """
    lagrangian = point.fun + point.lam @ point.con
    return lagrangian + eta1 / 2 * point.con.square().sum() + eta2 / 2 * point.gradient.square().sum()


def merit_gradient(point: Point, jacobian: Tensor, pushed: Tensor, eta1: float, eta2: float) -> Tensor:
    """Form the gradient of A: ∇ₓL + η₂ H ∇ₓL + η₁ Gᵀc above c + η₂ G ∇ₓL, with H the Hessian of L (not that of f).

    Parameters
    ----------
    point : Point
        Where.
    jacobian : Tensor, shape (M, N)
        G.
    pushed : Tensor, shape (N,)
        H ∇ₓL, one Hessian product.
    eta1, eta2 : float
        As in `merit_value`.

    Returns
    -------
    Tensor, shape (N + M,)
        With respect to x, then λ.
    """
    by_x = point.gradient + eta2 * pushed + eta1 * (jacobian.T @ point.con)
    return torch.cat([by_x, point.con + eta2 * (jacobian @ point.gradient)])


@dataclass(frozen=True, slots=True)
class AugmentedLagrangianMerit:
    """A(x, λ) of a problem, with its gradient and slope.

    For η₁ large and η₂ small enough its stationary points in a bounded region are the KKT points there, and both x and
    λ descend: no maximisation over λ.

    Attributes
    ----------
    fun : callable
        f, (N,) -> ().
    con : callable or None
        c, (N,) -> (M,); None for no constraints.
    eta1, eta2 : float, default 1.0 and 0.1
        η₁ > 0 and η₂ > 0, the paper's first values.

    Raises
    ------
    ArgumentError
        If one of them is not positive.

    References
    ----------
    I. Hong, S. Na, M. W. Mahoney, M. Kolar (2023), ICML, arXiv 2305.18379.

    Examples
    --------
    >>> merit = AugmentedLagrangianMerit(lambda x: x @ x, lambda x: x.sum().reshape(1) - 1)
    >>> float(merit.value(torch.ones(2), torch.zeros(1)))  # 2 + (2 - 1)² / 2 + 0.1 · 8 / 2
    2.9...
    """

    fun: VectorFunction
    con: VectorFunction | None
    eta1: float = 1.0
    eta2: float = 0.1

    def __post_init__(self) -> None:
        if not (self.eta1 > 0 and self.eta2 > 0):
            raise ArgumentError(
                f"AugmentedLagrangianMerit: expected eta1 > 0 and eta2 > 0, got {self.eta1} and {self.eta2}"
            )

    def value(self, x: Tensor, lam: Tensor) -> Tensor:
        """Evaluate A(x, λ); differentiable.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Variables.
        lam : Tensor, shape (M,)
            Multipliers.

        Returns
        -------
        Tensor, shape ()
            One gradient of f and one product Gᵀλ.
        """
        return merit_value(ConstrainedProblem(self.fun, self.con).at(x, lam), self.eta1, self.eta2)

    def gradient(self, x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate ∇A, by one Hessian product and one Jacobian.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Variables.
        lam : Tensor, shape (M,)
            Multipliers.

        Returns
        -------
        tuple of Tensor, shapes (N,) and (M,)
            With respect to x and to λ.
        """
        problem = ConstrainedProblem(self.fun, self.con)
        point = problem.at(x, lam)
        pushed = problem.hessian(point).matvec(point.gradient)
        joined = merit_gradient(point, problem.jacobian(point), pushed, self.eta1, self.eta2)
        return joined[: len(x)], joined[len(x) :]

    def directional_derivative(self, x: Tensor, lam: Tensor, dx: Tensor, dlam: Tensor) -> Tensor:
        """Evaluate ∇A(x, λ)ᵀ (dx, dλ), negative along a descent direction.

        Parameters
        ----------
        x, dx : Tensor, shape (N,)
            Variables and their direction.
        lam, dlam : Tensor, shape (M,)
            Multipliers and their direction.

        Returns
        -------
        Tensor, shape ()
            Costs a gradient.
        """
        by_x, by_lam = self.gradient(x, lam)
        return by_x @ dx + by_lam @ dlam
