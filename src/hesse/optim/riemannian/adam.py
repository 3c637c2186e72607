"""AdamW for networks that hold subspaces beside ordinary parameters."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from hesse.errors import ArgumentError
from hesse.optim.riemannian._base import SubspaceOptimizer
from hesse.optim.riemannian.geodesic import Retraction, check_options, retract, tangent_, watch

__all__ = ["RiemannianAdam"]

_CALL = "RiemannianAdam"


class RiemannianAdam(SubspaceOptimizer):
    """Each subspace steps along the geodesic of its averaged tangent, scaled by its averaged length; the rest is AdamW.

    With H = (I - SSᵀ) G: M ← β₁ (I - SSᵀ) M + (1 - β₁) H, v ← β₂ v + (1 - β₂) ‖H‖², S ← exp_S(-lr M̂/(√v̂ + eps)),
    hats for Adam's correction of the start. One v a subspace: scaling entries each on their own would depend on the
    basis. The first step of a subspace is ``lr`` radians long.

    Parameters
    ----------
    params : iterable
        Parameters or groups; every option below may differ by group. Subspaces are told as in `RiemannianSGD`.
    lr : float, default 1e-3
        Step size, shared by both kinds.
    betas : (float, float), default (0.9, 0.999)
        Of the two averages, in [0, 1); Adam's.
    eps : float, default 1e-8
        Adam's, >= 0.
    weight_decay : float, default 0
        Decoupled, of the ordinary parameters.
    retraction : {"exp", "qr"}, default "exp"
        As in `RiemannianSGD`.
    reorthonormalize : int, default 5
        As in `RiemannianSGD`.
    lr_factor : float, default 1
        Factor on ``lr`` for subspaces.
    maximize : bool, default False
        Climb.
    foreach : bool, optional
        As for ``torch.optim.AdamW``.

    Raises
    ------
    ArgumentError
        If an option is out of range.

    References
    ----------
    G. Bécigneul, O.-E. Ganea (2019), ICLR, arXiv 1810.00760: one adaptive factor for each manifold of a product.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        retraction: Retraction = "exp",
        reorthonormalize: int = 5,
        lr_factor: float = 1.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "retraction": retraction,
            "reorthonormalize": reorthonormalize,
            "lr_factor": lr_factor,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own.

        Parameters
        ----------
        param_group : dict
            "params", and any option that shall differ from the defaults.

        Raises
        ------
        ArgumentError
            If an option is out of range; nothing is added then.
        """
        options = {**self.defaults, **param_group}
        check_options(_CALL, options, ())
        if not (math.isfinite(options["eps"]) and options["eps"] >= 0):
            raise ArgumentError(f"{_CALL}: expected a finite eps >= 0, got {options['eps']}")
        if not all(0 <= beta < 1 for beta in options["betas"]):
            raise ArgumentError(f"{_CALL}: expected betas in [0, 1), got {options['betas']}")
        super().add_param_group(param_group)

    def _move_ordinary(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                )
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _move_subspaces(self, group: dict[str, Any], S: Tensor, state: dict[str, Any]) -> None:
        G = S.grad
        if G is None:
            return
        usable, tidy = watch(_CALL, S, G, state, group["reorthonormalize"])
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(S)
            state["exp_avg_sq"] = S.new_zeros((*S.shape[:-2], 1, 1))
            state["moves"] = S.new_zeros((*S.shape[:-2], 1, 1))
        mean, square, moves = state["exp_avg"], state["exp_avg_sq"], state["moves"]
        used = torch.ones_like(moves) if usable is None else usable.to(moves)
        H = tangent_(S, G.clone() if usable is None else torch.where(usable, G, 0.0))
        beta1, beta2 = group["betas"]
        # where a subspace sits out, the factors are one and the averages stay
        tangent_(S, mean).lerp_(H, (1 - beta1) * used)
        square.lerp_(H.square().sum((-2, -1), keepdim=True), (1 - beta2) * used)
        moves.add_(used)
        start1, start2 = 1 - beta1**moves, 1 - beta2**moves
        step = torch.where(used > 0, mean / start1 / ((square / start2).sqrt() + group["eps"]), 0.0)
        step = torch.nan_to_num(step, nan=0.0)  # a gradient that was always zero, with eps = 0
        t = group["lr"] * group["lr_factor"] * (1 if group["maximize"] else -1)
        retract(S, step, t, group["retraction"], tidy=tidy, live=state["live"])
