"""The players that optimistic mirror descent is measured against: OGD, AdaGrad-norm, ONS and Hedge.

Each holds its constants; ``init`` gives the first point, ``round`` takes the gradient at ``state.play`` and gives the
next. Leading dimensions are runs of their own.   Shapes: n unknowns; t counts from 1.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.linalg import metric_projection
from hesse.optim.online.rounds import Projection, check_positive, newton_beta

__all__ = ["ONS", "AdaGradNorm", "BaselineState", "Hedge", "OnlineGradientDescent"]


class BaselineState(NamedTuple):
    """A point in play and what the player remembers."""

    play: Tensor  # x_t (..., n)
    memory: Tensor  # AdaGradNorm: Σ ‖g_s‖² (...); ONS: A (..., n, n); Hedge: Σ g_s (..., n); OGD: zeros
    num_rounds: Tensor  # t - 1, integers (...)


@dataclass(frozen=True, slots=True, eq=False)
class OnlineGradientDescent:
    """x_{t+1} = P(x_t - η_t g_t), η_t = D/(G√t), or 1/(λt) for strongly convex losses.

    Parameters
    ----------
    diameter : float
        D > 0, of the set.
    grad_bound : float
        G > 0 with ‖g_t‖ <= G.
    strong : float, optional
        λ > 0. Default: losses that are only convex.
    projection : callable, optional
        Nearest point of the set for vectors (..., n). Default: the whole space.

    Raises
    ------
    ArgumentError
        If a constant is not positive.

    References
    ----------
    M. Zinkevich (2003), ICML. E. Hazan, A. Agarwal, S. Kale (2007), Mach. Learn. 69.
    """

    diameter: float
    grad_bound: float
    strong: float | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        check_positive("diameter", self.diameter)
        check_positive("grad_bound", self.grad_bound)
        if self.strong is not None:
            check_positive("strong", self.strong)

    def init(self, start: Tensor) -> BaselineState:
        """Begin at the point of the set nearest to ``start``.

        Parameters
        ----------
        start : Tensor, shape (..., n)
            Any points.

        Returns
        -------
        BaselineState
            Round 1.
        """
        counts = _no_rounds(start)
        return BaselineState(_onto(self.projection, start), counts, counts)

    def round(self, state: BaselineState, grad: Tensor) -> BaselineState:
        """Take g_t at ``state.play``.

        Parameters
        ----------
        state : BaselineState
            Of round t.
        grad : Tensor, shape (..., n)
            g_t.

        Returns
        -------
        BaselineState
            Of round t + 1.
        """
        t = (state.num_rounds + 1).to(torch.float64)
        eta = self.diameter / (self.grad_bound * t.sqrt()) if self.strong is None else 1 / (self.strong * t)
        play = _onto(self.projection, state.play - eta.to(grad.dtype).unsqueeze(-1) * grad)
        return BaselineState(play, state.memory, state.num_rounds + 1)


@dataclass(frozen=True, slots=True, eq=False)
class AdaGradNorm:
    """x_{t+1} = P(x_t - η_t g_t), η_t = D / √(2 Σ_{s<=t} ‖g_s‖²): no G is needed, and regret √2 D √(Σ ‖g_s‖²).

    Parameters
    ----------
    diameter : float
        D > 0, of the set.
    projection : callable, optional
        Nearest point of the set for vectors (..., n). Default: the whole space.

    Raises
    ------
    ArgumentError
        If the diameter is not positive.

    References
    ----------
    M. Streeter, H. B. McMahan (2010), arXiv 1002.4862.
    """

    diameter: float
    projection: Projection | None = None

    def __post_init__(self) -> None:
        check_positive("diameter", self.diameter)

    def init(self, start: Tensor) -> BaselineState:
        """Begin at the point of the set nearest to ``start``.

        Parameters
        ----------
        start : Tensor, shape (..., n)
            Any points.

        Returns
        -------
        BaselineState
            Round 1.
        """
        squares = start.new_zeros(start.shape[:-1], dtype=torch.float64)
        return BaselineState(_onto(self.projection, start), squares, _no_rounds(start))

    def round(self, state: BaselineState, grad: Tensor) -> BaselineState:
        """Take g_t at ``state.play``.

        Parameters
        ----------
        state : BaselineState
            Of round t.
        grad : Tensor, shape (..., n)
            g_t.

        Returns
        -------
        BaselineState
            Of round t + 1.
        """
        squares = state.memory + grad.to(torch.float64).square().sum(-1)
        # all gradients zero so far: no step, whatever its size
        eta = self.diameter / torch.where(squares > 0, 2 * squares, 1.0).sqrt()
        play = _onto(self.projection, state.play - eta.to(grad.dtype).unsqueeze(-1) * grad)
        return BaselineState(play, squares, state.num_rounds + 1)


@dataclass(frozen=True, slots=True, eq=False)
class ONS:
    """Online Newton step: x_{t+1} = argmin over X in the norm of A_t of ‖x - (x_t - A_t⁻¹g_t/β)‖.

    A_t = I/(βD)² + Σ_{s<=t} g_s g_sᵀ,   β = ½ min(1/(4GD), α)

    Parameters
    ----------
    diameter, grad_bound : float
        D of the set and G of the gradients, > 0.
    exp_concavity : float
        α > 0 for which exp(-α f_t) is concave.
    projection : callable, optional
        Nearest point of the set, in the Euclidean norm, for vectors (..., n). Default: the whole space.

    Raises
    ------
    ArgumentError
        If a constant is not positive.

    References
    ----------
    E. Hazan, A. Agarwal, S. Kale (2007), Mach. Learn. 69.
    """

    diameter: float
    grad_bound: float
    exp_concavity: float
    projection: Projection | None = None

    def __post_init__(self) -> None:
        check_positive("diameter", self.diameter)
        check_positive("grad_bound", self.grad_bound)
        check_positive("exp_concavity", self.exp_concavity)

    @property
    def beta(self) -> float:
        """β = ½ min(1/(4GD), α)."""
        return newton_beta(self.diameter, self.grad_bound, self.exp_concavity)

    def init(self, start: Tensor) -> BaselineState:
        """Begin at the point of the set nearest to ``start``.

        Parameters
        ----------
        start : Tensor, shape (..., n)
            Any points.

        Returns
        -------
        BaselineState
            Round 1.
        """
        n = start.shape[-1]
        eye = torch.eye(n, dtype=start.dtype, device=start.device) / (self.beta * self.diameter) ** 2
        return BaselineState(_onto(self.projection, start), eye.expand(*start.shape, n), _no_rounds(start))

    def round(self, state: BaselineState, grad: Tensor) -> BaselineState:
        """Take g_t at ``state.play``. O(n³).

        Parameters
        ----------
        state : BaselineState
            Of round t.
        grad : Tensor, shape (..., n)
            g_t.

        Returns
        -------
        BaselineState
            Of round t + 1.
        """
        metric = state.memory + grad.unsqueeze(-1) * grad.unsqueeze(-2)
        moved = state.play - torch.linalg.solve(metric, grad) / self.beta
        return BaselineState(metric_projection(metric, moved, self.projection), metric, state.num_rounds + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Hedge:
    """Exponential weights on the simplex: x_t ∝ exp(-ε_t Σ_{s<t} g_s), ε_t = √(8 ln n / t) / range.

    Parameters
    ----------
    loss_range : float
        > 0, the largest difference between two entries of a loss vector.

    Raises
    ------
    ArgumentError
        If the range is not positive.

    References
    ----------
    Y. Freund, R. Schapire (1997), J. Comput. Syst. Sci. 55. N. Cesa-Bianchi, G. Lugosi (2006), Prediction, Learning,
    and Games, Theorem 2.3, for the step that needs no horizon.
    """

    loss_range: float

    def __post_init__(self) -> None:
        check_positive("loss_range", self.loss_range)

    def init(self, start: Tensor) -> BaselineState:
        """Begin at 1/n.

        Parameters
        ----------
        start : Tensor, shape (..., n)
            Only its shape, dtype and device matter.

        Returns
        -------
        BaselineState
            Round 1.
        """
        n = start.shape[-1]
        return BaselineState(
            torch.full_like(start, 1 / n), torch.zeros_like(start, dtype=torch.float64), _no_rounds(start)
        )

    def round(self, state: BaselineState, grad: Tensor) -> BaselineState:
        """Take the vector of losses, which is the gradient.

        Parameters
        ----------
        state : BaselineState
            Of round t.
        grad : Tensor, shape (..., n)
            Losses of the n experts.

        Returns
        -------
        BaselineState
            Of round t + 1.
        """
        losses, num_rounds = state.memory + grad, state.num_rounds + 1
        n = grad.shape[-1]
        rate = (8 * math.log(n) / (num_rounds + 1).to(torch.float64)).sqrt() / self.loss_range
        play = torch.softmax(-rate.unsqueeze(-1) * losses, dim=-1).to(state.play.dtype)
        return BaselineState(play, losses, num_rounds)


def _onto(projection: Projection | None, point: Tensor) -> Tensor:
    return point if projection is None else projection(point)


def _no_rounds(start: Tensor) -> Tensor:
    return start.new_zeros(start.shape[:-1], dtype=torch.int64)
