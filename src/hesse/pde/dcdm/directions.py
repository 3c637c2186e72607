"""Line searches along conjugated directions that any function may propose: the iteration of `hesse.pde.dcdm`.

    d = f(r / ‖r‖),  d -= (dᵀA p / pᵀA p) p over the last directions p,  α = rᵀd / dᵀA d,  x += α d,  r -= α A d

Shapes: N unknowns, K right-hand sides, each stopping by itself.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["DirectionFunction", "DirectionSolution", "conjugate_directions"]

DirectionFunction = Callable[[Tensor], Tensor]
"""From residuals of unit norm, (N, K), to directions of any length, (N, K), one column each."""

_SLOW_STEPS = 3  # in a row, before a column falls back
_ROUNDING = 8.0  # times eps ‖A‖ ‖x‖: where an explicit residual stops falling
_FIRST_BURST = 8  # residual directions of the first fallback; every further one is twice as long


@dataclass(frozen=True, slots=True)
class DirectionSolution(Solution):
    """A solution that also says how each column got there.

    Attributes
    ----------
    steps : Tensor of int64, one entry a column
        Steps each column took; ``num_steps`` is their largest.
    fallback_steps : Tensor of int64, one entry a column
        How many of them went along the residual because f was slow, not finite or without use.
    """

    steps: Tensor | None = None
    fallback_steps: Tensor | None = None


class _Stored(NamedTuple):
    p: Tensor  # (N, K)
    image: Tensor  # (N, K), A p
    curvature: Tensor  # (K,), pᵀA p; zero where a column made no use of p


@torch.no_grad()
def conjugate_directions(
    operator: LinearOperator,
    b: Tensor,
    direction_fn: DirectionFunction,
    *,
    x0: Tensor | None = None,
    i_orth: int = 2,
    tol: float = 1e-6,
    max_steps: int = 200,
    fallback: Literal["cg"] | None = "cg",
    fallback_ratio: float = 0.97,
    recurrence_dtype: torch.dtype = torch.float64,
    record_history: bool = False,
    callback_fn: Callable[[int, Tensor, Tensor], None] | None = None,
) -> DirectionSolution:
    """Solve A x = b for symmetric positive definite A along directions that ``direction_fn`` proposes.

    The energy norm of the error never grows, whatever the function: the line search is exact. With f(r) = r and
    ``i_orth >= 1`` this is the method of conjugate gradients.

    Parameters
    ----------
    operator : LinearOperator, shape (N, N)
        A. May be singular where b and the directions stay in its range.
    b : Tensor, shape (N,) or (N, K)
        Right-hand sides, in the operator's dtype and on its device.
    direction_fn : callable
        f, called once a step with the columns that are still iterated, in ``recurrence_dtype``.
    x0 : Tensor, shape of b, optional
        Start. Default: zero.
    i_orth : int, default 2
        How many earlier directions each new one is made A-orthogonal to (the paper's choice); N of them end in N
        steps for any f. Three blocks of b's size each.
    tol : float, default 1e-6
        Stop where ‖b - A x‖ <= tol ‖b - A x0‖, the left side computed afresh.
    max_steps : int, default 200
        Limit.
    fallback : {"cg", None}, default "cg"
        "cg": after three steps in a row that reduced the residual by less than 3 %, a column restarts as conjugate
        gradients for 8 steps, and for twice as many every further time: a useless f costs a constant factor over
        conjugate gradients. None: keep asking f.
    fallback_ratio : float, default 0.97
        What counts as slow: ‖r‖ after a step over ‖r‖ before.
    recurrence_dtype : torch.dtype, default torch.float64
        Of the recurrences and of the products, for which the operator is converted: in float32 the residual of a
        problem of condition 10³ stalls near 1e-4. The answer has the dtype of b.
    record_history : bool, default False
        Keep the residual norm of every step.
    callback_fn : callable, optional
        Called after every step with its number, x and r, both (N, K) in ``recurrence_dtype``; not to be changed.

    Returns
    -------
    DirectionSolution
        No gradient flows. A column stops with ``Status.STAGNATED`` where rounding hides further progress, and with
        ``Status.MAX_STEPS`` where it is too slow or b is not in the range of A.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If a limit or tolerance is out of range.
    NumericalError
        If b has NaN or Inf, or A is not positive semi-definite; the message names the step.

    Notes
    -----
    One call of f and one product with A a step, and one product at the end; memory 4 + 2 ``i_orth`` blocks of b.

    References
    ----------
    A. Kaneda, O. Akar, J. Chen, V. Kala, D. Hyde, J. Teran (2023), ICML, arXiv 2205.10763.
    """
    _check(operator, b, x0, i_orth, tol, max_steps, fallback, fallback_ratio, recurrence_dtype)
    work = operator.to(dtype=recurrence_dtype)
    block = (b if b.ndim == 2 else b.unsqueeze(1)).to(recurrence_dtype)
    start = None if x0 is None else x0.reshape(block.shape).to(recurrence_dtype)
    run = _Run(work, block, start, i_orth, tol, fallback_ratio if fallback else torch.inf)
    history = [run.norm.clone()]
    step = 0
    while step < max_steps and bool(run.active.any()):
        step += 1
        run.advance(direction_fn, step)
        history.append(run.norm.clone())
        if callback_fn is not None:
            callback_fn(step, run.x, run.r)
    return run.solution(b, step, torch.stack(history) if record_history else None)


class _Run:
    """The columns while they are iterated; entries a column are (K,)."""

    def __init__(
        self, operator: LinearOperator, b: Tensor, x0: Tensor | None, i_orth: int, tol: float, ratio: float
    ) -> None:
        self.operator, self.b, self.ratio = operator, b, ratio
        self.x = torch.zeros_like(b) if x0 is None else x0.clone()
        self.r = b.clone() if x0 is None else b - operator @ x0
        self.norm = torch.linalg.vector_norm(self.r, dim=0)
        self.limit = tol * self.norm
        self.active = self.norm > self.limit
        self.active &= self.norm > 0
        self.stored: deque[_Stored] = deque(maxlen=i_orth)
        count = torch.zeros(b.shape[1], dtype=torch.int64, device=b.device)
        self.steps, self.fallback_steps, self.slow, self.left = count, count.clone(), count.clone(), count.clone()
        self.burst = torch.full_like(count, _FIRST_BURST)
        self.spread = torch.zeros_like(self.norm)  # the largest ‖A d‖ / ‖d‖ seen: a lower bound of ‖A‖
        self.stagnated = torch.zeros_like(self.active)

    def advance(self, direction_fn: DirectionFunction, step: int) -> None:
        """Make one step with every active column."""
        along_residual = self.active & (self.left > 0)
        d = self._proposed(direction_fn, self.active & ~along_residual)
        odd = self.active & ~torch.isfinite(d).all(0)
        along_residual |= odd
        d = torch.where(along_residual, self.r, torch.where(odd, 0, d))
        d, image, curvature, usable = self._conjugated(d, step)
        for forget in (False, True):
            useless = self.active & ~usable
            if not bool(useless.any()):
                break
            along_residual |= useless
            if forget:  # the residual with nothing before it leads on wherever A is definite
                self._forget(useless)
            d, image, curvature, usable = self._conjugated(torch.where(useless, self.r, d), step)
        moved = self.active & usable
        alpha = torch.where(moved, (self.r * d).sum(0) / torch.where(moved, curvature, 1), 0)
        self.x += alpha * d
        self.r -= alpha * image
        before, self.norm = self.norm, torch.linalg.vector_norm(self.r, dim=0)
        self.stored.append(_Stored(d, image, torch.where(moved, curvature, 0)))
        self.steps += moved
        self.fallback_steps += moved & along_residual
        self._stop(moved)
        self._watch(moved & ~along_residual, self.norm > self.ratio * before, along_residual)

    def _proposed(self, direction_fn: DirectionFunction, asked: Tensor) -> Tensor:
        d = torch.zeros_like(self.r)
        if bool(asked.any()):
            columns = asked.nonzero().squeeze(1)
            unit = self.r[:, columns] / self.norm[columns]
            proposed = direction_fn(unit)
            if proposed.shape != unit.shape:
                raise ShapeError(
                    f"conjugate_directions: direction_fn turned {tuple(unit.shape)} into {tuple(proposed.shape)}"
                )
            d[:, columns] = proposed.to(d)
        return d

    def _conjugated(self, d: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = torch.linalg.vector_norm(d, dim=0)
        d = d / torch.where(size > 0, size, 1)
        for p, image, curvature in reversed(self.stored):
            share = torch.where(curvature > 0, (d * image).sum(0) / torch.where(curvature > 0, curvature, 1), 0)
            d = d - share * p
        image = self.operator @ d
        curvature = (d * image).sum(0)
        size = torch.linalg.vector_norm(d, dim=0)
        stretch = torch.linalg.vector_norm(image, dim=0) / torch.where(size > 0, size, 1)
        self.spread = torch.maximum(self.spread, torch.nan_to_num(stretch))
        # below this a Rayleigh quotient is rounding: d lies in the null space, or earlier directions contain it
        noise = d.shape[0] ** 0.5 * torch.finfo(d.dtype).eps
        least = noise * self.spread * size**2
        wrong = self.active & ((curvature < -least) | ~torch.isfinite(curvature))
        if bool(wrong.any()):
            column = int(wrong.nonzero()[0])
            raise NumericalError(
                f"conjugate_directions: step {step}, column {column}: dᵀA d = {float(curvature[column]):.3e} is not "
                "positive; the operator must be symmetric positive definite (use hesse.linalg.minres otherwise)"
            )
        return d, image, curvature, (curvature > least) & (size > noise**0.5)

    def _forget(self, columns: Tensor) -> None:
        self.stored = deque(
            (_Stored(p, image, torch.where(columns, 0, c)) for p, image, c in self.stored), maxlen=self.stored.maxlen
        )

    def _stop(self, moved: Tensor) -> None:
        self.stagnated |= self.active & ~moved
        self.active &= moved
        claimed = self.active & (self.norm <= self.limit)
        if bool(claimed.any()):
            columns = claimed.nonzero().squeeze(1)
            self.r[:, columns] = self.b[:, columns] - self.operator @ self.x[:, columns]
            self.norm[columns] = torch.linalg.vector_norm(self.r[:, columns], dim=0)
            floor = torch.finfo(self.x.dtype).eps * self.spread * torch.linalg.vector_norm(self.x, dim=0)
            self.stagnated |= claimed & (self.norm > self.limit) & (self.norm <= _ROUNDING * floor)
            self.active &= (self.norm > self.limit) & ~self.stagnated

    def _watch(self, asked: Tensor, slow: Tensor, along_residual: Tensor) -> None:
        self.left = (self.left - along_residual.long()).clamp_min(0)
        self.slow = torch.where(asked & slow, self.slow + 1, 0)
        falls = self.active & (self.slow >= _SLOW_STEPS)
        if bool(falls.any()):
            self.left = torch.where(falls, self.burst, self.left)
            self.burst = torch.where(falls, 2 * self.burst, self.burst)
            self.slow = torch.where(falls, 0, self.slow)
            # conjugate gradients start anew: with old directions among them the short recurrence would not hold
            self._forget(falls)

    def solution(self, b: Tensor, step: int, history: Tensor | None) -> DirectionSolution:
        """Put the answer into the shape of ``b``.

        Parameters
        ----------
        b : Tensor, shape (N,) or (N, K)
            As the caller gave it.
        step : int
            Steps made.
        history : Tensor, shape (steps + 1, K), optional
            Residual norms.

        Returns
        -------
        DirectionSolution
            With the residual computed afresh.
        """
        residual = torch.linalg.vector_norm(self.b - self.operator @ self.x, dim=0)
        converged = (residual <= self.limit) | (residual == 0)
        statuses = torch.full_like(self.steps, int(Status.MAX_STEPS))
        statuses[self.stagnated] = int(Status.STAGNATED)
        statuses[converged] = int(Status.CONVERGED)

        def entries(values: Tensor) -> Tensor:
            return values if b.ndim == 2 else values.squeeze(-1)

        return DirectionSolution(
            x=self.x.reshape(b.shape).to(b.dtype),
            converged=entries(converged),
            num_steps=step,
            residual=entries(residual),
            status=Status(int(statuses.max()) if statuses.numel() else 0),
            method="dcdm",
            history=None if history is None else entries(history),
            statuses=entries(statuses),
            steps=entries(self.steps),
            fallback_steps=entries(self.fallback_steps),
        )


def _check(
    operator: LinearOperator,
    b: Tensor,
    x0: Tensor | None,
    i_orth: int,
    tol: float,
    max_steps: int,
    fallback: str | None,
    ratio: float,
    dtype: torch.dtype,
) -> None:
    call = "conjugate_directions"
    n = operator.shape[0]
    if operator.shape[1] != n or operator.batch_shape:
        raise ShapeError(f"{call}: expected one square operator, got {operator!r}")
    if b.ndim not in (1, 2) or b.shape[0] != n:
        raise ShapeError(f"{call}: expected b of shape ({n},) or ({n}, k), got {tuple(b.shape)}")
    if b.dtype != operator.dtype or b.device != operator.device:
        raise ShapeError(
            f"{call}: b is {b.dtype} on {b.device}, the operator {operator.dtype} on {operator.device}; "
            "convert one with .to()"
        )
    if x0 is not None and (x0.shape != b.shape or x0.dtype != b.dtype or x0.device != b.device):
        raise ShapeError(f"{call}: expected x0 like b, {tuple(b.shape)} {b.dtype}, got {tuple(x0.shape)} {x0.dtype}")
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"{call}: expected recurrence_dtype float32 or float64, got {dtype}")
    if i_orth < 0 or max_steps < 0 or not tol >= 0:
        raise ArgumentError(
            f"{call}: expected i_orth >= 0, max_steps >= 0 and tol >= 0, got {i_orth}, {max_steps}, {tol}"
        )
    if fallback not in ("cg", None) or not 0 < ratio <= 1:
        raise ArgumentError(
            f"{call}: expected fallback 'cg' or None and 0 < fallback_ratio <= 1, got {fallback!r}, {ratio}"
        )
    if not bool(torch.isfinite(b).all()) or (x0 is not None and not bool(torch.isfinite(x0).all())):
        raise NumericalError(f"{call}: b or x0 has NaN or Inf")
