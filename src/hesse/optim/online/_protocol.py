"""What the online optimisers share: the protocol of play and step, groups as flat vectors, checks, saved state."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

from hesse.errors import ArgumentError, ArgumentTypeError, HesseError, NumericalError, ShapeError
from hesse.optim.online.rounds import OOMDRules

__all__ = ["Hint", "PlayedOptimizer", "check_hint", "flat_point"]

Hint: TypeAlias = Literal["last"] | Callable[[Tensor, int], Tensor]

_CALLABLES = ("projection", "prox", "hint")  # of a group; not part of a saved state


class PlayedOptimizer(Optimizer, ABC):
    """play() puts x_t in the parameters, step() takes the gradient there; a group is one vector (n,)."""

    _state_type: Any

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters as a player of their own, whose round 1 is the next one.

        Parameters
        ----------
        param_group : dict
            "params", and any hyper-parameter that shall differ from the defaults.

        Raises
        ------
        ArgumentError
            If a hyper-parameter is out of range, the group is empty, or a projection moves its own results.
        ArgumentTypeError
            If a parameter is not a real floating tensor.
        ShapeError
            If the tensors of the group differ in dtype or device, or a projection changes their shape.
        """
        super().add_param_group(param_group)
        group = self.param_groups.pop()  # back in its place when it has passed
        _check_params(type(self).__name__, group["params"])
        try:
            rules = self._rules(group)
            _check_projection(rules, flat_point(group["params"]))
            self._begin(rules, group, self.state[group["params"][0]])
        except HesseError as error:
            self.state.pop(group["params"][0], None)
            raise type(error)(f"{type(self).__name__}: {error}") from error
        self.param_groups.append(group)

    @torch.no_grad()
    def play(self) -> None:
        """Put x_t in the parameters; then compute a loss there, call ``backward`` and `step`.

        Twice before a step it asks for the hints anew. What was in the parameters is overwritten.

        Raises
        ------
        ShapeError
            If a hint has another shape than the group's flat gradient.
        NumericalError
            If a hint has NaN or Inf.
        """
        played = [self._after_play(group) for group in self.param_groups]
        for group, found in zip(self.param_groups, played, strict=True):
            state = self.state[group["params"][0]]
            state.update(found._asdict())
            state["waiting"] = True
            pieces = found.play.split([p.numel() for p in group["params"]])
            for p, piece in zip(group["params"], pieces, strict=True):
                p.copy_(piece.reshape(p.shape))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take the gradient at the point played; the parameters stay there until the next `play`.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss anew and returns it, after ``zero_grad`` and with ``backward``; called once, after `play`
            where that has not been called: the whole round in one call.

        Returns
        -------
        float or Tensor, optional
            What the closure returned.

        Raises
        ------
        ArgumentError
            Without a closure, if `play` was not called since the last step.
        ArgumentTypeError
            If a gradient is a sparse tensor.
        NumericalError
            If a gradient has NaN or Inf; the state is as it was, and another gradient at the same point is welcome.

        Warns
        -----
        UserWarning
            Once a group, if a gradient exceeds ``grad_bound``: the regret bound no longer holds as stated.
        """
        waiting = all(self.state[group["params"][0]]["waiting"] for group in self.param_groups)
        loss = None
        if closure is not None:
            if not waiting:
                self.play()
            with torch.enable_grad():
                loss = closure()
        elif not waiting:
            raise ArgumentError(
                f"{type(self).__name__}.step: no point is in play; call play(), then backward() of the loss there, "
                "then step() once"
            )
        grads = [self._gradient(number, group) for number, group in enumerate(self.param_groups)]
        states = [self.state[group["params"][0]] for group in self.param_groups]
        # all groups learn before any state is touched: what one of them raises leaves the others as they were
        learnt = [
            self._learnt(self._rules(group), state, grad)
            for group, state, grad in zip(self.param_groups, states, grads, strict=True)
        ]
        for state, grad, entries in zip(states, grads, learnt, strict=True):
            state.update(entries, waiting=False, last=grad, t=state["t"] + 1)
            state["mean_play"].add_(state["play"] - state["mean_play"], alpha=1 / state["t"])
        for number, (group, state, grad) in enumerate(zip(self.param_groups, states, grads, strict=True)):
            self._watch_bound(number, group, state, grad)
        return loss

    def average(self) -> list[list[Tensor]]:
        """Average the points played so far: online-to-batch, for losses drawn from one distribution.

        Its expected excess risk is at most the expected regret divided by the number of rounds.

        Returns
        -------
        list of list of Tensor
            A list for each group, with one tensor for each parameter, in its shape and dtype.

        Raises
        ------
        ArgumentError
            Before the first step.
        """
        averages = []
        for group in self.param_groups:
            state = self.state[group["params"][0]]
            if state["t"] == 0:
                raise ArgumentError(f"{type(self).__name__}.average: nothing has been played yet")
            pieces = state["mean_play"].split([p.numel() for p in group["params"]])
            averages.append(
                [piece.reshape(p.shape).to(p.dtype) for p, piece in zip(group["params"], pieces, strict=True)]
            )
        return averages

    def state_dict(self) -> StateDict:
        """Gather all that the next rounds depend on, but for the callables ``projection``, ``prox`` and ``hint``.

        Returns
        -------
        dict
            Tensors and numbers.
        """
        gathered = super().state_dict()
        for group in gathered["param_groups"]:
            for name in _CALLABLES:
                group.pop(name, None)
        return gathered

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Go on where another optimiser of this class was; the next rounds are its own, bit by bit.

        Parameters
        ----------
        state_dict : dict
            From ``state_dict``; its tensors are copied. Callables stay those of this optimiser.

        Raises
        ------
        ShapeError
            If a group has another number of coordinates.
        ValueError
            From torch, if the groups are others.
        """
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            kept = state_dict["state"].get(saved["params"][0], {}) if saved["params"] else {}
            size = sum(p.numel() for p in group["params"])
            if "play" in kept and kept["play"].shape != (size,):
                raise ShapeError(
                    f"{type(self).__name__}.load_state_dict: a point of {kept['play'].numel()} coordinates for a "
                    f"group of {size}"
                )
        callables = [{name: group[name] for name in _CALLABLES if name in group} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, saved, own in zip(self.param_groups, state_dict["param_groups"], callables, strict=True):
            group.update(own)
            # torch casts state to the dtype of the parameter; the sums are float64 for a reason
            first = group["params"][0]
            for name, value in state_dict["state"].get(saved["params"][0], {}).items():
                kept = value.detach().to(first.device, copy=True) if isinstance(value, Tensor) else value
                self.state[first][name] = kept

    def _after_play(self, group: dict[str, Any]) -> Any:
        state = self.state[group["params"][0]]
        hint: Tensor = state["last"]
        forecast: Hint = group["hint"]
        if forecast != "last":
            hint = forecast(hint.clone(), state["t"] + 1)
            if hint.shape != state["last"].shape:
                raise ShapeError(
                    f"{type(self).__name__}.play: hint returned shape {tuple(hint.shape)} for a group of "
                    f"{state['last'].numel()} coordinates"
                )
            if not bool(torch.isfinite(hint).all()):
                raise NumericalError(f"{type(self).__name__}.play: hint returned NaN or Inf")
            hint = hint.detach().to(state["last"])
        return self._played(self._rules(group), self._held(state), hint)

    def _gradient(self, number: int, group: dict[str, Any]) -> Tensor:
        pieces = []
        for i, p in enumerate(group["params"]):
            if p.grad is not None and p.grad.layout != torch.strided:
                raise ArgumentTypeError(
                    f"{type(self).__name__}.step: the gradient of parameter {i} of group {number} is a sparse tensor"
                )
            pieces.append((torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1))
        flat = torch.cat(pieces).to(self.state[group["params"][0]]["play"].dtype)
        if not bool(torch.isfinite(flat).all()):
            bad = [str(i) for i, piece in enumerate(pieces) if not bool(torch.isfinite(piece).all())]
            raise NumericalError(
                f"{type(self).__name__}.step: the gradient of parameter {', '.join(bad)} of group {number} has NaN or "
                "Inf; the state is as it was"
            )
        return flat

    def _watch_bound(self, number: int, group: dict[str, Any], state: dict[str, Any], grad: Tensor) -> None:
        bound = group["grad_bound"]
        if bound is None or state["exceeded"]:
            return
        order = math.inf if group.get("geometry") == "entropic" else 2
        size = float(torch.linalg.vector_norm(grad, order))
        if size > bound * (1 + 1e-6):  # a gradient on the bound is fine, whatever its last bit
            state["exceeded"] = True
            warnings.warn(
                f"{type(self).__name__}: a gradient of norm {size:.4g} exceeds grad_bound={bound:g} of group {number}; "
                "the regret bound does not hold for it. Raise grad_bound, or scale the loss",
                UserWarning,
                stacklevel=4,
            )

    def _start(self, state: dict[str, Any], held: Any) -> None:
        state.update(held._asdict())
        zeros = torch.zeros_like(held.play)
        state.update(waiting=False, exceeded=False, t=0, last=zeros, mean_play=zeros.to(torch.float64))

    def _held(self, state: dict[str, Any]) -> Any:
        return self._state_type(**{name: state[name] for name in self._state_type._fields})

    @abstractmethod
    def _rules(self, group: dict[str, Any]) -> OOMDRules:
        """Gather a group's constants, checked."""

    @abstractmethod
    def _begin(self, rules: OOMDRules, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Fill the state of a new group."""

    @abstractmethod
    def _played(self, rules: OOMDRules, held: Any, hint: Tensor) -> Any:
        """Give the state with x_t for a hint in it."""

    @abstractmethod
    def _learnt(self, rules: OOMDRules, state: dict[str, Any], grad: Tensor) -> dict[str, Any]:
        """Give the entries of the state that change with g_t."""


def flat_point(params: list[Tensor]) -> Tensor:
    """Join parameters in one vector, float32 at least: half precision is too coarse for steps that shrink.

    Parameters
    ----------
    params : list of Tensor
        Of one group.

    Returns
    -------
    Tensor, shape (n,)
        A copy, without a graph.
    """
    dtype = torch.promote_types(params[0].dtype, torch.float32)
    return torch.cat([p.detach().reshape(-1) for p in params]).to(dtype)


def _check_params(name: str, params: list[Tensor]) -> None:
    if not params:
        raise ArgumentError(f"{name}: a group has no parameters")
    first = params[0]
    for i, p in enumerate(params):
        if not p.is_floating_point():
            raise ArgumentTypeError(f"{name}: parameter {i} must be a real floating tensor, got {p.dtype}")
        if p.dtype != first.dtype or p.device != first.device:
            raise ShapeError(
                f"{name}: parameter {i} is {p.dtype} on {p.device}, others of its group {first.dtype} on "
                f"{first.device}; give it a group of its own"
            )


def check_hint(hint: Hint) -> None:
    """Refuse what is neither "last" nor callable.

    Parameters
    ----------
    hint : "last" or callable
        Of a group.

    Raises
    ------
    ArgumentError
        If it is something else.
    """
    if hint != "last" and not callable(hint):
        raise ArgumentError(f"hint must be 'last' or a callable, got {hint!r}")


def _check_projection(rules: OOMDRules, point: Tensor) -> None:
    # twice is once, for points on either side of the set
    if rules.projection is None:
        return
    away = 2 * rules.diameter * torch.ones_like(point) / point.numel() ** 0.5
    for probe in (point + away, point - away):
        once = rules.projection(probe)
        if once.shape != probe.shape:
            raise ShapeError(f"projection maps shape {tuple(probe.shape)} to {tuple(once.shape)}")
        gap = float((rules.projection(once) - once).abs().max())
        if not gap <= 1e-4 * rules.diameter:
            raise ArgumentError(
                f"projection is none: applied twice it moves a point by {gap:.3g} from where it was once"
            )
