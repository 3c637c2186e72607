"""Penalties that make the gradient and the Hessian of a head agree across domains, differentiable in the features.

    R = (1/E) Σ_e [ α ‖c_e - c̄‖² + β ‖g_e - ḡ‖² ],   c_e = H_e g_e (HGP), diag H_e (Hutchinson) or H_e (Frobenius)

g_e and H_e are gradient and Hessian, in the parameters of the head alone, of the mean loss of domain e; ḡ and H̄ those
of the mean over domains. HGP compares with H̄ ḡ, which is not the mean of the H_e g_e.

Shapes: E domains, domain e has N_e examples; N examples in all.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from hesse.curvature.alignment._precision import without_autocast
from hesse.curvature.alignment.domains import (
    Domain,
    HeadCurvature,
    Loss,
    dense_hessian,
    head_curvatures,
    require_several,
)
from hesse.curvature.alignment.linear_head import DiagonalMethod, LinearHead
from hesse.errors import ArgumentError
from hesse.linalg.diagonals import hutchinson_diagonal

__all__ = [
    "AlignmentTerms",
    "Average",
    "check_weights",
    "frobenius_terms",
    "hessian_frobenius_penalty",
    "hgp_penalty",
    "hgp_terms",
    "hutchinson_penalty",
    "hutchinson_terms",
]

Average = Callable[[Tensor], Tensor]
"""The mean of a tensor over processes that hold equally many domains."""


class AlignmentTerms(NamedTuple):
    """The two parts of a penalty before their weights."""

    curvature: Tensor  # (1/E) Σ_e ‖c_e - c̄‖²
    gradient: Tensor  # (1/E) Σ_e ‖g_e - ḡ‖²

    def weighted(self, alpha: float, beta: float) -> Tensor:
        """Add the parts up.

        Parameters
        ----------
        alpha, beta : float
            Weights of curvature and gradient.

        Returns
        -------
        Tensor, shape ()
            α · curvature + β · gradient.
        """
        return alpha * self.curvature + beta * self.gradient


@without_autocast
def hgp_penalty(
    domains: Sequence[Domain],
    head: nn.Module,
    alpha: float = 1e-4,
    beta: float = 5e-3,
    *,
    detach_mean: bool = True,
    loss: Loss = "cross_entropy",
    average: Average | None = None,
    allow_single: bool = False,
) -> Tensor:
    """R = (1/E) Σ_e [ α ‖H_e g_e - H̄ ḡ‖² + β ‖g_e - ḡ‖² ].

    Parameters
    ----------
    domains : sequence of (features (N_e, P), targets)
        What the head is applied to, with the graph of whatever made it, and the targets. Sizes may differ; every domain
        counts alike. A class may be missing in a domain.
    head : nn.Module
        From features to logits: a `torch.nn.Linear` for the closed forms, or anything else, differentiated by autograd.
        What it must not hold is a layer in training mode that draws random numbers.
    alpha : float, default 1e-4
        Weight of the curvature. The default and a search over 10^U(-5, -3) are the paper's for DomainBed; Colored MNIST
        takes 9.1e4 for both weights.
    beta : float, default 5e-3
        Weight of the gradient; the paper searches 10^U(-3, -1).
    detach_mean : bool, default True
        Hold H̄ ḡ fixed in the backward pass, as the paper's DomainBed code does; its Colored MNIST code does not. (For
        ḡ it makes no difference: deviations from a mean sum to zero.) With large weights take False: with the mean held
        fixed a step need not lower R, and where frequencies of labels differ between domains training diverges.
    loss : str or callable, default "cross_entropy"
        "cross_entropy", "binary_cross_entropy", "squared_error", or (logits, targets) -> scalar mean.
    average : callable, optional
        For domains spread over processes: the mean of a tensor over them, for instance an all-reduce divided by the
        number of processes, which must hold equally many domains each. It is called twice, for ḡ and H̄ ḡ; nothing else
        travels. The result is this process's own share, such that averaging gradients over processes, as
        DistributedDataParallel does, gives that of the whole. Default: all domains are here.
    allow_single : bool, default False
        Accept one domain, whose penalty is zero.

    Returns
    -------
    Tensor, shape ()
        Zero if and only if all H_e g_e equal H̄ ḡ and all g_e agree (for positive weights). Divided by E: the Colored
        MNIST code sums instead.

    Raises
    ------
    ArgumentError
        If a weight is negative, there is one domain, one is empty, a target is out of range, the loss is unknown, or
        ``average`` comes with ``detach_mean=False``.
    ArgumentTypeError
        If the head is no module or a domain is no pair of tensors.
    ShapeError
        If features, targets and head do not fit together.

    Notes
    -----
    Two products with the Hessian a domain, each two matrix products for a linear head: O(N K P) work, O(N P) memory. No
    norm is divided by, so a gradient of zero is no special case.

    References
    ----------
    S. Hemati, G. Zhang, A. Estiri, X. Chen (2023), "Understanding Hessian Alignment for Domain Generalization", ICCV,
    arXiv 2308.11778.
    """
    check_weights("hgp_penalty", alpha, beta)
    require_several("hgp_penalty", domains, allow_single or average is not None)
    curvatures = head_curvatures("hgp_penalty", domains, head, loss)
    return hgp_terms(curvatures, detach_mean=detach_mean, average=average).weighted(alpha, beta)


@without_autocast
def hutchinson_penalty(
    domains: Sequence[Domain],
    head: nn.Module,
    alpha: float = 1e-3,
    beta: float = 5e-3,
    *,
    method: DiagonalMethod = "exact",
    num_probes: int = 300,
    common_probes: bool = True,
    loss: Loss = "cross_entropy",
    average: Average | None = None,
    generator: Generator | None = None,
    allow_single: bool = False,
) -> Tensor:
    """R = (1/E) Σ_e [ α ‖diag H_e - diag H̄‖² + β ‖g_e - ḡ‖² ].

    Whether the means are held fixed in the backward pass makes no difference to the gradient, since deviations from a
    mean sum to zero: there is no ``detach_mean``.

    Parameters
    ----------
    domains, head, loss, allow_single
        As in `hgp_penalty`.
    alpha : float, default 1e-3
        Weight of the curvature; the default is the paper's for DomainBed, where it searches 10^U(1, 4).
    beta : float, default 5e-3
        Weight of the gradient; the paper searches 10^U(2, 6).
    method : {"exact", "hutchinson"}, default "exact"
        The diagonal of a linear head is one matrix product. Of another head "exact" takes one product with the Hessian
        a parameter; "hutchinson" averages z ⊙ H_e z over random signs z, as the paper does.
    num_probes : int, default 300
        Signs for "hutchinson", the paper's number for DomainBed (150 for Colored MNIST).
    common_probes : bool, default True
        The same signs for every domain: errors that the H_e share cancel in the differences. False draws them
        independently, as the paper does, which adds the variances of the estimates to the penalty.
    average : callable, optional
        As in `hgp_penalty`; called for diag H̄ and ḡ. Means are then held fixed.
    generator : torch.Generator, optional
        Source of the signs; one number is drawn from it a call. Default: torch's global generator.

    Returns
    -------
    Tensor, shape ()
        Zero if and only if gradients and diagonals agree (for positive weights and the exact diagonal).

    Raises
    ------
    ArgumentError
        If a weight is negative, there is one domain, one is empty, a target is out of range, loss or method is unknown,
        or ``num_probes < 2``.
    ArgumentTypeError
        If the head is no module or a domain is no pair of tensors.
    ShapeError
        If features, targets and head do not fit together.

    References
    ----------
    S. Hemati, G. Zhang, A. Estiri, X. Chen (2023), ICCV, arXiv 2308.11778.
    """
    check_weights("hutchinson_penalty", alpha, beta)
    require_several("hutchinson_penalty", domains, allow_single or average is not None)
    curvatures = head_curvatures("hutchinson_penalty", domains, head, loss)
    return hutchinson_terms(
        curvatures,
        method=method,
        num_probes=num_probes,
        common_probes=common_probes,
        average=average,
        generator=generator,
    ).weighted(alpha, beta)


@without_autocast
def hessian_frobenius_penalty(
    domains: Sequence[Domain],
    head: nn.Module,
    alpha: float = 1e-3,
    beta: float = 5e-3,
    *,
    loss: Loss = "cross_entropy",
    allow_single: bool = False,
) -> Tensor:
    """R = (1/E) Σ_e [ α ‖H_e - H̄‖_F² + β ‖g_e - ḡ‖² ]: the whole Hessian, without forming it.

    For a linear head H_e - H̄ = Σ_i w_i S_i ⊗ a_i a_iᵀ over all examples, so that its squared norm is wᵀ M w with
    M_ij = ⟨S_i, S_j⟩ (a_i · a_j)², an (N, N) matrix whatever the number of parameters.

    Parameters
    ----------
    domains, head, loss, allow_single
        As in `hgp_penalty`.
    alpha : float, default 1e-3
        Weight of the curvature. This penalty is not in the paper; the default is that of `hutchinson_penalty`, of which
        it is the counterpart with off-diagonal entries.
    beta : float, default 5e-3
        Weight of the gradient.

    Returns
    -------
    Tensor, shape ()
        A difference of sums of the size of ‖H_e‖_F²: its rounding error is some 1e-7 of that in float32. As for
        `hutchinson_penalty`, holding means fixed would not change the gradient.

    Raises
    ------
    ArgumentError
        If a weight is negative, there is one domain, one is empty, a target is out of range, or the loss is unknown.
    ArgumentTypeError
        If the head is no module or a domain is no pair of tensors.
    ShapeError
        If features, targets and head do not fit together.
    MemoryLimitError
        If the head is not linear (or the loss a function) and has more than 4096 parameters: its Hessians are formed.

    Notes
    -----
    Linear head: O(N² (P + K)) work, O(N²) memory.
    """
    check_weights("hessian_frobenius_penalty", alpha, beta)
    require_several("hessian_frobenius_penalty", domains, allow_single)
    return frobenius_terms(head_curvatures("hessian_frobenius_penalty", domains, head, loss)).weighted(alpha, beta)


def hgp_terms(
    curvatures: Sequence[HeadCurvature], *, detach_mean: bool = True, average: Average | None = None
) -> AlignmentTerms:
    """Compute the parts of `hgp_penalty`.

    Parameters
    ----------
    curvatures : sequence of HeadCurvature
        One a domain.
    detach_mean, average
        As in `hgp_penalty`.

    Returns
    -------
    AlignmentTerms
        Unweighted.

    Raises
    ------
    ArgumentError
        If ``average`` comes with ``detach_mean=False``: gradients do not pass through another process.
    """
    if average is not None and not detach_mean:
        raise ArgumentError("hgp_penalty: average needs detach_mean=True, gradients do not pass between processes")
    gradients = [c.gradient() for c in curvatures]
    mean_gradient = _mean(gradients, average)
    products = [c.product(g) for c, g in zip(curvatures, gradients, strict=True)]
    with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_mean):
        mean_product = _mean([c.product(mean_gradient) for c in curvatures], average)
    return AlignmentTerms(_spread(products, mean_product), _spread(gradients, mean_gradient.detach()))


def hutchinson_terms(
    curvatures: Sequence[HeadCurvature],
    *,
    method: DiagonalMethod = "exact",
    num_probes: int = 300,
    common_probes: bool = True,
    average: Average | None = None,
    generator: Generator | None = None,
) -> AlignmentTerms:
    """Compute the parts of `hutchinson_penalty`.

    Parameters
    ----------
    curvatures : sequence of HeadCurvature
        One a domain.
    method, num_probes, common_probes, average, generator
        As in `hutchinson_penalty`.

    Returns
    -------
    AlignmentTerms
        Unweighted.

    Raises
    ------
    ArgumentError
        If the method is unknown or ``num_probes < 2``.
    """
    if method not in ("exact", "hutchinson"):
        raise ArgumentError(f"hutchinson_penalty: method must be exact or hutchinson, got {method!r}")
    gradients = [c.gradient() for c in curvatures]
    if method == "exact":
        diagonals = [c.diagonal() for c in curvatures]
    else:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device if generator else "cpu"))
        diagonals = [
            hutchinson_diagonal(
                c.hessian(), num_probes, generator=torch.Generator().manual_seed(seed + e * (not common_probes))
            ).value
            for e, c in enumerate(curvatures)
        ]
    return AlignmentTerms(_about_mean(diagonals, average), _about_mean(gradients, average))


def frobenius_terms(curvatures: Sequence[HeadCurvature]) -> AlignmentTerms:
    """Compute the parts of `hessian_frobenius_penalty`.

    Parameters
    ----------
    curvatures : sequence of HeadCurvature
        One a domain.

    Returns
    -------
    AlignmentTerms
        Unweighted.
    """
    gradients = [c.gradient() for c in curvatures]
    gradient = _about_mean(gradients)
    linear = [c for c in curvatures if isinstance(c, LinearHead)]
    if len(linear) < len(curvatures):
        return AlignmentTerms(_about_mean([dense_hessian(c) for c in curvatures]), gradient)
    kernel = _hessian_kernel(linear)
    # row e: weights of the examples in H_e - H̄
    share = torch.block_diag(*[c.features.new_full((1, len(c.features)), 1 / len(c.features)) for c in linear])
    weights = share - share.mean(0)
    return AlignmentTerms(((weights @ kernel) * weights).sum() / len(linear), gradient)


def check_weights(call: str, alpha: float, beta: float) -> None:
    """Refuse negative weights.

    Parameters
    ----------
    call : str
        The caller, for the message.
    alpha, beta : float
        Weights.

    Raises
    ------
    ArgumentError
        If one is negative or not finite.
    """
    for name, weight in (("alpha", alpha), ("beta", beta)):
        if not 0 <= weight < float("inf"):
            raise ArgumentError(f"{call}: expected {name} >= 0 and finite, got {weight}")


def _mean(tensors: Sequence[Tensor], average: Average | None) -> Tensor:
    mean = torch.stack(list(tensors)).mean(0)
    return mean if average is None else average(mean.detach())


def _about_mean(tensors: Sequence[Tensor], average: Average | None = None) -> Tensor:
    # deviations from a mean sum to zero, so no gradient is lost with its graph, only work
    return _spread(tensors, _mean(tensors, average).detach())


def _spread(tensors: Sequence[Tensor], mean: Tensor) -> Tensor:
    return (torch.stack(list(tensors)) - mean).square().sum() / len(tensors)


def _hessian_kernel(heads: Sequence[LinearHead]) -> Tensor:
    # M_ij = ⟨S_i, S_j⟩ (a_i · a_j)², inner products of the examples' Hessians, over all domains in turn
    features = torch.cat([head.features for head in heads])
    inner = features @ features.mT + float(heads[0].bias)
    return heads[0].loss.curve_gram(torch.cat([head.logits for head in heads])) * inner.square()
