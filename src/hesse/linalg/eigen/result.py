"""What the eigenvalue solvers return."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["EigenResult"]


@dataclass(frozen=True, slots=True)
class EigenResult:
    """K approximate eigenpairs, and how well each satisfies A u = λ u."""

    eigenvalues: Tensor  # (K,), real where A is symmetric
    eigenvectors: Tensor  # (N, K), unit columns
    residuals: Tensor  # (K,), ‖A u - λ u‖, of a final product if any; a symmetric A has an eigenvalue that close to λ
    converged: bool  # whether every residual is within the tolerance
    num_steps: int  # iterations: products for a single vector, blocks or restarts otherwise
    num_matvecs: int  # products with A, the final check, if any, among them
