"""What a network for `hesse.pde.dcdm` is trained on and by: combinations of Ritz vectors, and the residual after one
exact line search.   Shapes: N unknowns, m Ritz vectors, K right-hand sides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.eigen.lanczos import lanczos
from hesse.linalg.operator import LinearOperator

__all__ = ["RitzSet", "dcdm_loss", "ritz_training_set"]

_LOW_WEIGHT = 9.0  # the paper's "90/10" mixture of low and high Ritz vectors


@dataclass(frozen=True, slots=True)
class RitzSet:
    """Approximate eigenpairs over the whole spectrum, and the distribution of right-hand sides made from them.

    Attributes
    ----------
    values : Tensor of float64, shape (m,)
        Ritz values, rising.
    vectors : Tensor, shape (N, m)
        Orthonormal Ritz vectors.
    num_low : int
        How many of the lowest ones are drawn with nine times the weight.
    """

    values: Tensor
    vectors: Tensor
    num_low: int

    def sample(self, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Draw right-hand sides b = Σ c_j q_j / ‖·‖ with c_j ~ N(0, 1), nine times that for the low ones.

        Parameters
        ----------
        num_samples : int
            K.
        generator : torch.Generator, optional
            Source of the coefficients, on any device. Default: torch's global generator.

        Returns
        -------
        Tensor, shape (N, K)
            Unit columns of the dtype of ``vectors``. O(N m K) operations.

        Raises
        ------
        ArgumentError
            If ``num_samples < 1``.
        """
        if num_samples < 1:
            raise ArgumentError(f"RitzSet.sample: expected num_samples >= 1, got {num_samples}")
        home = self.vectors.device if generator is None else generator.device
        weights = torch.randn(len(self.values), num_samples, generator=generator, dtype=torch.float64, device=home)
        weights[: self.num_low] *= _LOW_WEIGHT
        weights /= torch.linalg.vector_norm(weights, dim=0)  # the vectors are orthonormal: so is the norm of b
        return self.vectors @ weights.to(self.vectors)


def ritz_training_set(
    operator: LinearOperator,
    num_ritz: int = 400,
    *,
    margin: int | None = None,
    drop_below: float = 1e-8,
    dtype: torch.dtype = torch.float32,
    generator: Generator | None = None,
) -> RitzSet:
    """Find m Ritz pairs by m Lanczos steps from A g, g Gaussian, with full reorthogonalisation.

    Random right-hand sides are nearly all of high frequency, on which any direction does well; eigenvectors are out
    of reach at large N. Ritz vectors reach both ends of the spectrum for m products.

    Parameters
    ----------
    operator : LinearOperator, shape (N, N)
        A, symmetric positive semi-definite.
    num_ritz : int, default 400
        m <= N. The paper takes 10,000 at N = 64³.
    margin : int, optional
        How far the heavily weighted part reaches beyond the low half. Default: m // 20, the paper's ratio.
    drop_below : float, default 1e-8
        Ritz values below belong to the null space and are dropped, in the units of A.
    dtype : torch.dtype, default torch.float32
        Of the vectors kept; Lanczos itself runs in float64.
    generator : torch.Generator, optional
        Source of g. Default: torch's global generator.

    Returns
    -------
    RitzSet
        At most m pairs. O(N m²) operations and O(N m) memory, 8 bytes a number while Lanczos runs.

    Raises
    ------
    ArgumentError
        If ``num_ritz`` or ``margin`` is out of range, or no Ritz value is left.
    ShapeError
        If the operator is not square.
    """
    n = operator.shape[0]
    if operator.shape[1] != n:
        raise ShapeError(f"ritz_training_set: expected a square operator, got shape {operator.shape}")
    if not 1 <= num_ritz <= n:
        raise ArgumentError(f"ritz_training_set: expected 1 <= num_ritz <= {n}, got {num_ritz}")
    margin = num_ritz // 20 if margin is None else margin
    if not 0 <= margin <= num_ritz:
        raise ArgumentError(f"ritz_training_set: expected 0 <= margin <= {num_ritz}, got {margin}")
    double = operator.to(dtype=torch.float64)
    home = operator.device if generator is None else generator.device
    start = torch.randn(n, generator=generator, dtype=torch.float64, device=home).to(operator.device)
    state = lanczos(double, num_ritz, start=double @ start, generator=generator)
    if state.basis is None:
        raise ArgumentError("ritz_training_set: lanczos kept no basis")
    values, rotation = torch.linalg.eigh(state.tridiagonal()[0])
    keep = values > drop_below
    if not bool(keep.any()):
        raise ArgumentError(f"ritz_training_set: no Ritz value above drop_below={drop_below:g}; scale the operator")
    vectors = state.basis[:, :, 0].T @ rotation[:, keep]
    num_low = min(num_ritz // 2 + margin, int(keep.sum()))
    return RitzSet(values[keep], vectors.to(dtype), num_low)


def dcdm_loss(operator: LinearOperator, direction_fn: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """Mean over the right-hand sides of ‖b - α A d‖² / ‖b‖², with d = f(b) and α = dᵀb / dᵀA d.

    What is left of the squared residual after one exact line search from zero: 1 for a useless direction, 0 for the
    exact solution, above 1 possible; the scale of d cancels. Exact, with α differentiated through.

    Parameters
    ----------
    operator : LinearOperator, shape (N, N)
        A, symmetric positive semi-definite.
    direction_fn : callable
        f, from (..., N, K) to the same shape.
    b : Tensor, shape (..., N, K)
        Right-hand sides, no column zero.

    Returns
    -------
    Tensor, shape ()
        A direction with dᵀA d <= 0 counts as no step, that is with loss 1 and no gradient. One product with A.
    """
    d = direction_fn(b)
    image = operator @ d
    curvature = (d * image).sum(-2, keepdim=True)
    usable = curvature > 0
    alpha = torch.where(usable, (d * b).sum(-2, keepdim=True) / torch.where(usable, curvature, 1), 0)
    left = (b - alpha * image).square().sum(-2)
    return (left / b.square().sum(-2)).mean()
