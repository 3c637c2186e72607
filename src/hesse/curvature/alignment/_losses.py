"""Losses on the outputs of a head whose first and second derivatives are closed forms.

Shapes: N examples, K outputs, logits z (N, K). A loss is a mean over examples and a sum over outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.curvature.ggn import cross_entropy_hessian
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["LossName", "OutputLoss", "as_matrix", "output_loss"]

LossName = Literal["cross_entropy", "binary_cross_entropy", "squared_error"]


@dataclass(frozen=True, slots=True)
class OutputLoss:
    """One loss: its value, the derivative r_i = ∂ℓ_i/∂z_i and the matrix S_i = ∂²ℓ_i/∂z_i², none of them averaged.

    Targets do not enter S for any of the losses here.
    """

    name: LossName
    value: Callable[[Tensor, Tensor], Tensor]  # (N, K), targets -> (), the mean
    residual: Callable[[Tensor, Tensor], Tensor]  # (N, K), targets -> r (N, K)
    curve: Callable[[Tensor, Tensor], Tensor]  # (N, K), tangents (..., N, K) -> S_i t_i
    curve_diagonal: Callable[[Tensor], Tensor]  # (N, K) -> diagonals of S (N, K)
    curve_gram: Callable[[Tensor], Tensor]  # (N, K) -> ⟨S_i, S_j⟩, Frobenius (N, N)

    def checked(self, call: str, logits: Tensor, targets: Tensor) -> Tensor:
        """Bring targets into the form the formulas want, or refuse them.

        Parameters
        ----------
        call : str
            The caller, for messages.
        logits : Tensor, shape (N, K)
            Outputs.
        targets : Tensor
            Class numbers (N,) for cross-entropy; else numbers of the shape of the logits, or (N,) if K = 1.

        Returns
        -------
        Tensor
            int64 (N,) for cross-entropy; else (N, K) in the dtype of the logits.

        Raises
        ------
        ArgumentTypeError
            If class numbers are not integers, or targets are not a tensor.
        ArgumentError
            If a class number or probability is out of range.
        ShapeError
            If targets do not fit the logits in shape or device.
        """
        if not isinstance(targets, Tensor):
            raise ArgumentTypeError(f"{call}: targets must be a tensor, got {type(targets).__name__}")
        if targets.device != logits.device:
            raise ShapeError(f"{call}: targets are on {targets.device}, the logits on {logits.device}")
        n, k = logits.shape
        if self.name == "cross_entropy":
            if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
                raise ArgumentTypeError(f"{call}: cross_entropy needs class numbers (int64), got {targets.dtype}")
            if targets.shape != (n,):
                raise ShapeError(f"{call}: expected targets of shape ({n},), got {tuple(targets.shape)}")
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= k:
                raise ArgumentError(f"{call}: targets must lie in 0 … {k - 1}, got {low} … {high}")
            return targets.long()
        values = targets.unsqueeze(1) if targets.ndim == 1 else targets
        if values.shape != logits.shape:
            raise ShapeError(f"{call}: expected targets of shape {tuple(logits.shape)}, got {tuple(targets.shape)}")
        values = values.to(logits.dtype)
        if self.name == "binary_cross_entropy" and not bool(((values >= 0) & (values <= 1)).all()):
            raise ArgumentError(
                f"{call}: targets of binary_cross_entropy must lie in [0, 1], got {float(values.min()):g} … "
                f"{float(values.max()):g}"
            )
        return values


def output_loss(call: str, name: str) -> OutputLoss:
    """Find a loss by its name.

    Parameters
    ----------
    call : str
        The caller, for the message.
    name : str
        "cross_entropy", "binary_cross_entropy" (from logits, summed over outputs) or "squared_error" (½ ‖z - y‖²).

    Returns
    -------
    OutputLoss
        Value and derivatives.

    Raises
    ------
    ArgumentError
        If there is no such loss.
    """
    if name not in _LOSSES:
        raise ArgumentError(f"{call}: loss must be one of {', '.join(_LOSSES)}, or a function; got {name!r}")
    return _LOSSES[name]


def as_matrix(logits: Tensor) -> Tensor:
    """Read a vector of logits as one column.

    Parameters
    ----------
    logits : Tensor, shape (N,) or (N, K)
        Outputs.

    Returns
    -------
    Tensor, shape (N, K)
        A view.
    """
    return logits.unsqueeze(1) if logits.ndim == 1 else logits


def _softmax_residual(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.softmax(-1) - F.one_hot(targets, logits.shape[1]).to(logits.dtype)


def _softmax_diagonal(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return p * (1 - p)


def _softmax_gram(logits: Tensor) -> Tensor:
    # S = diag(p) - p pᵀ: ⟨S, S'⟩ = p·p' - p·p'² - p²·p' + (p·p')²
    p = logits.softmax(-1)
    squares = p.square()
    inner, mixed = p @ p.mT, p @ squares.mT
    return inner - mixed - mixed.mT + inner.square()


def _binary_value(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def _binary_diagonal(logits: Tensor) -> Tensor:
    p = logits.sigmoid()
    return p * (1 - p)


def _binary_gram(logits: Tensor) -> Tensor:
    s = _binary_diagonal(logits)
    return s @ s.mT


def _squared_gram(logits: Tensor) -> Tensor:
    n, k = logits.shape
    return logits.new_full((n, n), float(k))


_LOSSES: dict[str, OutputLoss] = {
    "cross_entropy": OutputLoss(
        "cross_entropy",
        F.cross_entropy,
        _softmax_residual,
        cross_entropy_hessian,
        _softmax_diagonal,
        _softmax_gram,
    ),
    "binary_cross_entropy": OutputLoss(
        "binary_cross_entropy",
        _binary_value,
        lambda logits, targets: logits.sigmoid() - targets,
        lambda logits, tangents: _binary_diagonal(logits) * tangents,
        _binary_diagonal,
        _binary_gram,
    ),
    "squared_error": OutputLoss(
        "squared_error",
        lambda logits, targets: (logits - targets).square().sum() / (2 * len(logits)),
        torch.sub,
        lambda _logits, tangents: tangents,
        torch.ones_like,
        _squared_gram,
    ),
}
