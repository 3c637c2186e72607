"""The comp-sum family of losses of a softmax, from sum-exponential (τ = 0) to mean absolute error (2).

    ℓ_τ(h, y) = Φ_τ(Σ_{k≠y} e^{h_k - h_y}) = (p_y^{τ-1} - 1) / (1 - τ),    p = softmax(h);    ℓ_1 = -log p_y

Everything starts from log p_y; the sum of exponentials is never formed. Shapes: C classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = [
    "CompSumLoss",
    "Reduction",
    "check_tau",
    "comp_sum_loss",
    "largest_exponent",
    "phi",
    "phi_of_log",
    "reduce_losses",
]

Reduction = Literal["mean", "sum", "none"]
_NEAR_ONE = 1e-8  # closer to τ = 1 the two formulas differ by less than a rounding of the loss


def check_tau(name: str, tau: float) -> None:
    """Refuse a τ that is negative or not finite.

    Parameters
    ----------
    name : str
        The call, for the message.
    tau : float
        τ.

    Raises
    ------
    ArgumentError
        If it is out of range.
    """
    if not 0 <= tau < float("inf"):
        raise ArgumentError(f"{name}: tau: expected a finite number >= 0, got {tau}")


def largest_exponent(dtype: torch.dtype) -> float:
    """Return where exponents are cut: 600 in float64, otherwise 60, which no loss that trains comes near.

    Parameters
    ----------
    dtype : torch.dtype
        Of the logits.

    Returns
    -------
    float
        In nats.
    """
    return 600.0 if dtype == torch.float64 else 60.0


def phi(u: Tensor, tau: float) -> Tensor:
    """Φ_τ(u) = ((1 + u)^{1-τ} - 1) / (1 - τ), and log(1 + u) at τ = 1: concave for τ > 0, increasing, 1-Lipschitz.

    Parameters
    ----------
    u : Tensor, any shape
        Sums Σ_{k≠y} e^{h_k - h_y} >= 0.
    tau : float
        τ >= 0.

    Returns
    -------
    Tensor, shape of ``u``
        Differentiable; decreasing in τ at every u.

    Raises
    ------
    ArgumentError
        If τ is negative, or an entry of ``u``.
    """
    check_tau("phi", tau)
    if bool((u < 0).any()):
        raise ArgumentError("phi: u: expected entries >= 0, which sums of exponentials are")
    return u if tau == 0 else phi_of_log(torch.log1p(u), tau)


def phi_of_log(nats: Tensor, tau: float) -> Tensor:
    """Φ_τ(e^s - 1) for s = -log p_y: the loss from the cross-entropy.

    Parameters
    ----------
    nats : Tensor, any shape
        s >= 0, in nats.
    tau : float
        τ >= 0.

    Returns
    -------
    Tensor, shape of ``nats``
        For τ < 1 the exponent (1-τ) s is cut at 60 (600 in float64): the loss is then flat, its gradient zero.
    """
    if abs(tau - 1) < _NEAR_ONE:
        return nats
    exponent = (1 - tau) * nats
    if tau < 1:
        exponent = exponent.clamp(max=largest_exponent(nats.dtype))
    return torch.expm1(exponent) / (1 - tau)


def comp_sum_loss(
    logits: Tensor,
    target: Tensor,
    tau: float = 1.0,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """ℓ_τ = (p_y^{τ-1} - 1) / (1 - τ): sum-exponential (τ = 0), cross-entropy (1), generalised (1 < τ < 2), MAE (2).

    A smaller τ follows hard examples more closely; a larger one forgives wrong labels, and trains more slowly.

    Parameters
    ----------
    logits : Tensor, shape (C,), (B, C) or (B, C, ...)
        Scores h of C >= 2 classes. Half precision is computed in float32 and returned as it came.
    target : Tensor, shape of ``logits`` without the class axis, or its shape
        Labels (integers), or class probabilities q (floating): then the loss is Σ_y q_y ℓ_τ(h, y).
    tau : float, default 1.0
        τ >= 0. Default: cross-entropy, the member everyone knows.
    weight : Tensor, shape (C,), optional
        Factor of the loss of each class. The mean over labels divides by the sum of the weights met, as torch's does.
    ignore_index : int, default -100
        Label of rows to leave out. If all are left out the loss is zero, with gradients of zero.
    reduction : {"mean", "sum", "none"}, default "mean"
        Over rows.

    Returns
    -------
    Tensor, shape () or that of the labels
        Nats at τ = 1; otherwise a number without a unit.

    Raises
    ------
    ArgumentError
        If τ < 0, there are fewer than two classes, a label is out of range, the reduction is unknown, or logits and
        target lie on different devices.
    ArgumentTypeError
        If the logits are not floating, or labels are boolean or complex.
    ShapeError
        If the target or the weight does not fit the logits.

    Notes
    -----
    Costs a log-softmax. Equal to ``F.cross_entropy`` at τ = 1, its gradient is p_y^{τ-1} (p - e_y).

    Examples
    --------
    >>> h = torch.zeros(1, 4)
    >>> [round(float(comp_sum_loss(h, torch.tensor([2]), tau)), 4) for tau in (0, 1, 2)]
    [3.0, 1.3863, 0.75]

    References
    ----------
    A. Mao, M. Mohri, Y. Zhong (2023), Cross-Entropy Loss Functions, ICML, arXiv 2304.07288.
    Z. Zhang, M. Sabuncu (2018), Generalized Cross Entropy Loss, NeurIPS, arXiv 1805.07836.
    """
    name = "comp_sum_loss"
    check_tau(name, tau)
    if not logits.is_floating_point():
        raise ArgumentTypeError(f"{name}: logits: expected a floating tensor, got {logits.dtype}")
    if logits.ndim == 0:
        raise ShapeError(f"{name}: logits: expected a class axis, got a scalar")
    if logits.device != target.device:
        raise ArgumentError(f"{name}: logits are on {logits.device}, the target on {target.device}")
    axis = min(1, logits.ndim - 1)
    scores = logits.movedim(axis, -1)
    num_classes = scores.shape[-1]
    if num_classes < 2:
        raise ArgumentError(f"{name}: logits: expected at least 2 classes, got shape {tuple(logits.shape)}")
    if weight is not None and weight.shape != (num_classes,):
        raise ShapeError(f"{name}: weight: expected shape ({num_classes},), got {tuple(weight.shape)}")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    nats = -scores.log_softmax(-1)
    if weight is not None:
        weight = weight.to(nats)
    if target.is_floating_point():
        losses, total = _of_probabilities(nats, target, axis, tau, weight, logits.shape)
    else:
        losses, total = _of_labels(nats, target, tau, weight, ignore_index)
    return reduce_losses(name, losses, reduction, total).to(logits.dtype)


def _of_probabilities(
    nats: Tensor, target: Tensor, axis: int, tau: float, weight: Tensor | None, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    if target.shape != shape:
        raise ShapeError(
            f"comp_sum_loss: target: expected probabilities of shape {tuple(shape)}, got {tuple(target.shape)}"
        )
    q = target.movedim(axis, -1).to(nats)
    losses = (q * phi_of_log(nats, tau) * (1 if weight is None else weight)).sum(-1)
    return losses, losses.new_tensor(losses.numel())


def _of_labels(
    nats: Tensor, target: Tensor, tau: float, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    if target.dtype == torch.bool or target.is_complex():
        raise ArgumentTypeError(f"comp_sum_loss: target: expected integers or probabilities, got {target.dtype}")
    if target.shape != nats.shape[:-1]:
        raise ShapeError(
            f"comp_sum_loss: target: expected labels of shape {tuple(nats.shape[:-1])}, got {tuple(target.shape)}"
        )
    kept = target != ignore_index
    labels = torch.where(kept, target, 0).long()
    if bool(((labels < 0) | (labels >= nats.shape[-1])).any()):
        raise ArgumentError(
            f"comp_sum_loss: target: expected labels 0 to {nats.shape[-1] - 1} or {ignore_index} (ignore_index), "
            f"got {int(target[kept].min())} to {int(target[kept].max())}"
        )
    factors = kept.to(nats) if weight is None else torch.where(kept, weight[labels], 0)
    losses = phi_of_log(nats.gather(-1, labels.unsqueeze(-1)).squeeze(-1), tau)
    return torch.where(kept, losses * factors, 0), factors.sum()


def reduce_losses(name: str, losses: Tensor, reduction: Reduction, total: Tensor | None = None) -> Tensor:
    """Mean, sum or neither; a mean of nothing is zero.

    Parameters
    ----------
    name : str
        The call, for the message.
    losses : Tensor, any shape
        One a row.
    reduction : {"mean", "sum", "none"}
        What to do.
    total : Tensor, shape (), optional
        What the mean divides by. Default: the number of losses.

    Returns
    -------
    Tensor
        Of shape () but for "none".

    Raises
    ------
    ArgumentError
        If the reduction is another.
    """
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction != "mean":
        raise ArgumentError(f"{name}: reduction: expected mean, sum or none, got {reduction!r}")
    divisor = losses.new_tensor(losses.numel()) if total is None else total
    return losses.sum() / torch.where(divisor > 0, divisor, 1)


class CompSumLoss(nn.Module):
    """`comp_sum_loss` as a module, to put where ``nn.CrossEntropyLoss`` stood.

    Parameters
    ----------
    tau : float, default 1.0
        τ >= 0.
    weight : Tensor, shape (C,), optional
        Factor of each class; a buffer.
    ignore_index : int, default -100
        Label of rows to leave out.
    reduction : {"mean", "sum", "none"}, default "mean"
        Over rows.

    Raises
    ------
    ArgumentError
        If τ < 0.

    Examples
    --------
    >>> loss = CompSumLoss(tau=1.7)(torch.zeros(2, 10), torch.tensor([3, 1]))
    >>> round(float(loss), 4)
    1.1435
    """

    weight: Tensor | None

    def __init__(
        self,
        tau: float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_tau("CompSumLoss", tau)
        self.tau = tau
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see `comp_sum_loss`.

        Parameters
        ----------
        logits : Tensor, shape (C,), (B, C) or (B, C, ...)
            Scores.
        target : Tensor
            Labels or probabilities.

        Returns
        -------
        Tensor
            Of shape () but for reduction "none".
        """
        return comp_sum_loss(
            logits,
            target,
            self.tau,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``.

        Returns
        -------
        str
            τ and the reduction.
        """
        return f"tau={self.tau}, reduction={self.reduction!r}"
