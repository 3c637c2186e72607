"""Test functions ψ with their gradients: coordinates, products of two, random waves.

Shapes: B points of D coordinates, F waves, M = D + D (D + 1) / 2 + F features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = ["Features", "random_features"]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """ψ: the coordinates, their products x_i x_j (i <= j), and cos(w_k · x + b_k)."""

    frequencies: Tensor  # (F, D): w
    phases: Tensor  # (F,): b

    @property
    def count(self) -> int:
        """M = D + D (D + 1) / 2 + F."""
        d = self.frequencies.shape[1]
        return d + d * (d + 1) // 2 + len(self.frequencies)

    def _parts(self, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # linear (D,), the quadratic form's upper triangle (D, D), and waves (F,)
        d = self.frequencies.shape[1]
        linear, quadratic, waves = c.split([d, d * (d + 1) // 2, len(self.frequencies)])
        rows, columns = torch.triu_indices(d, d, device=c.device)
        triangle = c.new_zeros(d, d).index_put((rows, columns), quadratic)
        return linear, triangle, waves

    def _slopes(self, x: Tensor) -> Tensor:
        # derivative of each wave by its argument, (B, F)
        return -(x @ self.frequencies.T + self.phases).sin()

    def value(self, x: Tensor, c: Tensor) -> Tensor:
        """Evaluate Σ_j c_j ψ_j.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.
        c : Tensor, shape (M,)
            Coefficients.

        Returns
        -------
        Tensor, shape (B,)
            O(B D (D + F)), as are the gradient and the projection.
        """
        linear, triangle, waves = self._parts(c)
        return x @ linear + ((x @ triangle) * x).sum(1) + (x @ self.frequencies.T + self.phases).cos() @ waves

    def gradient(self, x: Tensor, c: Tensor) -> Tensor:
        """Evaluate Σ_j c_j ∇ψ_j.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.
        c : Tensor, shape (M,)
            Coefficients.

        Returns
        -------
        Tensor, shape (B, D)
            The gradient of `value`.
        """
        linear, triangle, waves = self._parts(c)
        return linear + x @ (triangle + triangle.T) + (self._slopes(x) * waves) @ self.frequencies

    def project(self, x: Tensor, v: Tensor) -> Tensor:
        """Average v · ∇ψ_j over the points.

        Parameters
        ----------
        x, v : Tensor, shape (B, D)
            Points, and a vector at each.

        Returns
        -------
        Tensor, shape (M,)
            One mean a feature.
        """
        d = x.shape[1]
        rows, columns = torch.triu_indices(d, d, device=x.device)
        cross = v.T @ x
        waves = (self._slopes(x) * (v @ self.frequencies.T)).sum(0)
        return torch.cat([v.sum(0), (cross + cross.T)[rows, columns], waves]) / len(x)

    def rows(self, x: Tensor) -> Tensor:
        """Evaluate every ∇ψ_j.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.

        Returns
        -------
        Tensor, shape (B, D, M)
            All derivatives at once.
        """
        b, d = x.shape
        i, j = torch.triu_indices(d, d, device=x.device)
        eye = torch.eye(d, dtype=x.dtype, device=x.device)
        quadratic = x[:, j].unsqueeze(1) * eye[:, i] + x[:, i].unsqueeze(1) * eye[:, j]
        waves = self._slopes(x).unsqueeze(1) * self.frequencies.T
        return torch.cat([eye.expand(b, d, d), quadratic, waves], 2)

    def energy(self, x: Tensor) -> Tensor:
        """Average |∇ψ_j|² over the points.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.

        Returns
        -------
        Tensor, shape (M,)
            One mean a feature.
        """
        d = x.shape[1]
        rows, columns = torch.triu_indices(d, d, device=x.device)
        second = x.square().mean(0)
        quadratic = torch.where(rows == columns, 4 * second[rows], second[rows] + second[columns])
        waves = self._slopes(x).square().mean(0) * self.frequencies.square().sum(1)
        return torch.cat([torch.ones_like(second), quadratic, waves])


def random_features(count: int, length_scale: float, x: Tensor, generator: Generator | None = None) -> Features:
    """Draw waves with frequencies N(0, 1/length_scale²) and even phases.

    Parameters
    ----------
    count : int
        F.
    length_scale : float
        In units of x.
    x : Tensor, shape (B, D)
        Of the number of coordinates, dtype and device that are wanted.
    generator : torch.Generator, optional
        On that device. Default: torch's global generator.

    Returns
    -------
    Features
        With linear and quadratic terms beside the waves.
    """
    kind = {"dtype": x.dtype, "device": x.device, "generator": generator}
    frequencies = torch.randn(count, x.shape[1], **kind) / length_scale
    return Features(frequencies, 2 * math.pi * torch.rand(count, **kind))
