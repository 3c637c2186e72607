"""Nearest points in convex sets: ball, box, simplex, halfspace, affine equality, and balls where a metric H comes in.

Each set is a small frozen object; calling it projects vectors (..., n) in the last dimension. All are differentiable.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError, SingularError

__all__ = ["AffineEquality", "Ball", "Box", "Ellipsoid", "HNormBall", "Halfspace", "Simplex"]

_SECULAR_STEPS = 200  # Newton on a convex decreasing function converges from the left; a dozen steps are usual


@dataclass(frozen=True, slots=True, eq=False)
class Ball:
    """{x : ‖x - center‖₂ <= radius}.

    Parameters
    ----------
    radius : float
        >= 0.
    center : Tensor, shape (n,), optional
        Default: the origin.

    Raises
    ------
    ArgumentError
        If the radius is negative.
    """

    radius: float
    center: Tensor | None = None

    def __post_init__(self) -> None:
        _check_radius("Ball", self.radius)

    def __call__(self, x: Tensor) -> Tensor:
        """Project.

        Parameters
        ----------
        x : Tensor, shape (..., n)
            Points.

        Returns
        -------
        Tensor, shape (..., n)
            The nearest points of the set.
        """
        shifted = x if self.center is None else x - self.center
        norm = torch.linalg.vector_norm(shifted, dim=-1, keepdim=True)
        outside = norm > self.radius
        # the divisor is kept away from zero also where it is not used: its gradient would be NaN there
        scaled = shifted * (self.radius / torch.where(outside, norm, torch.ones_like(norm)))
        moved = torch.where(outside, scaled, shifted)
        return moved if self.center is None else moved + self.center


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """{x : low <= x <= high}, elementwise.

    Parameters
    ----------
    low, high : float or Tensor that broadcasts to (..., n)
        Bounds; ±inf leaves a side open.

    Raises
    ------
    ArgumentError
        If some low exceeds its high.
    """

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
            raise ArgumentError(f"Box: expected low <= high everywhere, got low={self.low}, high={self.high}")

    def __call__(self, x: Tensor) -> Tensor:
        """Project.

        Parameters
        ----------
        x : Tensor, shape (..., n)
            Points.

        Returns
        -------
        Tensor, shape (..., n)
            The nearest points of the set.
        """
        low = torch.as_tensor(self.low, dtype=x.dtype, device=x.device)
        high = torch.as_tensor(self.high, dtype=x.dtype, device=x.device)
        return torch.minimum(torch.maximum(x, low), high)


@dataclass(frozen=True, slots=True)
class Simplex:
    """{x : x >= 0, Σ x = total}: probability vectors for total 1. Projects by sorting, O(n log n).

    Parameters
    ----------
    total : float, default 1.0
        > 0.

    Raises
    ------
    ArgumentError
        If the total is not positive.

    References
    ----------
    M. Held, P. Wolfe, H. Crowder (1974), Math. Program. 6.
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        if not (self.total > 0 and math.isfinite(self.total)):
            raise ArgumentError(f"Simplex: expected total > 0, got {self.total}")

    def __call__(self, x: Tensor) -> Tensor:
        """Project.

        Parameters
        ----------
        x : Tensor, shape (..., n)
            Points.

        Returns
        -------
        Tensor, shape (..., n)
            The nearest points of the set.

        Raises
        ------
        NumericalError
            If a vector has NaN or Inf.
        """
        n = x.shape[-1]
        # shifting all entries alike does not move the projection, and keeps the sums small
        shifted = x - x.amax(-1, keepdim=True).detach()
        if not bool(torch.isfinite(shifted).all()):
            raise NumericalError("Simplex: expected finite vectors, got NaN or Inf")
        falling = shifted.sort(-1, descending=True).values
        counts = torch.arange(1, n + 1, device=x.device, dtype=x.dtype)
        thresholds = (falling.cumsum(-1) - self.total) / counts
        support = (falling > thresholds).sum(-1, keepdim=True).clamp_min(1)
        return (shifted - thresholds.gather(-1, support - 1)).clamp_min(0)


@dataclass(frozen=True, slots=True, eq=False)
class Halfspace:
    """{x : ⟨normal, x⟩ <= offset}.

    Parameters
    ----------
    normal : Tensor, shape (n,)
        Not zero.
    offset : float, default 0.0
        In the units of normal times x.

    Raises
    ------
    ArgumentError
        If the normal is zero or not finite.
    """

    normal: Tensor
    offset: float = 0.0

    def __post_init__(self) -> None:
        length = float(torch.linalg.vector_norm(self.normal.detach()))
        if not (length > 0 and math.isfinite(length)):
            raise ArgumentError("Halfspace: expected a finite normal other than zero")

    def __call__(self, x: Tensor) -> Tensor:
        """Project.

        Parameters
        ----------
        x : Tensor, shape (..., n)
            Points.

        Returns
        -------
        Tensor, shape (..., n)
            The nearest points of the set.
        """
        excess = (x @ self.normal - self.offset).clamp_min(0) / self.normal.square().sum()
        return x - excess.unsqueeze(-1) * self.normal


@dataclass(frozen=True, slots=True, eq=False)
class AffineEquality:
    """{x : A x = b}, with A of full row rank: x - Aᵀ(AAᵀ)⁻¹(A x - b), the factor of A Aᵀ computed once.

    Parameters
    ----------
    A : Tensor, shape (m, n)
        m <= n.
    b : Tensor, shape (m,)
        Right-hand side.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    SingularError
        If the rows of A are dependent.
    """

    A: Tensor
    b: Tensor
    _factor: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.b.shape != self.A.shape[:1]:
            raise ShapeError(
                f"AffineEquality: expected A (m, n) and b (m,), got {tuple(self.A.shape)} and {tuple(self.b.shape)}"
            )
        # R of Aᵀ = QR is the factor of A Aᵀ without squaring the condition
        triangle = torch.linalg.qr(self.A.mT).R
        pivots = triangle.detach().diagonal().abs()
        least = torch.finfo(self.A.dtype).eps * max(self.A.shape)
        if self.A.shape[0] > self.A.shape[1] or (len(pivots) and float(pivots.min()) <= least * float(pivots.max())):
            raise SingularError("AffineEquality: the rows of A are linearly dependent; drop the redundant equations")
        object.__setattr__(self, "_factor", triangle.mT)

    def __call__(self, x: Tensor) -> Tensor:
        """Project.

        Parameters
        ----------
        x : Tensor, shape (..., n)
            Points.

        Returns
        -------
        Tensor, shape (..., n)
            The nearest points of the set.
        """
        gap = x @ self.A.mT - self.b
        weights = torch.cholesky_solve(gap.unsqueeze(-1), self._factor).squeeze(-1)
        return x - weights @ self.A


@dataclass(frozen=True, slots=True, eq=False)
class HNormBall:
    """Nearest point of a Euclidean ball in the metric of H: argmin (x - y)ᵀH(x - y) with ‖x - center‖₂ <= radius.

    The step of online Newton methods. x = center + (H + νI)⁻¹ H (y - center), with ν >= 0 found by Newton's method; the
    eigendecomposition of H is computed once.

    Parameters
    ----------
    H : Tensor, shape (n, n)
        Symmetric positive definite.
    radius : float
        > 0.
    center : Tensor, shape (n,), optional
        Default: the origin.

    Raises
    ------
    ArgumentError
        If the radius is not positive.
    ShapeError
        If H is not square.
    SingularError
        If H is not positive definite.
    """

    H: Tensor
    radius: float
    center: Tensor | None = None
    _values: Tensor = field(init=False, repr=False)
    _vectors: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values, vectors = _positive_eigh("HNormBall", self.H, self.radius)
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_vectors", vectors)

    def __call__(self, y: Tensor) -> Tensor:
        """Project.

        Parameters
        ----------
        y : Tensor, shape (..., n)
            Points.

        Returns
        -------
        Tensor, shape (..., n)
            The nearest points of the set.
        """
        shifted = y if self.center is None else y - self.center
        weighted = (shifted @ self._vectors) * self._values
        # ‖(H + ν)⁻¹ H y‖ = radius; with ν = 0 the point itself
        nu = _secular(weighted.square(), self._values, torch.ones_like(self._values), self.radius)
        moved = (weighted / (self._values + nu.unsqueeze(-1))) @ self._vectors.mT
        inside = torch.linalg.vector_norm(shifted, dim=-1, keepdim=True) <= self.radius
        moved = torch.where(inside, shifted, moved)
        return moved if self.center is None else moved + self.center


@dataclass(frozen=True, slots=True, eq=False)
class Ellipsoid:
    """{x : (x - center)ᵀ H (x - center) <= radius²}: the ball of the H-norm, projected on in the Euclidean distance.

    Parameters
    ----------
    H : Tensor, shape (n, n)
        Symmetric positive definite; its eigendecomposition is computed once.
    radius : float
        > 0, in the H-norm.
    center : Tensor, shape (n,), optional
        Default: the origin.

    Raises
    ------
    ArgumentError
        If the radius is not positive.
    ShapeError
        If H is not square.
    SingularError
        If H is not positive definite.
    """

    H: Tensor
    radius: float
    center: Tensor | None = None
    _values: Tensor = field(init=False, repr=False)
    _vectors: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values, vectors = _positive_eigh("Ellipsoid", self.H, self.radius)
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_vectors", vectors)

    def __call__(self, y: Tensor) -> Tensor:
        """Project.

        Parameters
        ----------
        y : Tensor, shape (..., n)
            Points.

        Returns
        -------
        Tensor, shape (..., n)
            The nearest points of the set.
        """
        shifted = y if self.center is None else y - self.center
        turned = shifted @ self._vectors
        # x = (I + νH)⁻¹ y with xᵀHx = radius²; in w = √H x this is ‖(1 + νλ)⁻¹ √λ y‖ = radius
        nu = _secular(turned.square() * self._values, torch.ones_like(self._values), self._values, self.radius)
        moved = (turned / (1 + nu.unsqueeze(-1) * self._values)) @ self._vectors.mT
        inside = (turned.square() * self._values).sum(-1, keepdim=True) <= self.radius**2
        moved = torch.where(inside, shifted, moved)
        return moved if self.center is None else moved + self.center


def _check_radius(name: str, radius: float) -> None:
    if not (radius >= 0 and math.isfinite(radius)):
        raise ArgumentError(f"{name}: expected a finite radius >= 0, got {radius}")


def _positive_eigh(name: str, H: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    _check_radius(name, radius)
    if radius == 0:
        raise ArgumentError(f"{name}: expected radius > 0, got 0")
    if H.ndim != 2 or H.shape[0] != H.shape[1]:
        raise ShapeError(f"{name}: expected a square H, got shape {tuple(H.shape)}")
    values, vectors = torch.linalg.eigh((H + H.mT) / 2)
    least = float(values.detach()[0])
    if not least > 0:
        raise SingularError(f"{name}: H is not positive definite, its smallest eigenvalue is {least:.3e}")
    return values, vectors


def _secular(squares: Tensor, offsets: Tensor, slopes: Tensor, radius: float) -> Tensor:
    # ν >= 0 with Σ squares / (offsets + ν slopes)² = radius², or 0 if the sum is smaller at ν = 0 already; Newton on
    # 1/√sum, which is nearly linear and concave in ν: steps from 0 rise to the root and never overshoot
    def norm_and_rate(nu: Tensor) -> tuple[Tensor, Tensor]:
        denominator = offsets + nu.unsqueeze(-1) * slopes
        total = (squares / denominator.square()).sum(-1)
        rate = (squares * slopes / denominator.pow(3)).sum(-1)
        return total.clamp_min(torch.finfo(squares.dtype).tiny).sqrt(), rate

    eps = torch.finfo(squares.dtype).eps
    with torch.no_grad():
        nu = torch.zeros_like(squares[..., 0])
        for _ in range(_SECULAR_STEPS):
            norm, rate = norm_and_rate(nu)
            far = norm > radius * (1 + 4 * eps)
            if not bool(far.any()):
                break
            change = norm.square() / rate.clamp_min(torch.finfo(squares.dtype).tiny) * (norm - radius) / radius
            nu = torch.where(far, nu + change, nu)
        else:
            raise NumericalError(
                "the multiplier of the ball constraint did not converge; H or the vector is not finite"
            )
    if not squares.requires_grad:
        return nu
    # one more Newton step that autograd can see gives the implicit derivative of ν
    norm, rate = norm_and_rate(nu)
    step = norm.square() / rate.clamp_min(torch.finfo(squares.dtype).tiny).detach() * (norm - radius) / radius
    return torch.where(nu > 0, nu + (step - step.detach()), nu)
