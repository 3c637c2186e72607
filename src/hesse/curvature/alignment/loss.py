"""The training loss of several domains with an alignment penalty on its head, with warm-up and rescaling.

    (L + m_t R) / s_t,   L = (1/E) Σ_e L_e

R is a penalty with weights α, β; m_t scales them during the warm-up; s_t keeps the loss at the scale of L.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from hesse.curvature.alignment._losses import output_loss
from hesse.curvature.alignment._precision import without_autocast
from hesse.curvature.alignment.domains import Domain, HeadCurvature, Loss, head_curvatures, require_several
from hesse.curvature.alignment.linear_head import DiagonalMethod
from hesse.curvature.alignment.penalties import (
    AlignmentTerms,
    Average,
    check_weights,
    frobenius_terms,
    hgp_terms,
    hutchinson_terms,
)
from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["HessianAlignmentLoss", "Penalty", "PenaltyName"]

PenaltyName = Literal["hgp", "hutchinson", "frobenius"]
_DEFAULT_WEIGHTS: dict[str, tuple[float, float]] = {
    "hgp": (1e-4, 5e-3),
    "hutchinson": (1e-3, 5e-3),
    "frobenius": (1e-3, 5e-3),
}
_COLLAPSED = 1e-6  # variance of features below which nothing is left to align


class Penalty(Protocol):
    """A penalty of another kind, such as `irm_penalty`."""

    def __call__(self, domains: Sequence[Domain], head: nn.Module, *, loss: Loss, allow_single: bool) -> Tensor:
        """Compute a scalar from features and targets."""
        ...


class HessianAlignmentLoss(nn.Module):
    """Loss of a classifier on several domains plus a penalty that makes the head's gradient and Hessian agree.

    Parameters
    ----------
    head : nn.Module
        From features to logits, usually the last `torch.nn.Linear`; any submodule that ends in the logits will do. Its
        parameters stay with their owner: this module holds none of its own.
    loss : str or callable, default "cross_entropy"
        As in `hgp_penalty`.
    penalty : {"hgp", "hutchinson", "frobenius"} or callable, default "hgp"
        Or a function like `irm_penalty`, weighted by ``alpha``.
    alpha, beta : float, optional
        Weights λ of curvature and gradient. Defaults, from the paper's DomainBed runs: 1e-4 and 5e-3 for "hgp", 1e-3
        and 5e-3 for the others; for a function alpha has to be given, and beta left out.
    anneal_steps : int, default 0
        Steps of warm-up, 190 of 501 in the paper's Colored MNIST: a large weight from the start makes the features
        collapse to constants.
    anneal_weight : float, default 1.0
        During the warm-up α and β are scaled so that the larger is this.
    rescale : bool, default True
        Divide the whole loss by the larger of the weights in force, where that is above 1, so that the steps of Adam
        keep their size. Divide a regulariser of your own by ``parts["scale"]`` too.
    detach_mean : bool, default True
        As in `hgp_penalty`; used by "hgp" alone.
    method, num_probes, common_probes, generator
        As in `hutchinson_penalty`; used by "hutchinson" alone.
    average : callable, optional
        As in `hgp_penalty`; for "hgp" and "hutchinson".
    allow_single : bool, default False
        Accept one domain.

    Raises
    ------
    ArgumentError
        If a weight is negative or the number of steps is, an option is unknown, or ``average`` does not go with the
        penalty.
    ArgumentTypeError
        If the head is no module.

    References
    ----------
    S. Hemati, G. Zhang, A. Estiri, X. Chen (2023), ICCV, arXiv 2308.11778. The schedule is that of M. Arjovsky et al.
    (2019), arXiv 1907.02893.

    Examples
    --------
    >>> head = nn.Linear(8, 3)
    >>> criterion = HessianAlignmentLoss(head, alpha=1.0, beta=1.0)
    >>> domains = [(torch.randn(5, 8), torch.randint(3, (5,))) for _ in range(2)]
    >>> loss, parts = criterion(domains, step=0)
    >>> bool(loss >= parts["loss"])
    True
    """

    def __init__(
        self,
        head: nn.Module,
        loss: Loss = "cross_entropy",
        penalty: PenaltyName | Penalty = "hgp",
        alpha: float | None = None,
        beta: float | None = None,
        anneal_steps: int = 0,
        anneal_weight: float = 1.0,
        rescale: bool = True,
        *,
        detach_mean: bool = True,
        method: DiagonalMethod = "exact",
        num_probes: int = 300,
        common_probes: bool = True,
        generator: Generator | None = None,
        average: Average | None = None,
        allow_single: bool = False,
    ) -> None:
        super().__init__()
        call = "HessianAlignmentLoss"
        if not isinstance(head, nn.Module):
            raise ArgumentTypeError(f"{call}: head must be a module, got {type(head).__name__}")
        if not callable(loss):
            output_loss(call, loss)
        if method not in ("exact", "hutchinson"):
            raise ArgumentError(f"{call}: method must be exact or hutchinson, got {method!r}")
        if not callable(penalty) and penalty not in _DEFAULT_WEIGHTS:
            raise ArgumentError(
                f"{call}: penalty must be one of {', '.join(_DEFAULT_WEIGHTS)}, or a function; got {penalty!r}"
            )
        if callable(penalty):
            if alpha is None or beta:
                raise ArgumentError(f"{call}: a function as penalty has one weight, alpha, which must be given")
            defaults = (0.0, 0.0)
        else:
            defaults = _DEFAULT_WEIGHTS[penalty]
        self.alpha = defaults[0] if alpha is None else alpha
        self.beta = defaults[1] if beta is None else beta
        check_weights(call, self.alpha, self.beta)
        if anneal_steps < 0 or not anneal_weight >= 0:
            raise ArgumentError(
                f"{call}: expected anneal_steps, anneal_weight >= 0, got {anneal_steps}, {anneal_weight}"
            )
        if average is not None and (penalty not in ("hgp", "hutchinson") or not detach_mean):
            raise ArgumentError(f"{call}: average goes with hgp and hutchinson, and with detach_mean=True")
        self._head = (head,)  # in a tuple, so that its parameters are not listed twice
        self.loss: Loss = loss
        self.penalty: PenaltyName | Penalty = penalty
        self.anneal_steps, self.anneal_weight, self.rescale = anneal_steps, anneal_weight, rescale
        self.method: DiagonalMethod = method
        self.detach_mean, self.num_probes = detach_mean, num_probes
        self.common_probes, self.generator, self.average = common_probes, generator, average
        self.allow_single = allow_single or average is not None

    @property
    def head(self) -> nn.Module:
        """The head, as it was given."""
        return self._head[0]

    @without_autocast
    def forward(self, domains: Sequence[Domain], step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss to minimise.

        Parameters
        ----------
        domains : sequence of (features (N_e, P), targets)
            Features with the graph of the network that made them.
        step : int, default 0
            Number of optimiser steps made, for the warm-up.

        Returns
        -------
        loss : Tensor, shape ()
            (L + m_t R) / s_t.
        parts : dict of str to Tensor, shapes ()
            Detached: "loss" L, "curvature" and "gradient" the unweighted parts of R (or "penalty" of a function),
            "weighted" m_t R, "scale" s_t, "feature_variance" the variance of a feature over all examples, averaged.

        Raises
        ------
        ArgumentError
            If there is one domain, one is empty, a target is out of range, or ``step < 0``.
        ArgumentTypeError
            If a domain is no pair of tensors.
        ShapeError
            If features, targets and head do not fit together.

        Warns
        -----
        RuntimeWarning
            If the features have collapsed to constants (variance below 1e-6): lower the weights or warm up for longer.
        """
        call = "HessianAlignmentLoss"
        if step < 0:
            raise ArgumentError(f"{call}: expected step >= 0, got {step}")
        require_several(call, domains, self.allow_single)
        curvatures = head_curvatures(call, domains, self.head, self.loss)
        loss = torch.stack([c.value() for c in curvatures]).mean()
        parts: dict[str, Tensor] = {"loss": loss}
        if callable(self.penalty):
            parts["penalty"] = self.penalty(domains, self.head, loss=self.loss, allow_single=self.allow_single)
            weighted = self.alpha * parts["penalty"]
        else:
            terms = self._terms(curvatures)
            parts |= terms._asdict()
            weighted = terms.weighted(self.alpha, self.beta)
        factor, scale = self._schedule(step)
        parts["weighted"] = weighted * factor
        parts["scale"] = loss.new_tensor(scale)
        parts["feature_variance"] = _feature_variance(domains)
        if parts["feature_variance"] < _COLLAPSED:
            warnings.warn(
                f"{call}: the features have collapsed to constants (variance {float(parts['feature_variance']):.1e}); "
                "lower alpha and beta, or raise anneal_steps",
                RuntimeWarning,
                stacklevel=3,
            )
        total = (loss + parts["weighted"]) / scale
        return total, {name: part.detach() for name, part in parts.items()}

    def _schedule(self, step: int) -> tuple[float, float]:
        # what the penalty is multiplied by, and what the whole loss is divided by
        full = max(self.alpha, self.beta)
        warm = step < self.anneal_steps and full > 0
        in_force = self.anneal_weight if warm else full
        return in_force / full if warm else 1.0, max(1.0, in_force) if self.rescale else 1.0

    def _terms(self, curvatures: Sequence[HeadCurvature]) -> AlignmentTerms:
        if self.penalty == "hgp":
            return hgp_terms(curvatures, detach_mean=self.detach_mean, average=self.average)
        if self.penalty == "hutchinson":
            return hutchinson_terms(
                curvatures,
                method=self.method,
                num_probes=self.num_probes,
                common_probes=self.common_probes,
                average=self.average,
                generator=self.generator,
            )
        return frobenius_terms(curvatures)


def _feature_variance(domains: Sequence[Domain]) -> Tensor:
    # of a feature over all examples, averaged over features
    flat = torch.cat([features.detach().flatten(1) for features, _ in domains])
    return flat.to(torch.promote_types(flat.dtype, torch.float32)).var(0, correction=0).mean()
