"""Largest stable learning rates, how they scale with the batch size, and least damping, from measured curvature noise.

A step with batch curvature H_B from an error along the eigenvector v multiplies its mean square by

    E‖(I - αH_B) v‖² = 1 - 2αl + α²(l² + s²/b),        so that  α <= 2 / (l + c/b),  c = s²/l,  1/b = 1/B - 1/N

linear in B while noise dominates, 2/l where it does not; the change is at the critical batch size c/l.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.curvature.batch_spectrum import inverse_effective_batch
from hesse.curvature.noise import CurvatureNoise
from hesse.errors import ArgumentError

__all__ = [
    "MinimalDamping",
    "critical_batch_size",
    "max_learning_rate",
    "min_damping",
    "scale_learning_rate",
    "stable_learning_rate",
]

Optimizer = Literal["sgd", "adaptive"]
ScalingRule = Literal["sgd", "linear", "sqrt"]
RateModel = Literal["directional", "isotropic"]


@dataclass(frozen=True, slots=True)
class MinimalDamping:
    """Least damping of a preconditioned step, by what it must hold down; float64, of the shape of the batch sizes."""

    bulk: Tensor  # against the edge of the noise in all directions, falls as 1/√b
    spike: Tensor  # against the noise along the leading eigenvector, falls as 1/b

    @property
    def value(self) -> Tensor:
        """The larger of the two, which is the one to use."""
        return torch.maximum(self.bulk, self.spike)


def stable_learning_rate(
    eigenvalue: float | Tensor, variance: float | Tensor, inverse_batch: float | Tensor, *, momentum: float = 0.0
) -> Tensor:
    """α = 2(1 + ρ) / (l + (v/(b l)) (1 + ρ)/(1 - ρ)): where the mean square of heavy ball starts to grow.

    Exact for one coordinate x ← x - αh x + ρ(x - x₋) with h independent from step to step, of mean l and variance v/b.
    Where noise dominates, momentum divides the largest rate by what it multiplies the effective rate α/(1 - ρ) with;
    the criterion for a fixed matrix, αl' < 2(1 + ρ), would allow (1 + ρ)/(1 - ρ) times more there, and diverges.

    Parameters
    ----------
    eigenvalue : float or Tensor
        l > 0, mean curvature along the coordinate.
    variance : float or Tensor
        v >= 0, variance of the curvature between single examples.
    inverse_batch : float or Tensor
        1/b >= 0, see `hesse.curvature.batch_spectrum.inverse_effective_batch`.
    momentum : float, default 0.0
        0 <= ρ < 1, in torch's convention: the rate multiplies the accumulated gradients, not their average.

    Returns
    -------
    Tensor of float64
        Of the broadcast shape; at the value itself the mean square neither grows nor falls.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> stable_learning_rate(1.0, 0.0, 1.0), stable_learning_rate(1.0, 3.0, 1.0)
    (tensor(2., dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    value, spread, inverse = (torch.as_tensor(x, dtype=torch.float64) for x in (eigenvalue, variance, inverse_batch))
    if not bool((value > 0).all()):
        raise ArgumentError(
            f"stable_learning_rate: expected eigenvalue > 0, got {eigenvalue}; other curvature sets no limit"
        )
    if not bool((spread >= 0).all()) or not bool((inverse >= 0).all()):
        raise ArgumentError(
            f"stable_learning_rate: expected variance >= 0 and inverse_batch >= 0, got {variance} and {inverse_batch}"
        )
    _check_momentum("stable_learning_rate", momentum)
    return 2 * (1 + momentum) / (value + spread * inverse / value * ((1 + momentum) / (1 - momentum)))


def max_learning_rate(
    noise: CurvatureNoise,
    batch_size: int | Tensor,
    *,
    optimizer: Optimizer = "sgd",
    momentum: float = 0.0,
    model: RateModel = "directional",
    kappa: float = 1.0,
) -> Tensor:
    """Largest learning rate that does not blow up the loss at this point, for any batch size.

    Parameters
    ----------
    noise : CurvatureNoise
        Measured where training is, or shall go on; sharpness changes along the way.
    batch_size : int or Tensor
        B, one or several sizes, 1 <= B <= N.
    optimizer : {"sgd", "adaptive"}, default "sgd"
        "sgd": `stable_learning_rate` along the leading eigenvector; rises in proportion to B, then saturates.
        "adaptive": for methods that scale steps by curvature or gradient size (Adam, RMSprop), kappa / √(Pσ²/b); rises
        as √B, without limit as B approaches N. The proportionality is the paper's argument, that the preconditioner
        takes the outliers away and leaves the edge of the noise; its constant depends on the preconditioner.
    momentum : float, default 0.0
        0 <= ρ < 1, for "sgd".
    model : {"directional", "isotropic"}, default "directional"
        Variance along each eigenvector, or Pσ² for all, which is far too hopeful for networks; for "sgd".
    kappa : float, default 1.0
        Constant of "adaptive", to be fitted once for an optimiser and a network.

    Returns
    -------
    Tensor of float64
        Of the shape of ``batch_size``. A bound of the linearised dynamics, not the best rate; half of it is usual.

    Raises
    ------
    ArgumentError
        If an option is out of range, or the largest eigenvalue is not positive.

    References
    ----------
    D. Granziol, S. Zohren, S. Roberts (2022), JMLR 23, arXiv 2006.09092.
    """
    call = "max_learning_rate"
    inverse = inverse_effective_batch(call, batch_size, noise.num_examples).to(noise.eigenvalues.device)
    if optimizer == "adaptive":
        if not kappa > 0:
            raise ArgumentError(f"{call}: expected kappa > 0, got {kappa}")
        return kappa / (noise.p_sigma2 * inverse).sqrt()
    if optimizer != "sgd":
        raise ArgumentError(f"{call}: optimizer must be 'sgd' or 'adaptive', got {optimizer!r}")
    top, variance = _leading(call, noise, model)
    return stable_learning_rate(top, variance, inverse, momentum=momentum)


def critical_batch_size(noise: CurvatureNoise, *, model: RateModel = "directional", momentum: float = 0.0) -> Tensor:
    """B* at which noise and mean curvature limit the learning rate alike; larger batches buy little more speed.

    b* = (v/l²) (1 + ρ)/(1 - ρ) along the leading eigenvector, and 1/B* = 1/b* + 1/N.

    Parameters
    ----------
    noise : CurvatureNoise
        As measured.
    model : {"directional", "isotropic"}, default "directional"
        As in `max_learning_rate`.
    momentum : float, default 0.0
        0 <= ρ < 1; momentum makes noise count for more.

    Returns
    -------
    Tensor of float64, shape ()
        In examples, below N; below one where even single examples are not noisy.

    Raises
    ------
    ArgumentError
        If the largest eigenvalue is not positive, or an option is out of range.
    """
    top, variance = _leading("critical_batch_size", noise, model)
    _check_momentum("critical_batch_size", momentum)
    effective = variance / top.square() * ((1 + momentum) / (1 - momentum))
    return effective / (1 + effective / noise.num_examples)


def scale_learning_rate(
    lr: float,
    old_batch_size: int | Tensor,
    new_batch_size: int | Tensor,
    *,
    rule: ScalingRule = "sgd",
    noise: CurvatureNoise | None = None,
    momentum: float = 0.0,
    model: RateModel = "directional",
) -> Tensor:
    """Carry a tuned learning rate to another batch size, at the same share of the largest stable one.

    Parameters
    ----------
    lr : float
        Tuned at ``old_batch_size``.
    old_batch_size, new_batch_size : int or Tensor
        B₀ and B.
    rule : {"sgd", "linear", "sqrt"}, default "sgd"
        "sgd": by the ratio of `max_learning_rate`, linear for small batches and flat beyond the critical size.
        "linear": lr · B/B₀. "sqrt": lr · √(b/b₀), for Adam and its like.
    noise : CurvatureNoise, optional
        Needed for "sgd". With it "sqrt" counts examples without replacement, b for B.
    momentum : float, default 0.0
        The same before and after; for "sgd".
    model : {"directional", "isotropic"}, default "directional"
        For "sgd".

    Returns
    -------
    Tensor of float64
        Of the shape of the batch sizes; `float` it for an optimiser.

    Raises
    ------
    ArgumentError
        If an option is out of range, ``noise`` is missing, or a batch has all N examples under "sqrt".

    Examples
    --------
    >>> float(scale_learning_rate(0.1, 128, 512, rule="linear"))
    0.4
    """
    call = "scale_learning_rate"
    if not lr > 0:
        raise ArgumentError(f"{call}: expected lr > 0, got {lr}")
    if rule not in ("sgd", "linear", "sqrt"):
        raise ArgumentError(f"{call}: rule must be 'sgd', 'linear' or 'sqrt', got {rule!r}")
    old, new = (torch.as_tensor(size, dtype=torch.float64) for size in (old_batch_size, new_batch_size))
    if not bool((old >= 1).all()) or not bool((new >= 1).all()):
        raise ArgumentError(f"{call}: expected batch sizes >= 1, got {old_batch_size} and {new_batch_size}")
    if rule == "linear":
        return lr * new / old
    if noise is None:
        if rule == "sgd":
            raise ArgumentError(
                f"{call}: rule='sgd' needs noise, as curvature_noise measures it; or take rule='linear'"
            )
        return lr * (new / old).sqrt()
    if rule == "sqrt":
        before = inverse_effective_batch(call, old, noise.num_examples)
        after = inverse_effective_batch(call, new, noise.num_examples)
        if not bool((before > 0).all()) or not bool((after > 0).all()):
            raise ArgumentError(f"{call}: rule='sqrt' has no limit for a batch of all {noise.num_examples} examples")
        return lr * (before / after).sqrt()
    before = max_learning_rate(noise, old, momentum=momentum, model=model)
    return lr * max_learning_rate(noise, new, momentum=momentum, model=model) / before


def min_damping(lr: float, noise: CurvatureNoise, batch_size: int | Tensor) -> MinimalDamping:
    """Least δ for steps α(H + δI)⁻¹g: below it the curvature noise of a batch alone makes them diverge.

    bulk: α√(Pσ²/b), where α · edge / δ = 2. spike: α s²/(2 b l), where the excess of the batch's curvature
    does the same along the leading eigenvector.

    Parameters
    ----------
    lr : float
        α > 0.
    noise : CurvatureNoise
        As measured.
    batch_size : int or Tensor
        B, one or several sizes.

    Returns
    -------
    MinimalDamping
        In units of curvature; zero for the full batch. ``value`` is the larger part.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or the largest eigenvalue is not positive.

    References
    ----------
    D. Granziol, S. Zohren, S. Roberts (2022), JMLR 23, arXiv 2006.09092, for the proportionality to α/B.
    """
    if not lr > 0:
        raise ArgumentError(f"min_damping: expected lr > 0, got {lr}")
    inverse = inverse_effective_batch("min_damping", batch_size, noise.num_examples).to(noise.eigenvalues.device)
    top, variance = _leading("min_damping", noise, "directional")
    return MinimalDamping(lr * (noise.p_sigma2 * inverse).sqrt(), lr / 2 * inverse * variance / top)


def _leading(call: str, noise: CurvatureNoise, model: RateModel) -> tuple[Tensor, Tensor]:
    if model not in ("directional", "isotropic"):
        raise ArgumentError(f"{call}: model must be 'directional' or 'isotropic', got {model!r}")
    top = noise.eigenvalues[0]
    if not float(top) > 0:
        raise ArgumentError(
            f"{call}: no measured direction has positive curvature (largest {float(top):.3e}), so none limits the "
            "step; take matrix='ggn', or measure after some training"
        )
    return top, noise.directional[0] if model == "directional" else noise.p_sigma2


def _check_momentum(call: str, momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise ArgumentError(f"{call}: expected 0 <= momentum < 1, got {momentum}")
