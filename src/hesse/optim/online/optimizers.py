"""Optimistic online mirror descent as torch optimisers: play a point, see a loss, step; one gradient a round.

The rounds themselves are pure functions, in `rounds` and `dynamic`; here they meet parameters and groups.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hesse.optim.online._protocol import Hint, PlayedOptimizer, check_hint, flat_point
from hesse.optim.online.dynamic import DynamicState, dynamic_init, dynamic_play, dynamic_update
from hesse.optim.online.rounds import (
    Geometry,
    OOMDRules,
    OOMDState,
    Projection,
    Prox,
    oomd_init,
    oomd_play,
    oomd_update,
)

__all__ = ["DynamicOMD", "OptimisticOMD"]

_FIRST_EPOCH = 64  # rounds before the first doubling, where the horizon is not known


class OptimisticOMD(PlayedOptimizer):
    """Optimistic online mirror descent: little regret where losses vary little, O(√T) where they do not.

    ``opt.play(); opt.zero_grad(); loss(...).backward(); opt.step()`` is one round. Each parameter group is one player,
    whose point is all its parameters in one vector (n,); the first point is the one of the set nearest to the
    parameters as they are.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor), or of dict
        As of any torch optimiser. The tensors of a group share dtype and device.
    diameter : float
        D > 0 of the set X, in the units of the parameters; without a set, twice the distance to be covered.
    grad_bound : float, optional
        G > 0 with ‖g_t‖ <= G (‖·‖_∞ for "entropic"). Default: the largest gradient so far; "exp-concave" needs it.
    smoothness : float, optional
        L >= 0 of the expected losses. Default: 0, which leaves the first steps uncapped.
    geometry : {"convex", "strongly-convex", "exp-concave", "entropic"}, default "convex"
        Which steps: `OOMDRules` has the formulas.
    strong : float, optional
        λ > 0, for "strongly-convex" only.
    exp_concavity : float, optional
        α > 0, for "exp-concave" only.
    projection : callable, optional
        Nearest point of X for a vector (n,), from `hesse.linalg`. Default: the whole space ("entropic": the simplex).
    prox : callable, optional
        In place of ``projection``, for a fixed part of the losses: see `OOMDRules`.
    hint : "last" or callable, default "last"
        M_t. ``hint(last_gradient, t)`` -> (n,), called by `play`: a forecast of the gradient at the point about to be
        played. The last gradient is right where gradients change slowly; zeros give plain mirror descent.

    Raises
    ------
    ArgumentError
        If a constant is out of range, missing or of another geometry, or a projection moves its own results.
    ArgumentTypeError
        If a parameter is not a real floating tensor.
    ShapeError
        If the tensors of a group differ in dtype or device.

    Notes
    -----
    Regret against the best fixed point: about 5√2 D √(σ²) + 5 D √(Σ²) + O(D²L + DG) for "convex", with σ² the summed
    variance and Σ² the summed variation of the gradients; the constants are those of the analysis, not tight. Where
    gradients turn round every time, the wrong hint costs a few times what plain gradient descent has. A parameter
    without a gradient has the gradient zero. Two more vectors than SGD; "exp-concave" O(n²) numbers. For parameters in
    half precision the state is float32.

    References
    ----------
    S. Chen, Y.-J. Zhang, W.-W. Tu, P. Zhao, L. Zhang (2024), JMLR, arXiv 2302.04552.

    Examples
    --------
    >>> from hesse.linalg import Ball
    >>> w = torch.zeros(2, requires_grad=True)
    >>> optimizer = OptimisticOMD([w], diameter=2.0, projection=Ball(1.0))
    >>> for _ in range(3):
    ...     optimizer.play()
    ...     optimizer.zero_grad()
    ...     w.sum().backward()
    ...     optimizer.step()
    >>> w.detach()
    tensor([-0.7071, -0.7071])
    """

    _state_type = OOMDState

    def __init__(
        self,
        params: ParamsT,
        *,
        diameter: float,
        grad_bound: float | None = None,
        smoothness: float | None = None,
        geometry: Geometry = "convex",
        strong: float | None = None,
        exp_concavity: float | None = None,
        projection: Projection | None = None,
        prox: Prox | None = None,
        hint: Hint = "last",
    ) -> None:
        defaults = {
            "diameter": diameter,
            "grad_bound": grad_bound,
            "smoothness": smoothness,
            "geometry": geometry,
            "strong": strong,
            "exp_concavity": exp_concavity,
            "projection": projection,
            "prox": prox,
            "hint": hint,
        }
        super().__init__(params, defaults)

    def _rules(self, group: dict[str, Any]) -> OOMDRules:
        check_hint(group["hint"])
        names = ("diameter", "grad_bound", "smoothness", "geometry", "strong", "exp_concavity", "projection", "prox")
        return OOMDRules(**{name: group[name] for name in names})

    def _begin(self, rules: OOMDRules, group: dict[str, Any], state: dict[str, Any]) -> None:
        self._start(state, oomd_init(rules, flat_point(group["params"])))

    def _played(self, rules: OOMDRules, held: OOMDState, hint: Tensor) -> OOMDState:
        return oomd_play(rules, held, hint)

    def _learnt(self, rules: OOMDRules, state: dict[str, Any], grad: Tensor) -> dict[str, Any]:
        return oomd_update(rules, self._held(state), grad)._asdict()


class DynamicOMD(PlayedOptimizer):
    """Optimistic mirror descent for a target that moves: an ensemble of step sizes, one gradient a round.

    The protocol is that of `OptimisticOMD`; `dynamic` has the formulas.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor), or of dict
        As of any torch optimiser. Each group is one player; its tensors share dtype and device.
    diameter : float
        D > 0 of the set X, in the units of the parameters.
    grad_bound : float
        G > 0 with ‖g_t‖ <= G. Unlike for one player it is needed: the pool of step sizes hangs on it. Where a gradient
        exceeds it, the pool of the next epoch is made for that gradient.
    smoothness : float, default 0.0
        L >= 0 of the expected losses; 0 for linear ones. It caps the steps at 1/(8L) and charges players for moving.
    projection : callable, optional
        Nearest point of X for vectors (..., n), in the last dimension. Default: the whole space.
    hint : "last" or callable, default "last"
        M_t, as of `OptimisticOMD`.
    horizon : int, optional
        T, the number of rounds. Default: not known; then epochs of 64, 128, 256, ... rounds, each beginning at the
        last point, with its own pool and equal weights. After ``horizon`` rounds the same happens.

    Raises
    ------
    ArgumentError
        If a constant is out of range or missing, or a projection moves its own results.
    ArgumentTypeError
        If a parameter is not a real floating tensor.
    ShapeError
        If the tensors of a group differ in dtype or device.

    Notes
    -----
    O(nN) numbers and time, N about ½ log₂ T + 2, and 2N projections a round. Worth it where the target moves and the
    gradients are noisy; where it stands still, `OptimisticOMD` loses less, by a constant.

    References
    ----------
    S. Chen, Y.-J. Zhang, W.-W. Tu, P. Zhao, L. Zhang (2024), JMLR, arXiv 2302.04552. P. Zhao, Y.-J. Zhang, L. Zhang,
    Z.-H. Zhou (2024), JMLR, arXiv 2112.14368.
    """

    _state_type = DynamicState

    def __init__(
        self,
        params: ParamsT,
        *,
        diameter: float,
        grad_bound: float,
        smoothness: float = 0.0,
        projection: Projection | None = None,
        hint: Hint = "last",
        horizon: int | None = None,
    ) -> None:
        defaults = {
            "diameter": diameter,
            "grad_bound": grad_bound,
            "smoothness": smoothness,
            "projection": projection,
            "hint": hint,
            "horizon": horizon,
        }
        super().__init__(params, defaults)

    @property
    def weights(self) -> list[Tensor]:
        """p_t, one tensor (N,) for each group; N changes with the epoch."""
        return [self.state[group["params"][0]]["weights"].clone() for group in self.param_groups]

    @property
    def step_sizes(self) -> list[Tensor]:
        """η_i, one tensor (N,) for each group, rising."""
        return [self.state[group["params"][0]]["steps"].clone() for group in self.param_groups]

    @property
    def horizon(self) -> list[int]:
        """Rounds that the present epoch of each group is made for."""
        return [self.state[group["params"][0]]["epoch_rounds"] for group in self.param_groups]

    def _rules(self, group: dict[str, Any]) -> OOMDRules:
        check_hint(group["hint"])
        return OOMDRules(
            diameter=group["diameter"],
            grad_bound=group["grad_bound"],
            smoothness=group["smoothness"],
            projection=group["projection"],
        )

    def _begin(self, rules: OOMDRules, group: dict[str, Any], state: dict[str, Any]) -> None:
        rounds = _FIRST_EPOCH if group["horizon"] is None else group["horizon"]
        self._start(state, dynamic_init(rules, flat_point(group["params"]), rounds))
        state.update(epoch_rounds=rounds, epoch_end=rounds, largest=float(group["grad_bound"]))

    def _played(self, rules: OOMDRules, held: DynamicState, hint: Tensor) -> DynamicState:
        return dynamic_play(rules, held, hint)

    def _learnt(self, rules: OOMDRules, state: dict[str, Any], grad: Tensor) -> dict[str, Any]:
        held = dynamic_update(rules, self._held(state), grad)
        largest = max(state["largest"], float(torch.linalg.vector_norm(grad)))
        if state["t"] + 1 < state["epoch_end"]:
            return {**held._asdict(), "largest": largest}
        rounds = 2 * state["epoch_rounds"]
        held = dynamic_init(replace(rules, grad_bound=largest), held.play, rounds)
        epoch = {"epoch_rounds": rounds, "epoch_end": state["epoch_end"] + rounds}
        return {**held._asdict(), "largest": largest, **epoch}
