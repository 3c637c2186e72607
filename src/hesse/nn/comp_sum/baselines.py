"""What ADV-COMP-SUM is compared with: adversarial training on attacks, TRADES and MART, in one form.

Shapes: B inputs (B, ...), n classes. p and p' are the softmax at x and at x'.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.errors import ArgumentError
from hesse.nn.attacks import Model, attack_loss, evaluating
from hesse.nn.comp_sum.adversarial import Attack, paired_logits

__all__ = ["mart_loss", "pgd_at_loss", "trades_loss"]


def pgd_at_loss(model: Model, x: Tensor, y: Tensor, *, attack: Attack) -> Tensor:
    """Mean of -log p'_y at the x' where an attack found it largest.

    Parameters
    ----------
    model : callable
        x -> logits (B, n). A module is attacked in evaluation mode.
    x : Tensor, shape (B, ...)
        Inputs.
    y : Tensor of integers, shape (B,)
        Labels.
    attack : callable
        (model, x, y, loss_fn) -> x', such as `hesse.nn.attacks.PGDAttack`.

    Returns
    -------
    Tensor, shape ()
        Nats.

    References
    ----------
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu (2018), ICLR, arXiv 1706.06083.
    """
    return F.cross_entropy(model(attack(model, x, y, attack_loss("ce"))), y)


def trades_loss(model: Model, x: Tensor, y: Tensor, *, attack: Attack, beta: float = 6.0) -> Tensor:
    """Mean of -log p_y + β KL(p ‖ p'), x' attacking the divergence.

    Parameters
    ----------
    model, x, y, attack
        As of `pgd_at_loss`; the attack must not start at x, where the divergence has no slope.
    beta : float, default 6.0
        β >= 0, clean accuracy against robustness. Default: the authors' for CIFAR-10.

    Returns
    -------
    Tensor, shape ()
        Nats.

    Raises
    ------
    ArgumentError
        If β is out of range.

    References
    ----------
    H. Zhang, Y. Yu, J. Jiao, E. Xing, L. El Ghaoui, M. Jordan (2019), ICML, arXiv 1901.08573.
    """
    _check_beta("trades_loss", beta)
    with evaluating(model), torch.no_grad():
        held = model(x).log_softmax(-1)
    moved = attack(model, x, y, lambda logits, _labels: _divergence(held, logits.log_softmax(-1)))
    clean, attacked = paired_logits(model, x, moved)
    divergence = _divergence(clean.log_softmax(-1), attacked.log_softmax(-1))
    return F.cross_entropy(clean, y) + beta * divergence.mean()


def mart_loss(model: Model, x: Tensor, y: Tensor, *, attack: Attack, beta: float = 5.0) -> Tensor:
    """Mean of -log p'_y - log(1 - max_{k≠y} p'_k) + β (1 - p_y) KL(p ‖ p'), x' attacking cross-entropy.

    Parameters
    ----------
    model, x, y, attack
        As of `pgd_at_loss`.
    beta : float, default 5.0
        β >= 0. Default: the authors'.

    Returns
    -------
    Tensor, shape ()
        Nats.

    Raises
    ------
    ArgumentError
        If β is out of range.

    References
    ----------
    Y. Wang, D. Zou, J. Yi, J. Bailey, X. Ma, Q. Gu (2020), Improving adversarial robustness requires revisiting
    misclassified examples, ICLR.
    """
    _check_beta("mart_loss", beta)
    clean, attacked = paired_logits(model, x, attack(model, x, y, attack_loss("ce")))
    log_p, log_moved = clean.log_softmax(-1), attacked.log_softmax(-1)
    index = y.unsqueeze(-1)
    rival = log_moved.scatter(-1, index, -math.inf).amax(-1).exp()
    boosted = F.cross_entropy(attacked, y) - torch.log(1.0001 - rival).mean()  # the authors' guard of the logarithm
    missing = 1 - log_p.gather(-1, index).squeeze(-1).exp()
    return boosted + beta * (missing * _divergence(log_p, log_moved)).mean()


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _check_beta(name: str, beta: float) -> None:
    if not 0 <= beta < math.inf:
        raise ArgumentError(f"{name}: beta: expected a finite number >= 0, got {beta}")
