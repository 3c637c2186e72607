"""Second derivatives of the comp-sum losses in the logits: as matrices, and as products for `hesse.curvature.ggn`.

    ∂²ℓ_τ/∂h² = p_y^{τ-1} [diag(p) - p pᵀ - (τ-1)(p - e_y)(p - e_y)ᵀ],    p = softmax(h)

Shapes: C classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ShapeError
from hesse.nn.comp_sum.losses import check_tau, largest_exponent

__all__ = ["comp_sum_hessian", "comp_sum_output_hessian"]


def comp_sum_hessian(logits: Tensor, target: Tensor, tau: float = 1.0, *, psd: bool = False) -> Tensor:
    """∂²ℓ_τ/∂h² = a [diag(p) - p pᵀ - (τ-1)(p - e_y)(p - e_y)ᵀ],   a = p_y^{τ-1}.

    Positive semi-definite for τ <= 1. Beyond, it has a negative eigenvalue wherever the label's probability is small.

    Parameters
    ----------
    logits : Tensor, shape (..., C)
        Scores h.
    target : Tensor of integers, shape (...)
        Labels 0 to C-1.
    tau : float, default 1.0
        τ >= 0.
    psd : bool, default False
        Leave the last term out where τ > 1, which is the curvature of ℓ_τ as a function of log p_y: what remains is
        positive semi-definite, at the cost of no eigenvalues.

    Returns
    -------
    Tensor, shape (..., C, C)
        Of every row; O(C²) each. For products alone see `comp_sum_output_hessian`. Where the loss is cut (see
        `comp_sum_loss`), p_y^{τ-1} is held at the cut.

    Raises
    ------
    ArgumentError
        If τ < 0.
    ShapeError
        If the labels do not fit.
    """
    _check_rows("comp_sum_hessian", logits, target, tau)
    p, pull, scale = _pieces(logits, target, tau)
    matrix = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    if not (psd and tau > 1):
        matrix = matrix - (tau - 1) * pull.unsqueeze(-1) * pull.unsqueeze(-2)
    return scale.unsqueeze(-1) * matrix


def comp_sum_output_hessian(
    tau: float, *, target_fn: Callable[[Any], Tensor] | None = None, psd: bool = True
) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """Products with ∂²ℓ_τ/∂h², in the form that `hesse.curvature.ggn` takes as its ``output_hessian``.

    Parameters
    ----------
    tau : float
        τ >= 0.
    target_fn : callable, optional
        batch -> labels, of the shape of the outputs without their last axis. Default: ``batch[1]``.
    psd : bool, default True
        As of `comp_sum_hessian`. With False and τ > 1 pass ``is_psd=False`` to `ggn`.

    Returns
    -------
    callable
        (outputs (..., C), tangent (..., C), batch) -> (..., C), of a sum over rows; O(C) a row.

    Raises
    ------
    ArgumentError
        If τ < 0.
    """
    check_tau("comp_sum_output_hessian", tau)

    def product(outputs: Tensor, tangent: Tensor, batch: Any) -> Tensor:
        target = batch[1] if target_fn is None else target_fn(batch)
        _check_rows("comp_sum_output_hessian", outputs, target, tau)
        p, pull, scale = _pieces(outputs, target, tau)
        curved = p * (tangent - (p * tangent).sum(-1, keepdim=True))
        if not (psd and tau > 1):
            curved = curved - (tau - 1) * pull * (pull * tangent).sum(-1, keepdim=True)
        return scale * curved

    return product


def _check_rows(name: str, logits: Tensor, target: Tensor, tau: float) -> None:
    check_tau(name, tau)
    if target.shape != logits.shape[:-1]:
        raise ShapeError(
            f"{name}: target: expected labels of shape {tuple(logits.shape[:-1])}, got {tuple(target.shape)}"
        )


def _pieces(logits: Tensor, target: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    # p, p - e_y and p_y^{τ-1}
    log_p = logits.log_softmax(-1)
    index = target.unsqueeze(-1).long()
    p = log_p.exp()
    label = torch.zeros_like(p).scatter(-1, index, 1.0)
    scale = ((tau - 1) * log_p.gather(-1, index)).clamp(max=largest_exponent(logits.dtype)).exp()
    return p, p - label, scale
