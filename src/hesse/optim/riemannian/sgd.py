"""SGD with momentum for networks that hold subspaces beside ordinary parameters."""

import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import GrassmannParameter
from hesse.optim.riemannian._base import SubspaceOptimizer
from hesse.optim.riemannian.geodesic import Retraction, check_options, retract, tangent_, watch

__all__ = ["RiemannianSGD"]

Manifold = Literal["grassmann", "euclidean"]
Transport = Literal["project", "none"]
_CALL = "RiemannianSGD"


class RiemannianSGD(SubspaceOptimizer):
    """Each subspace S steps along a geodesic, B ← (I - SSᵀ)(mu B + G), S ← exp_S(-lr B); the rest is SGD.

    Subspaces are the parameters that are a `hesse.linalg.GrassmannParameter`, such as the weight of
    `hesse.nn.GrassmannLinear`; ordinary parameters in the same call get ``torch.optim.SGD``'s very step. Weight decay
    has no meaning for a subspace and is left out there.

    Parameters
    ----------
    params : iterable
        Parameters or groups; every option below may differ by group.
    lr : float
        Step size, shared by both kinds.
    momentum : float, default 0.9
        mu in [0, 1), the paper's.
    weight_decay : float, default 0
        Of the ordinary parameters.
    manifold : {"grassmann", "euclidean"}, default "grassmann"
        Geometry of the subspaces. "euclidean" is what the geometry is compared with: a step S - lr B in the space of
        matrices, and QR after it.
    retraction : {"exp", "qr"}, default "exp"
        The geodesic, or QR of S - lr B, which differs from it by O(lr³).
    transport : {"project", "none"}, default "project"
        "none" keeps the buffer as the sum of Euclidean gradients, as the paper's authors do, and projects it for the
        step alone. The two are not equivalent: the parts of old gradients that lay along the old S come back as S
        turns, and damp the motion. With "none" large steps are unstable, and small ones are not accelerated; with
        "project" momentum is the heavy ball's.
    reorthonormalize : int, default 5
        Steps between QR factorisations that undo rounding; 0: none. The same steps begin with a check that S is on the
        manifold.
    lr_factor : float, default 1
        Factor on ``lr`` for subspaces.
    maximize : bool, default False
        Climb.
    foreach : bool, optional
        As for ``torch.optim.SGD``; the subspaces of one parameter always move together.

    Raises
    ------
    ArgumentError
        If an option is out of range.

    Notes
    -----
    O(D K²) a subspace and step, and a buffer of the size of the parameters. A subspace whose gradient has NaN or Inf
    sits out the step; the third such step in a row raises.

    References
    ----------
    H. Wang, Z. Li, W. Zhang (2023), ICCV, arXiv 2308.01547. A. Edelman, T. Arias, S. Smith (1998), SIAM J. Matrix
    Anal. Appl. 20(2).

    Examples
    --------
    The leading eigenvector of a matrix:

    >>> A = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
    >>> S = GrassmannParameter(torch.full((3, 1), 3**-0.5))
    >>> optimizer = RiemannianSGD([S], lr=0.1, momentum=0.5, maximize=True)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     (S.mT @ A @ S).trace().backward()
    ...     optimizer.step()
    >>> round(float(S[2, 0].detach()), 4)
    1.0
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        manifold: Manifold = "grassmann",
        retraction: Retraction = "exp",
        transport: Transport = "project",
        reorthonormalize: int = 5,
        lr_factor: float = 1.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "manifold": manifold,
            "retraction": retraction,
            "transport": transport,
            "reorthonormalize": reorthonormalize,
            "lr_factor": lr_factor,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)
        if weight_decay > 0 and all(_only_subspaces(group["params"]) for group in self.param_groups):
            _warn_of_decay()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own.

        Parameters
        ----------
        param_group : dict
            "params", and any option that shall differ from the defaults. A ``weight_decay`` given to subspaces alone
            is ignored, with a warning.

        Raises
        ------
        ArgumentError
            If an option is out of range; nothing is added then.
        """
        options = {**self.defaults, **param_group}
        check_options(_CALL, options, ("momentum",))
        for name, allowed in (("manifold", get_args(Manifold)), ("transport", get_args(Transport))):
            if options[name] not in allowed:
                raise ArgumentError(f"{_CALL}: {name} must be one of {allowed}, got {options[name]!r}")
        decayed = param_group.get("weight_decay", 0) > 0  # asked for: torch is about to fill in the default
        super().add_param_group(param_group)
        if decayed and _only_subspaces(self.param_groups[-1]["params"]):
            _warn_of_decay()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` returned.

        Raises
        ------
        ShapeError
            If a momentum buffer does not fit its parameter; nothing is loaded then.
        """
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        here = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(saved, here, strict=False):  # torch itself refuses other numbers of parameters
            buffer = state_dict["state"].get(number, {}).get("momentum_buffer")
            if buffer is not None and buffer.shape != p.shape:
                raise ShapeError(
                    f"{_CALL}: the momentum buffer of parameter {number} has shape {tuple(buffer.shape)}, the "
                    f"parameter {tuple(p.shape)}: the state belongs to another model"
                )
        super().load_state_dict(state_dict)

    def _move_ordinary(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        buffers: list[Tensor | None] = [self.state[p].get("momentum_buffer") for p in parameters]
        sgd(
            parameters,
            gradients,
            buffers,
            foreach=group["foreach"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=group["maximize"],
        )
        if group["momentum"] > 0:
            for p, buffer in zip(parameters, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def _move_subspaces(self, group: dict[str, Any], S: Tensor, state: dict[str, Any]) -> None:
        G = S.grad
        if G is None:
            return
        usable, tidy = watch(_CALL, S, G, state, group["reorthonormalize"])
        if usable is not None:
            G = torch.where(usable, G, 0.0)
        B = G
        if group["momentum"] > 0:
            buffer = state.setdefault("momentum_buffer", torch.zeros_like(S))
            factor = group["momentum"] if usable is None else 1 - (1 - group["momentum"]) * usable.to(S.dtype)
            B = buffer.mul_(factor).add_(G)
        step = B
        if group["manifold"] == "grassmann":
            kept = group["momentum"] > 0 and group["transport"] == "project"
            step = tangent_(S, B if kept else B.clone())
        if usable is not None:
            step = step * usable
        t = group["lr"] * group["lr_factor"] * (1 if group["maximize"] else -1)
        retraction = group["retraction"] if group["manifold"] == "grassmann" else "qr"
        retract(S, step, t, retraction, tidy=tidy, live=state["live"])


def _only_subspaces(parameters: list[Tensor]) -> bool:
    return all(isinstance(p, GrassmannParameter) for p in parameters)


def _warn_of_decay() -> None:
    warnings.warn(f"{_CALL}: weight_decay has no meaning for subspaces and is ignored", stacklevel=3)
