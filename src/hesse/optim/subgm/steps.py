"""Lengths of the sub-gradient steps: adaptive, geometric, and constant until the loss has stopped falling."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.linalg import spectral_norm

__all__ = ["Normalization", "StepName", "StepRule", "has_stalled", "subgradient_norm"]

StepName: TypeAlias = Literal["plateau", "geometric", "adaptive"]
Normalization: TypeAlias = Literal["spectral", "frobenius"]
StepFunction: TypeAlias = Callable[[int, Tensor], Tensor | float]

_STALL = 0.99  # of the earlier median: an improvement below 1 % is none
_EXACT_ORDER = 128  # up to which all eigenvalues cost less than a power iteration's calls


@dataclass(frozen=True, slots=True)
class StepRule:
    """How long step t is: η_t of U ← U - η_t QU.

    * ``"plateau"``: η_t = eta0/‖Q‖ until the median loss of the last ``window`` steps is above 99 % of that of the
      window before; both are counted from where ‖U‖_F has passed 0.01 in units of the data, so that the flat start does
      not end it. From then on η_t falls by the factor ``decay`` a step. Needs to know neither rank nor conditioning.
    * ``"geometric"``: η_t = eta0 · decayᵗ/‖Q‖. The total eta0/(1 - decay) must exceed about √r κ · 2 log(1/init_scale),
      or the steps die out before the signal has grown.
    * ``"adaptive"``: η_t = eta0 · (π/2) · loss. For Gaussian measurements without noise or outliers this is gradient
      descent on ¼‖UUᵀ - X‖², which converges linearly for eta0 < 1/σ₁ in units of the data. Otherwise the loss keeps a
      floor and the steps do not die out.
    * a function ``(t, loss) -> η_t ‖Q‖``, the loss of shape (...), in units of the data.

    Parameters
    ----------
    kind : str or callable, default "plateau"
        One of these.
    eta0 : float, default 0.3
        First relative length, below 1: a factor in a direction of the signal grows by 1 + eta0 a step.
    decay : float, optional
        In (0, 1). Default: 0.99 for "plateau", which starts late, and 0.995 for "geometric", which must pay for the
        growth as well.
    window : int, default 50
        Steps to a median.
    normalize : {"spectral", "frobenius"}, default "spectral"
        The norm ‖Q‖; not used by "adaptive". Frobenius is cheaper and gives shorter steps.

    Raises
    ------
    ArgumentError
        If a value is out of range.
    """

    kind: StepName | StepFunction = "plateau"
    eta0: float = 0.3
    decay: float | None = None
    window: int = 50
    normalize: Normalization = "spectral"

    def __post_init__(self) -> None:
        if not callable(self.kind) and self.kind not in ("plateau", "geometric", "adaptive"):
            raise ArgumentError(
                f"StepRule: expected step 'plateau', 'geometric', 'adaptive' or a function, got {self.kind!r}"
            )
        if not (math.isfinite(self.eta0) and self.eta0 > 0):
            raise ArgumentError(f"StepRule: expected a finite eta0 > 0, got {self.eta0}")
        if self.decay is not None and not 0 < self.decay < 1:
            raise ArgumentError(f"StepRule: expected decay between 0 and 1, got {self.decay}")
        if isinstance(self.window, bool) or not isinstance(self.window, int):
            raise ArgumentTypeError(f"StepRule: expected an integer window, got {self.window!r}")
        if self.window < 1:
            raise ArgumentError(f"StepRule: expected window >= 1, got {self.window}")
        if self.normalize not in ("spectral", "frobenius"):
            raise ArgumentError(f"StepRule: expected normalize 'spectral' or 'frobenius', got {self.normalize!r}")

    @property
    def factor(self) -> float:
        """The decay in force: 1 where nothing decays."""
        if callable(self.kind) or self.kind == "adaptive":
            return 1.0
        return self.decay if self.decay is not None else 0.99 if self.kind == "plateau" else 0.995


def has_stalled(losses: Tensor, window: int) -> Tensor:
    """Compare the medians of the last two windows.

    Parameters
    ----------
    losses : Tensor, shape (T, ...)
        In order of time, T >= 2 · ``window``.
    window : int
        Length of one.

    Returns
    -------
    Tensor of bool, shape (...)
        Whether the later median is above 99 % of the earlier one.
    """
    before = losses[-2 * window : -window].median(dim=0).values
    return losses[-window:].median(dim=0).values > _STALL * before


def subgradient_norm(Q: Tensor, normalize: Normalization = "spectral") -> Tensor:
    """Measure symmetric matrices.

    Parameters
    ----------
    Q : Tensor, shape (..., d, d)
        Symmetric.
    normalize : {"spectral", "frobenius"}, default "spectral"
        Spectral: exact up to order 128, beyond that 20 power iterations from a fixed start, which never exceed it.

    Returns
    -------
    Tensor, shape (...)
        The norms.
    """
    if normalize == "frobenius":
        return torch.linalg.matrix_norm(Q)
    d = Q.shape[-1]
    if d <= _EXACT_ORDER:
        return torch.linalg.eigvalsh(Q).abs().amax(-1)
    stack = Q.reshape(-1, d, d)
    generator = torch.Generator(device=Q.device)
    norms = [
        spectral_norm(matrix, max_steps=20, tol=1e-2, generator=generator.manual_seed(0)).eigenvalues[0]
        if bool(matrix.any())
        else matrix.new_zeros(())
        for matrix in stack
    ]
    return torch.stack(norms).reshape(Q.shape[:-2])
