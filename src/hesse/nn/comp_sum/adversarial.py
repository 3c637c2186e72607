"""Adversarial training with one smooth term in place of the largest loss: ADV-COMP-SUM.

    ℓ(h, x, y) = Φ_τ(Σ_{k≠y} e^{-Δ_k(x)/ρ}) + ν sup_{‖x'-x‖<=ε} ‖Δ(x') - Δ(x)‖₂,      Δ_k = h_y - h_k

With ν >= √(n-1)/ρ it bounds sup_{x'} Φ_τ(Σ_k min(1, max(0, 1 - Δ_k(x')/ρ))), and that Φ_τ(1) times the adversarial
zero-one loss.   Shapes: B inputs (B, ...), n classes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError
from hesse.nn.attacks import AttackLoss, Model, evaluating
from hesse.nn.comp_sum.losses import Reduction, check_tau, comp_sum_loss, reduce_losses

__all__ = ["AdvCompSum", "Attack", "paired_logits", "smooth_adversarial_loss", "theorem_nu", "warmed_up"]

Attack = Callable[[Model, Tensor, Tensor, AttackLoss], Tensor]
"""(model, x, y, loss_fn) -> x', such as `hesse.nn.attacks.PGDAttack`."""


def theorem_nu(num_classes: int, rho: float = 1.0) -> float:
    """ν = √(n-1)/ρ: from here on the smooth loss is an upper bound. Training mostly wants far less.

    Parameters
    ----------
    num_classes : int
        n >= 2.
    rho : float, default 1.0
        ρ > 0.

    Returns
    -------
    float
        ν.

    Raises
    ------
    ArgumentError
        If n or ρ is out of range.
    """
    if num_classes < 2:
        raise ArgumentError(f"theorem_nu: num_classes: expected at least 2, got {num_classes}")
    _check_weights("theorem_nu", rho, 0.0)
    return math.sqrt(num_classes - 1) / rho


def warmed_up(nu: float, step: int, num_steps: int, *, fraction: float = 1 / 3) -> float:
    """ν min(1, t / (fraction · T)): a linear start, so that the scores spread before the norm holds them back.

    It delays the collapse to constant scores that a large ν brings at τ near 1; only a smaller ν or τ prevents it.

    Parameters
    ----------
    nu : float
        Final ν.
    step : int
        t >= 0, steps done.
    num_steps : int
        T >= 1, steps in all.
    fraction : float, default 1/3
        Part of the training in which ν rises; 0 for none.

    Returns
    -------
    float
        ν at step t.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    """
    if step < 0 or num_steps < 1 or not 0 <= fraction <= 1:
        raise ArgumentError(
            f"warmed_up: expected step >= 0, num_steps >= 1 and fraction in [0, 1], got {step}, {num_steps}, {fraction}"
        )
    rise = fraction * num_steps
    return nu if step >= rise else nu * step / rise


def paired_logits(model: Model, x: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of x and of x' from one pass over both, so that batch normalisation sees, and counts, one batch.

    Parameters
    ----------
    model : callable
        (2B, ...) -> (2B, n).
    x, moved : Tensor, shape (B, ...)
        x and x'.

    Returns
    -------
    tuple of Tensor, shapes (B, n)
        Logits of each.
    """
    clean, attacked = model(torch.cat([x, moved])).chunk(2)
    return clean, attacked


def smooth_adversarial_loss(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    attack: Attack,
    tau: float = 0.2,
    rho: float = 1.0,
    nu: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """ℓ_τ(h(x)/ρ, y) + ν ‖Δ(x') - Δ(x)‖₂ with x' found by an attack on the norm.

    Parameters
    ----------
    model : callable
        x -> logits (B, n), n >= 2. A module is attacked in evaluation mode, and evaluated once on [x; x'] in its own.
    x : Tensor, shape (B, ...)
        Inputs.
    y : Tensor of integers, shape (B,)
        Labels.
    attack : callable
        (model, x, y, loss_fn) -> x', such as ``PGDAttack(eps=8/255)``. It raises the squared norm, with the clean
        scores held fixed; it must not start at x, where that has no slope.
    tau : float, default 0.2
        τ >= 0. A small τ keeps up with the norm; at τ = 1 the loss is too flat for ν = 1 on ten classes, and the
        scores collapse to constants.
    rho : float, default 1.0
        ρ > 0, the unit of margins.
    nu : float, default 1.0
        ν >= 0; `theorem_nu` for the bound. Below it the loss is a trade-off, not a bound.
    reduction : {"mean", "sum", "none"}, default "mean"
        Over inputs.

    Returns
    -------
    Tensor, shape () or (B,)
        With a graph through both h(x) and h(x'). Where the attack did not move x it is ℓ_τ(h/ρ, y) exactly.

    Raises
    ------
    ArgumentError
        If τ or ν is negative, ρ is not positive, there is one class, or a label is out of range.

    Notes
    -----
    A pass forward and back over 2B inputs beside the attack. The supremum is a lower estimate, as every attack's is.

    References
    ----------
    A. Mao, M. Mohri, Y. Zhong (2023), ICML, arXiv 2304.07288, section 5.
    """
    check_tau("smooth_adversarial_loss", tau)
    _check_weights("smooth_adversarial_loss", rho, nu)
    moved = x
    if nu > 0:
        with evaluating(model), torch.no_grad():
            held = model(x)
        comp_sum_loss(held, y, tau)  # refuses labels and classes that do not fit before the attack begins
        moved = attack(model, x, y, lambda logits, labels: _margin_moves(logits - held, labels).square().sum(-1))
    changed = (moved != x).flatten(1).any(1)
    if not bool(changed.any()):
        return comp_sum_loss(model(x) / rho, y, tau, reduction=reduction)
    clean, attacked = paired_logits(model, x, moved)
    losses = comp_sum_loss(clean / rho, y, tau, reduction="none")
    norms = _safe_norm(_margin_moves(attacked - clean, y))
    losses = losses + nu * torch.where(changed, norms, 0)
    return reduce_losses("smooth_adversarial_loss", losses, reduction)


def _margin_moves(difference: Tensor, y: Tensor) -> Tensor:
    # Δ_k(x') - Δ_k(x) over all k: the entry of the label itself is zero, and a constant added to all scores drops out
    return difference.gather(-1, y.unsqueeze(-1)) - difference


def _safe_norm(v: Tensor) -> Tensor:
    # a root has no derivative at zero: there the norm is zero with gradient zero
    squares = v.square().sum(-1)
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)


def _check_weights(name: str, rho: float, nu: float) -> None:
    if not 0 < rho < math.inf:
        raise ArgumentError(f"{name}: rho: expected a finite number > 0, got {rho}")
    if not 0 <= nu < math.inf:
        raise ArgumentError(f"{name}: nu: expected a finite number >= 0, got {nu}")


class AdvCompSum(nn.Module):
    """A model together with its smooth adversarial loss: ``AdvCompSum(model, PGDAttack(eps=0.1))(x, y).backward()``.

    Parameters
    ----------
    model : nn.Module
        x -> logits.
    attack : callable
        As of `smooth_adversarial_loss`.
    tau : float, default 0.2
        τ >= 0.
    rho : float, default 1.0
        ρ > 0.
    nu : float, default 1.0
        ν >= 0; an attribute that may be set between steps, as by `warmed_up`.
    reduction : {"mean", "sum", "none"}, default "mean"
        Over inputs.

    Raises
    ------
    ArgumentError
        If τ, ρ or ν is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: Attack,
        *,
        tau: float = 0.2,
        rho: float = 1.0,
        nu: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_tau("AdvCompSum", tau)
        _check_weights("AdvCompSum", rho, nu)
        self.model = model
        self.attack = attack
        self.tau, self.rho, self.nu = tau, rho, nu
        self.reduction: Reduction = reduction

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; see `smooth_adversarial_loss`.

        Parameters
        ----------
        x : Tensor, shape (B, ...)
            Inputs.
        y : Tensor of integers, shape (B,)
            Labels.

        Returns
        -------
        Tensor
            Of shape () but for reduction "none".
        """
        return smooth_adversarial_loss(
            self.model,
            x,
            y,
            attack=self.attack,
            tau=self.tau,
            rho=self.rho,
            nu=self.nu,
            reduction=self.reduction,
        )
