"""A primal-dual interior-point loop for small convex programmes with inequalities and second-order cones.

min φ(x) subject to A x - h in K, K = R₊^m x Q^k x ... x Q^k, φ smooth and convex. Mehrotra's predictor and corrector in
the scaling of Nesterov and Todd. How a programme stores its parts and solves its Newton system is its own affair.
Shapes: m inequalities, C cones of order K; a point of K is a pair (m,), (C, K).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hesse.errors import NumericalError, SingularError

__all__ = ["ConicProblem", "ConicResult", "solve_conic"]

Pair = tuple[Tensor, Tensor]
_BACKOFF = 0.99  # fraction of the way to the boundary
_FEASIBLE = 1e-7  # residuals that count as rounding: late Newton matrices have condition numbers of 1e15 and more


class ConicProblem(Protocol):
    """Products and solves with the parts of one programme."""

    def start(self) -> Tensor:
        """Give a point x of the right shape; zero will do."""
        ...

    def objective(self, x: Tensor) -> tuple[float, Tensor]:
        """φ(x) and its gradient."""
        ...

    def slack(self, x: Tensor) -> Pair:
        """Multiply by A."""
        ...

    def adjoint(self, linear: Tensor, cones: Tensor) -> Tensor:
        """Multiply a pair by Aᵀ."""
        ...

    def offset(self) -> Tensor:
        """H of the inequalities; that of the cones is zero."""
        ...

    def factor(self, x: Tensor, linear: Tensor, cones: Tensor) -> Callable[[Tensor], Tensor]:
        """Solve with ∇²φ(x) + Aᵀ blockdiag(diag(linear), cones) A, cones (C, K, K)."""
        ...


@dataclass(frozen=True, slots=True)
class ConicResult:
    """A point, its multipliers, and the gap between them."""

    x: Tensor
    multipliers: Tensor  # (m,)
    gap: float  # s·z, in the units of the objective
    converged: bool
    num_steps: int


def solve_conic(
    problem: ConicProblem,
    *,
    tol: float = 1e-8,
    max_steps: int = 100,
    monitor: Callable[[int, Tensor], bool] | None = None,
) -> ConicResult:
    """Solve a programme to full accuracy.

    Parameters
    ----------
    problem : ConicProblem
        In float64.
    tol : float, default 1e-8
        Bound of the gap relative to max(|φ|, 1e-3); both residuals, relative to their data, meet it or 1e-7.
    max_steps : int, default 100
        Newton steps at most; twenty to forty are usual.
    monitor : callable, optional
        (step, x) -> whether to stop.

    Returns
    -------
    ConicResult
        ``converged`` is false where rounding or ``max_steps`` stopped it first.

    Raises
    ------
    NumericalError
        If the first point has NaN or Inf.

    References
    ----------
    L. Vandenberghe (2010), The CVXOPT linear and quadratic cone program solvers.
    """
    x, s, z = _first_point(problem)
    h = problem.offset()
    order = len(s[0]) + len(s[1])
    gap, converged, step = torch.inf, False, 0
    for step in range(max_steps + 1):
        value, gradient = problem.objective(x)
        product = problem.slack(x)
        missing = (s[0] - product[0] + h, s[1] - product[1])
        lagrangian = gradient - problem.adjoint(*z)
        gap = _inner(s, z)
        if step == 0 and not math.isfinite(gap):
            raise NumericalError("solve_conic: the first point is NaN or Inf; scale the data")
        primal = _size(missing) / (1 + _size(s))
        dual = float(lagrangian.norm()) / (1 + float(gradient.norm()))
        converged = gap <= tol * max(abs(value), 1e-3) and max(primal, dual) <= max(tol, _FEASIBLE)
        if converged or step == max_steps or (monitor is not None and monitor(step, x)):
            break
        scaling = _Scaling.of(s, z)
        try:
            solve = problem.factor(x, *scaling.inverse_square())
        except SingularError:  # rounding has eaten the matrix; the last point stands
            break
        scaled = scaling.times(z)  # λ = W z = W⁻¹ s
        twice = scaling.inverse(scaling.inverse(missing))

        def newton(u: Pair) -> tuple[Tensor, Pair, Pair]:
            right = scaling.inverse(u)  # noqa: B023 - called in this step only
            dx = solve(-lagrangian + problem.adjoint(right[0] + twice[0], right[1] + twice[1]))  # noqa: B023
            moved = problem.slack(dx)
            ds = (moved[0] - missing[0], moved[1] - missing[1])  # noqa: B023
            back = scaling.inverse(scaling.inverse(ds))  # noqa: B023
            return dx, ds, (right[0] - back[0], right[1] - back[1])

        _, ds, dz = newton((-scaled[0], -scaled[1]))
        reach = min(1.0, _reach(s, ds), _reach(z, dz))
        centring = (1 - reach) ** 3 * gap / order
        second = _jordan(scaling.inverse(ds), scaling.times(dz))
        first = _jordan(scaled, scaled)
        unit = torch.zeros_like(s[1])
        unit[:, :1] = centring
        goal = (centring - first[0] - second[0], unit - first[1] - second[1])
        dx, ds, dz = newton(_jordan_divide(scaled, goal))
        length = min(1.0, _BACKOFF * min(_reach(s, ds), _reach(z, dz)))
        if not length >= 1e-10 or not bool(torch.isfinite(dx).all()):
            break
        x = x + length * dx
        s = (s[0] + length * ds[0], s[1] + length * ds[1])
        z = (z[0] + length * dz[0], z[1] + length * dz[1])
    return ConicResult(x, z[0], gap, converged, step)


@dataclass(frozen=True, slots=True)
class _Scaling:
    """W with W z = W⁻¹ s: a diagonal, and η (2 v vᵀ - J) for each cone."""

    weights: Tensor  # (m,)
    eta: Tensor  # (C, 1)
    v: Tensor  # (C, K)
    w: Tensor  # (C, K)

    @classmethod
    def of(cls, s: Pair, z: Pair) -> "_Scaling":
        size_s, size_z = _form(s[1]).sqrt(), _form(z[1]).sqrt()
        unit_s, unit_z = s[1] / size_s, z[1] / size_z
        gamma = ((1 + (unit_s * unit_z).sum(-1, keepdim=True)) / 2).sqrt()
        w = (unit_s + _mirror(unit_z)) / (2 * gamma)
        v = w.clone()
        v[:, 0] += 1
        v = v / (2 * v[:, :1]).sqrt()
        return cls((s[0] / z[0]).sqrt(), (size_s / size_z).sqrt(), v, w)

    def times(self, pair: Pair) -> Pair:
        inner = (self.v * pair[1]).sum(-1, keepdim=True)
        return self.weights * pair[0], self.eta * (2 * inner * self.v - _mirror(pair[1]))

    def inverse(self, pair: Pair) -> Pair:
        mirrored = _mirror(self.v)
        inner = (mirrored * pair[1]).sum(-1, keepdim=True)
        return pair[0] / self.weights, (2 * inner * mirrored - _mirror(pair[1])) / self.eta

    def inverse_square(self) -> Pair:
        mirrored = _mirror(self.w)
        matrix = 2 * mirrored.unsqueeze(-1) * mirrored.unsqueeze(-2)
        matrix[:, 0, 0] -= 1
        matrix.diagonal(dim1=-2, dim2=-1)[:, 1:] += 1
        return self.weights**-2, matrix / self.eta.unsqueeze(-1) ** 2


def _first_point(problem: ConicProblem) -> tuple[Tensor, Pair, Pair]:
    x = problem.start()
    h = problem.offset()
    _, gradient = problem.objective(x)
    linear, cones = problem.slack(x)
    eye = torch.eye(cones.shape[1], dtype=x.dtype, device=x.device).expand(len(cones), -1, -1)
    solve = problem.factor(x, torch.ones_like(linear), eye)
    x = x + solve(problem.adjoint(h - linear, -cones) - gradient)
    linear, cones = problem.slack(x)
    return x, _inside(linear - h, cones), _inside(h - linear, -cones)


def _inside(linear: Tensor, cones: Tensor) -> Pair:
    worst = torch.cat([-linear, torch.linalg.vector_norm(cones[:, 1:], dim=-1) - cones[:, 0]]).max()
    shift = 1 + worst if bool(worst > -1e-8) else torch.zeros_like(worst)
    lifted = cones.clone()
    lifted[:, 0] += shift
    return linear + shift, lifted


def _mirror(cones: Tensor) -> Tensor:
    return torch.cat([cones[..., :1], -cones[..., 1:]], -1)


def _form(cones: Tensor) -> Tensor:
    # (a - b)(a + b) loses fewer digits near the boundary than a² - b²
    tail = torch.linalg.vector_norm(cones[:, 1:], dim=-1, keepdim=True)
    return ((cones[:, :1] - tail) * (cones[:, :1] + tail)).clamp_min(1e-300)


def _jordan(a: Pair, b: Pair) -> Pair:
    head = (a[1] * b[1]).sum(-1, keepdim=True)
    return a[0] * b[0], torch.cat([head, a[1][:, :1] * b[1][:, 1:] + b[1][:, :1] * a[1][:, 1:]], -1)


def _jordan_divide(a: Pair, b: Pair) -> Pair:
    head = (_mirror(a[1]) * b[1]).sum(-1, keepdim=True) / _form(a[1])
    return b[0] / a[0], torch.cat([head, (b[1][:, 1:] - head * a[1][:, 1:]) / a[1][:, :1]], -1)


def _reach(at: Pair, along: Pair) -> float:
    # the largest step that stays in K
    lines = torch.where(along[0] < 0, -at[0] / along[0], torch.inf)
    b = (_mirror(at[1]) * along[1]).sum(-1)
    a = (_mirror(along[1]) * along[1]).sum(-1)
    c = _form(at[1]).squeeze(-1)
    inner = b.square() - a * c
    below = inner.clamp_min(0).sqrt() - b
    curves = torch.where((inner >= 0) & (below > 0), c / below, torch.inf)
    return float(torch.cat([lines, curves]).amin())


def _inner(a: Pair, b: Pair) -> float:
    return float((a[0] * b[0]).sum() + (a[1] * b[1]).sum())


def _size(pair: Pair) -> float:
    return float(pair[0].square().sum().add(pair[1].square().sum()).sqrt())
