"""Geometry of subspaces: the Grassmann manifold Gr(K, D), and the parameter that lives on it.

Shapes: a point is a matrix S (..., D, K) with orthonormal columns, K <= D; only its span counts. Stacks are allowed
everywhere. Tangent vectors H at S have SᵀH = 0; their length is the Frobenius norm, in radians.
"""

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ArgumentError, ShapeError

__all__ = [
    "GrassmannParameter",
    "grassmann_distance",
    "grassmann_exp",
    "grassmann_log",
    "grassmann_project",
    "orthonormalize",
    "principal_angles",
]


class GrassmannParameter(nn.Parameter):
    """A parameter that optimisers for manifolds recognise: each (D, K) matrix of it is a point of the Grassmannian.

    Parameters
    ----------
    data : Tensor, shape (..., D, K)
        Orthonormal columns; it is stored as it is. `GrassmannParameter.random` draws one.
    requires_grad : bool, default True
        As for any parameter. The gradient autograd leaves is Euclidean: see `grassmann_project`.
    """

    def __new__(cls, data: Tensor, requires_grad: bool = True) -> "GrassmannParameter":
        """Make the parameter.

        Parameters
        ----------
        data : Tensor, shape (..., D, K)
            Orthonormal columns.
        requires_grad : bool, default True
            As for any parameter.

        Returns
        -------
        GrassmannParameter
            Sharing the memory of ``data``.

        Raises
        ------
        ShapeError
            If there are more columns than rows.
        """
        _check("GrassmannParameter", data)
        return torch.Tensor._make_subclass(cls, data, requires_grad)

    def __reduce_ex__(self, protocol: int) -> tuple:
        # torch would rebuild a plain Parameter, and the mark would be lost on the way to another process
        return (GrassmannParameter, (self.data, self.requires_grad))

    @classmethod
    def random(
        cls,
        *shape: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: Generator | None = None,
    ) -> "GrassmannParameter":
        """Draw uniformly distributed subspaces.

        Parameters
        ----------
        *shape : int
            (..., D, K).
        dtype : torch.dtype, optional
            Default: torch's default dtype.
        device : torch.device or str, optional
            Default: torch's default device.
        generator : torch.Generator, optional
            Source of the numbers. Default: torch's global generator.

        Returns
        -------
        GrassmannParameter
            QR factor of a Gaussian matrix.

        Raises
        ------
        ShapeError
            If there are fewer than two dimensions, or more columns than rows.
        """
        if len(shape) < 2 or shape[-1] > shape[-2]:
            raise ShapeError(f"GrassmannParameter.random: expected shape (..., d, k) with k <= d, got {shape}")
        return cls(orthonormalize(torch.randn(*shape, dtype=dtype, device=device, generator=generator)))


def orthonormalize(matrix: Tensor) -> Tensor:
    """Replace the columns by an orthonormal basis of their span, near the columns if these are nearly orthonormal.

    Parameters
    ----------
    matrix : Tensor, shape (..., D, K)
        Linearly independent columns.

    Returns
    -------
    Tensor, shape (..., D, K)
        Q of the QR factorisation whose R has a positive diagonal: continuous, and the identity on orthonormal columns.
        ``orthonormalize(S + H)`` is a retraction, equal to `grassmann_exp` up to third order.
    """
    _check("orthonormalize", matrix)
    Q, R = torch.linalg.qr(matrix)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    signs = torch.where(diagonal.real < 0, -1.0, 1.0).to(Q.dtype)
    return Q * signs.unsqueeze(-2)


def grassmann_project(S: Tensor, G: Tensor) -> Tensor:
    """Project a matrix on the tangent space, H = (I - S Sᵀ) G: the Grassmann gradient from the Euclidean one.

    Parameters
    ----------
    S : Tensor, shape (..., D, K)
        Point.
    G : Tensor, shape (..., D, K)
        Any direction.

    Returns
    -------
    Tensor, shape (..., D, K)
        The part of G that moves the span.
    """
    _check("grassmann_project", S, G)
    return G - S @ (S.mH @ G)


def grassmann_exp(S: Tensor, H: Tensor, t: float | Tensor = 1.0) -> Tensor:
    """Follow the geodesic from S in direction H for time t: (S V cos(tΣ) + U sin(tΣ)) Vᵀ with H = U Σ Vᵀ.

    Parameters
    ----------
    S : Tensor, shape (..., D, K)
        Point.
    H : Tensor, shape (..., D, K)
        Tangent vector at S, SᵀH = 0.
    t : float or Tensor of shape (), default 1.0
        Time; t · ‖H‖ is the length of the path in radians.

    Returns
    -------
    Tensor, shape (..., D, K)
        Orthonormal to rounding. Zero directions are exact: H = 0 gives S.

    References
    ----------
    A. Edelman, T. Arias, S. Smith (1998), SIAM J. Matrix Anal. Appl. 20(2), theorem 2.3.
    """
    _check("grassmann_exp", S, H)
    U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
    angles = (sigma * t).unsqueeze(-2)
    return (S @ Vh.mH * torch.cos(angles) + U * torch.sin(angles)) @ Vh


def grassmann_log(S1: Tensor, S2: Tensor) -> Tensor:
    """Find the shortest tangent vector that leads from S1 to the span of S2.

    Parameters
    ----------
    S1, S2 : Tensor, shape (..., D, K)
        Points; the largest principal angle must be below π/2, beyond which the shortest path is not unique.

    Returns
    -------
    Tensor, shape (..., D, K)
        H with ``span(grassmann_exp(S1, H)) = span(S2)``; its singular values are the principal angles.

    Raises
    ------
    ArgumentError
        If some principal angle is π/2 to rounding.

    References
    ----------
    T. Bendokat, R. Zimmermann, P.-A. Absil (2024), Adv. Comput. Math. 50, algorithm 5.3, arXiv 2011.13699.
    """
    _check("grassmann_log", S1, S2)
    # Procrustes first: S2 turned to lie as near S1 as it can; what then sticks out of S1 has the sines as singular
    # values
    left, cosines, right_h = torch.linalg.svd(S2.mH @ S1, full_matrices=False)
    if bool((cosines < torch.finfo(cosines.dtype).eps ** 0.75).any()):
        raise ArgumentError("grassmann_log: a principal angle is π/2, where the shortest path is not unique")
    nearest = S2 @ (left @ right_h)
    U, sines, Vh = torch.linalg.svd(grassmann_project(S1, nearest), full_matrices=False)
    # both SVDs list the same angles, one by falling cosine, the other by falling sine
    angles = torch.atan2(sines, cosines.flip(-1))
    return U * angles.unsqueeze(-2) @ Vh


def principal_angles(S1: Tensor, S2: Tensor) -> Tensor:
    """Compute the angles between two subspaces, small ones to full precision.

    Parameters
    ----------
    S1 : Tensor, shape (..., D, K1)
        Orthonormal columns.
    S2 : Tensor, shape (..., D, K2)
        Orthonormal columns.

    Returns
    -------
    Tensor, shape (..., min(K1, K2))
        Rising, in [0, π/2] rad. From sines and cosines at once; arccos alone cannot tell an angle below √eps from zero.

    Raises
    ------
    ShapeError
        If the spaces have different dimension D.

    References
    ----------
    A. Björck, G. Golub (1973), Math. Comp. 27(123).
    """
    _check("principal_angles", S1)
    _check("principal_angles", S2)
    if S1.shape[-2] != S2.shape[-2]:
        raise ShapeError(f"principal_angles: subspaces of R^{S1.shape[-2]} and R^{S2.shape[-2]}")
    if S1.shape[-1] < S2.shape[-1]:
        S1, S2 = S2, S1
    inner = S1.mH @ S2
    cosines = torch.linalg.svdvals(inner)
    sines = torch.linalg.svdvals(S2 - S1 @ inner).flip(-1)
    return torch.atan2(sines, cosines)


def grassmann_distance(S1: Tensor, S2: Tensor) -> Tensor:
    """Measure the length of the shortest path, the root of the sum of squared principal angles.

    Parameters
    ----------
    S1, S2 : Tensor, shape (..., D, K)
        Points.

    Returns
    -------
    Tensor, shape (...)
        In radians, at most √K · π/2.
    """
    _check("grassmann_distance", S1, S2)
    return torch.linalg.vector_norm(principal_angles(S1, S2), dim=-1)


def _check(call: str, S: Tensor, other: Tensor | None = None) -> None:
    if S.ndim < 2 or S.shape[-1] > S.shape[-2]:
        raise ShapeError(f"{call}: expected matrices (..., d, k) with k <= d, got shape {tuple(S.shape)}")
    if other is not None and other.shape[-2:] != S.shape[-2:]:
        raise ShapeError(f"{call}: shapes {tuple(S.shape)} and {tuple(other.shape)} do not belong together")
