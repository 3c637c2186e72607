"""Penalties of other methods for several domains, called as those of `hesse.curvature.alignment.penalties` are.

    IRM     mean_e (dL_e(w z)/dw at w = 1)²           V-REx    variance of the L_e
    CORAL   distance of feature means and covariances  Fishr    distance of per-example gradient variances
    IGA     variance of the gradients

All but CORAL look at the head's outputs; gradients are in the head's parameters. None is weighted.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from hesse.curvature.alignment._precision import without_autocast
from hesse.curvature.alignment.domains import Domain, Loss, head_curvatures, require_several
from hesse.errors import ArgumentError

__all__ = ["coral_penalty", "fishr_penalty", "iga_penalty", "irm_penalty", "vrex_penalty"]


@without_autocast
def irm_penalty(
    domains: Sequence[Domain], head: nn.Module, *, loss: Loss = "cross_entropy", allow_single: bool = True
) -> Tensor:
    """Average over domains the squared derivative of the loss in a factor w on the logits, at w = 1.

    For a linear head it is the projection of the gradient g_e on the head's own parameters, squared.

    Parameters
    ----------
    domains : sequence of (features, targets)
        As in `hgp_penalty`.
    head : nn.Module
        From features to logits.
    loss : str or callable, default "cross_entropy"
        As in `hgp_penalty`.
    allow_single : bool, default True
        One domain has a penalty of its own here.

    Returns
    -------
    Tensor, shape ()
        Non-negative.

    Raises
    ------
    ArgumentError
        If a domain is empty, a target is out of range, or the loss is unknown.
    ArgumentTypeError
        If the head is no module or a domain is no pair of tensors.
    ShapeError
        If features, targets and head do not fit together.

    References
    ----------
    M. Arjovsky, L. Bottou, I. Gulrajani, D. Lopez-Paz (2019), arXiv 1907.02893.
    """
    require_several("irm_penalty", domains, allow_single)
    curvatures = head_curvatures("irm_penalty", domains, head, loss)
    return torch.stack([c.scale_derivative() for c in curvatures]).square().mean()


@without_autocast
def vrex_penalty(
    domains: Sequence[Domain], head: nn.Module, *, loss: Loss = "cross_entropy", allow_single: bool = False
) -> Tensor:
    """Take the variance over domains of their mean losses, divided by E.

    Parameters
    ----------
    domains, head, loss, allow_single
        As in `hgp_penalty`.

    Returns
    -------
    Tensor, shape ()
        In squared units of the loss.

    Raises
    ------
    ArgumentError
        If there is one domain, one is empty, a target is out of range, or the loss is unknown.
    ArgumentTypeError
        If the head is no module or a domain is no pair of tensors.
    ShapeError
        If features, targets and head do not fit together.

    References
    ----------
    D. Krueger et al. (2021), ICML, arXiv 2003.00688.
    """
    require_several("vrex_penalty", domains, allow_single)
    curvatures = head_curvatures("vrex_penalty", domains, head, loss)
    return torch.stack([c.value() for c in curvatures]).var(correction=0)


@without_autocast
def coral_penalty(
    domains: Sequence[Domain], head: nn.Module, *, loss: Loss = "cross_entropy", allow_single: bool = False
) -> Tensor:
    """Average over pairs of domains ‖μ_e - μ_f‖² / P + ‖C_e - C_f‖_F² / P², means and covariances of the features.

    Parameters
    ----------
    domains : sequence of (features (N_e, P), targets)
        Targets do not enter.
    head, loss, allow_single
        As in `hgp_penalty`; the head and the loss do not enter, and are there so that penalties can be exchanged.

    Returns
    -------
    Tensor, shape ()
        With the scaling by P that DomainBed uses.

    Raises
    ------
    ArgumentError
        If there is one domain, one has fewer than two examples, a target is out of range, or the loss is unknown.
    ArgumentTypeError
        If the head is no module or a domain is no pair of tensors.
    ShapeError
        If features, targets and head do not fit together.

    References
    ----------
    B. Sun, K. Saenko (2016), ECCV workshops, arXiv 1607.01719.
    """
    require_several("coral_penalty", domains, allow_single)
    head_curvatures("coral_penalty", domains, head, loss)
    if any(len(features) < 2 for features, _ in domains):
        raise ArgumentError("coral_penalty: a covariance needs two examples in every domain")
    wide = [features.flatten(1).to(torch.promote_types(features.dtype, torch.float32)) for features, _ in domains]
    moments = [(x.mean(0), torch.cov(x.mT).reshape(x.shape[1], x.shape[1])) for x in wide]
    gaps = [
        (mean - other_mean).square().mean() + (cov - other_cov).square().mean()
        for (mean, cov), (other_mean, other_cov) in combinations(moments, 2)
    ]
    return torch.stack(gaps).mean() if gaps else wide[0].new_zeros(())


@without_autocast
def fishr_penalty(
    domains: Sequence[Domain], head: nn.Module, *, loss: Loss = "cross_entropy", allow_single: bool = False
) -> Tensor:
    """Average over domains ‖v_e - v̄‖², v_e the variance over examples of their gradients in the head.

    Parameters
    ----------
    domains, head, loss, allow_single
        As in `hgp_penalty`.

    Returns
    -------
    Tensor, shape ()
        Variances are divided by N_e. For a linear head two matrix products a domain; for another, all per-example
        gradients are held.

    Raises
    ------
    ArgumentError
        If there is one domain, one is empty, a target is out of range, or the loss is unknown.
    ArgumentTypeError
        If the head is no module or a domain is no pair of tensors.
    ShapeError
        If features, targets and head do not fit together.

    References
    ----------
    A. Rame, C. Dancette, M. Cord (2022), ICML, arXiv 2109.02934.
    """
    require_several("fishr_penalty", domains, allow_single)
    curvatures = head_curvatures("fishr_penalty", domains, head, loss)
    return _variance([c.gradient_variance() for c in curvatures])


@without_autocast
def iga_penalty(
    domains: Sequence[Domain], head: nn.Module, *, loss: Loss = "cross_entropy", allow_single: bool = False
) -> Tensor:
    """Average over domains ‖g_e - ḡ‖²: the gradient part of `hgp_penalty` alone.

    Parameters
    ----------
    domains, head, loss, allow_single
        As in `hgp_penalty`.

    Returns
    -------
    Tensor, shape ()
        Of the head's gradients; the original takes those of the whole network.

    Raises
    ------
    ArgumentError
        If there is one domain, one is empty, a target is out of range, or the loss is unknown.
    ArgumentTypeError
        If the head is no module or a domain is no pair of tensors.
    ShapeError
        If features, targets and head do not fit together.

    References
    ----------
    M. Koyama, S. Yamaguchi (2020), arXiv 2008.01883.
    """
    require_several("iga_penalty", domains, allow_single)
    curvatures = head_curvatures("iga_penalty", domains, head, loss)
    return _variance([c.gradient() for c in curvatures])


def _variance(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).var(0, correction=0).sum()
