"""Inputs made more like N(0, I), as the theory of the layerwise learner wants them.

Shapes: B points of d coordinates.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError

__all__ = ["WhitenName", "Whitening"]

WhitenName = Literal["zca", "gaussianize"]


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """x -> (quantile(x) - mean) C^(-1/2), each step left out if it was not asked for."""

    sorted: Tensor | None  # (N, d): training values in order
    mean: Tensor | None  # (d,)
    root: Tensor | None  # (d, d): C^(-1/2), symmetric

    @classmethod
    def of(cls, x: Tensor, name: WhitenName | None) -> "Whitening":
        """Learn it from training inputs.

        Parameters
        ----------
        x : Tensor, shape (N, d)
            Inputs.
        name : {"zca", "gaussianize"} or None
            "zca": mean 0 and covariance I by the symmetric root; directions of no variance stay at 0. "gaussianize":
            each coordinate through its ranks to a normal law first. None: nothing.

        Returns
        -------
        Whitening
            Fixed from here on.

        Raises
        ------
        ArgumentError
            If the name is unknown.
        """
        if name is None:
            return cls(None, None, None)
        if name not in ("zca", "gaussianize"):
            raise ArgumentError(f"whiten: expected False, 'zca' or 'gaussianize', got {name!r}")
        ordered = x.sort(0).values if name == "gaussianize" else None
        y = x if ordered is None else _to_normal(x, ordered)
        mean = y.mean(0)
        values, Q = torch.linalg.eigh((y - mean).T @ (y - mean) / len(y))
        flat = values <= 1e-12 * values[-1].clamp(min=1e-300)
        inverse = torch.where(flat, torch.zeros_like(values), values.clamp(min=1e-300).rsqrt())
        return cls(ordered, mean, (Q * inverse) @ Q.T)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it.

        Parameters
        ----------
        x : Tensor, shape (B, d)
            Inputs.

        Returns
        -------
        Tensor, shape (B, d)
            Whitened.
        """
        if self.mean is None or self.root is None:
            return x
        y = x if self.sorted is None else _to_normal(x, self.sorted)
        return (y - self.mean) @ self.root


def _to_normal(x: Tensor, ordered: Tensor) -> Tensor:
    # the rank among the training values, ties at the middle, as a quantile of N(0, 1)
    columns, mine = ordered.T.contiguous(), x.T.contiguous()
    rank = (torch.searchsorted(columns, mine) + torch.searchsorted(columns, mine, right=True)) / 2
    return torch.special.ndtri(((rank + 0.5) / (len(ordered) + 1)).to(x.dtype)).T
