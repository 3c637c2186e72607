"""Nearest points of sets that couple both variables: margins with slacks, polyhedra, and a set of stacked vectors.

Shapes: n rows, d features, N entries of x, M of y.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.bilevel.piecewise_quadratic import minimize_hinge_squares
from hesse.errors import ArgumentError, ConvergenceError, NumericalError, ShapeError

__all__ = ["Polyhedron", "SoftMarginRows", "stacked"]


@dataclass(frozen=True, slots=True, eq=False)
class SoftMarginRows:
    """{(w, b, ξ) : 1 - ξ_i - t_i (wᵀa_i + b) <= 0}, the margins of a support-vector machine.

    ξ_i = max(ξ⁰_i, 1 - t_i(wᵀa_i + b)) leaves  min ‖(w, b) - (w⁰, b⁰)‖²/2 + Σ max(0, 1 - t_i(wᵀa_i + b) - ξ⁰_i)²/2.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Rows a_i.
    t : Tensor, shape (n,)
        Labels, -1 or 1.

    Raises
    ------
    ShapeError
        If rows and labels do not fit together.
    ArgumentError
        If a label is neither -1 nor 1.
    """

    X: Tensor
    t: Tensor

    def __post_init__(self) -> None:
        if self.X.ndim != 2 or self.t.shape != self.X.shape[:1]:
            raise ShapeError(
                f"SoftMarginRows: expected X (n, d) and t (n,), got {tuple(self.X.shape)} and {tuple(self.t.shape)}"
            )
        if not bool((self.t.abs() == 1).all()):
            raise ArgumentError("SoftMarginRows: expected labels -1 and 1")

    @property
    def signed_rows(self) -> Tensor:
        """t_i (a_i, 1), shape (n, d + 1): the margins are these times (w, b)."""
        t = self.t.to(self.X.dtype).unsqueeze(1)
        return torch.cat([t * self.X, t], dim=1)

    def __call__(self, weight: Tensor, bias: Tensor, slack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project, by semismooth Newton in d + 1 unknowns: O(n d²) a step.

        Parameters
        ----------
        weight, bias, slack : Tensor, shapes (d,), () and (n,)
            w⁰, b⁰ and ξ⁰.

        Returns
        -------
        weight, bias, slack : Tensor, shapes (d,), () and (n,)
            The nearest point, without a graph.

        Raises
        ------
        NumericalError
            If the point has NaN or Inf.
        """
        point = torch.cat([weight.detach(), bias.detach().reshape(1)])
        _require_finite("SoftMarginRows", point, slack)
        rows = self.signed_rows
        moved = minimize_hinge_squares(
            rows, 1 - slack, torch.ones_like(slack), point, torch.ones_like(point), start=point
        )
        return moved[:-1], moved[-1].reshape(bias.shape), torch.maximum(slack.detach(), 1 - rows @ moved)


@dataclass(frozen=True, slots=True, eq=False)
class Polyhedron:
    """{u : A u <= b, E u = e}, by the method of multipliers with semismooth Newton inside.

    Parameters
    ----------
    A, b : Tensor, shapes (p, D) and (p,), optional
        Inequalities. Default: none.
    E, e : Tensor, shapes (q, D) and (q,), optional
        Equations. Default: none.
    rtol : float, optional
        Largest violation, of rows scaled to unit norm, over the size of the point. Default: 64 ε of the dtype.

    Raises
    ------
    ArgumentError
        If there is no row, or a row is zero.
    ShapeError
        If shapes do not fit.

    Notes
    -----
    A halfspace, a box or equations alone have closed forms in `hesse.linalg`.
    """

    A: Tensor | None = None
    b: Tensor | None = None
    E: Tensor | None = None
    e: Tensor | None = None
    rtol: float | None = None

    def __post_init__(self) -> None:
        pairs = [("A", self.A, self.b), ("E", self.E, self.e)]
        for name, matrix, side in pairs:
            if (matrix is None) != (side is None):
                raise ArgumentError(f"Polyhedron: {name} and {name.lower() if name == 'E' else 'b'} come together")
            if matrix is not None and side is not None and (matrix.ndim != 2 or side.shape != matrix.shape[:1]):
                raise ShapeError(
                    f"Polyhedron: {name} {tuple(matrix.shape)} and its right-hand side {tuple(side.shape)}"
                )
        rows = [matrix for _, matrix, _ in pairs if matrix is not None]
        if not rows:
            raise ArgumentError("Polyhedron: expected A and b, or E and e; there is no row")
        if len({matrix.shape[1] for matrix in rows}) > 1:
            raise ShapeError(f"Polyhedron: A has {rows[0].shape[1]} columns, E {rows[1].shape[1]}")
        if any(not bool((matrix.norm(dim=1) > 0).all()) for matrix in rows):
            raise ArgumentError("Polyhedron: a row is zero; drop it")

    def __call__(self, point: Tensor) -> Tensor:
        """Project one vector.

        Parameters
        ----------
        point : Tensor, shape (D,)
            Anywhere.

        Returns
        -------
        Tensor, shape (D,)
            The nearest point of the set, without a graph.
        """
        return self.solve(point)[0]

    def solve(self, point: Tensor, multipliers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Project, and give the multipliers λ of point - u = Aᵀλ_A + Eᵀλ_E.

        Parameters
        ----------
        point : Tensor, shape (D,)
            Anywhere.
        multipliers : Tensor, shape (p + q,), optional
            Warm start: those of a point near by. Default: zeros.

        Returns
        -------
        u, multipliers : Tensor, shapes (D,) and (p + q,)
            Inequalities first; those are >= 0.

        Raises
        ------
        NumericalError
            If the point has NaN or Inf.
        ConvergenceError
            If the rows contradict each other, or nearly so.
        """
        point = point.detach()
        _require_finite("Polyhedron", point)
        inequalities = 0 if self.b is None else len(self.b)
        matrix = torch.cat([rows for rows in (self.A, self.E) if rows is not None]).to(point)
        side = torch.cat([values for values in (self.b, self.e) if values is not None]).to(point)
        norms = matrix.norm(dim=1)
        matrix, side = matrix / norms.unsqueeze(1), side / norms
        always = torch.arange(len(side), device=point.device) >= inequalities
        eps = torch.finfo(point.dtype).eps
        size = max(1.0, float(point.abs().max()), float(side.abs().max()))
        tol = size * (64 * eps if self.rtol is None else self.rtol)
        lam = torch.zeros_like(side) if multipliers is None else (multipliers.to(point) * norms)
        strength, ones, u = 10.0, torch.ones_like(point), point
        for _ in range(60):
            u = minimize_hinge_squares(
                -matrix,
                lam / strength - side,
                torch.full_like(side, strength),
                point,
                ones,
                start=u,
                always=always,
            )
            raised = lam + strength * (matrix @ u - side)
            raised = torch.where(always, raised, raised.clamp_min(0))
            # u and the raised multipliers fit exactly; their change is what lacks in feasibility and complementarity
            change = float((raised - lam).abs().max()) / strength
            lam = raised
            if change <= tol:
                return u, lam / norms
            strength = min(10 * strength, 0.01 / eps**0.5)
        raise ConvergenceError("Polyhedron: no point found that meets all rows; do they contradict each other?")


def stacked(project: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Make a projection of vectors (x; y) one of pairs, as ``BilevelProblem(project_joint=)`` wants it.

    Parameters
    ----------
    project : callable
        (N + M,) -> (N + M,), such as `hesse.linalg.AffineEquality` or `Polyhedron`.

    Returns
    -------
    callable
        (x, y) -> (x, y) for a problem whose variables are one vector each.
    """

    def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 1 or y.ndim != 1:
            raise ShapeError(f"stacked: expected x and y as vectors, got x {tuple(x.shape)} and y {tuple(y.shape)}")
        moved = project(torch.cat([x, y]))
        return moved[: len(x)], moved[len(x) :]

    return pair


def _require_finite(call: str, *tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise NumericalError(f"{call}: expected a finite point, got NaN or Inf; lower the step sizes")
