"""GL+(n), SL(n) and SO(n) in global coordinates, by h = exp(X) R, with their invariant measure and random elements.

Shapes: N elements, n order of the matrices, d dimension of the group.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from hesse.equivariant._arguments import check_choice, check_count
from hesse.equivariant.lie._matrices import (
    log_sinhc,
    plane_rotation,
    polar_log,
    random_rotations,
    rotation_log,
)
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import symmetric_exp

__all__ = ["SL", "SO", "GLPlus", "GroupSamples", "MatrixGroup", "Measure", "haar_log_density"]

Measure = Literal["lognormal", "haar"]
Rotations = Literal["uniform", "equispaced"]
_CLIP = 10.0  # of a Haar weight, in units of the mean


class GroupSamples(NamedTuple):
    """Group elements with their inverses and weights."""

    h: Tensor  # (N, n, n)
    h_inv: Tensor  # (N, n, n)
    weight: Tensor  # (N,)


@dataclass(frozen=True, slots=True)
class MatrixGroup:
    """What GL+(n), SL(n) and SO(n) share: every element is exp(X) R, X symmetric and R a rotation, in one way.

    Parameters
    ----------
    n : int, default 2
        Order of the matrices, at least 2.
    alpha : float, default 1.0
        Scale of the inner product α tr(XᵀY) in which the basis is orthonormal.

    Raises
    ------
    ArgumentTypeError
        If n is not an integer.
    ArgumentError
        If n < 2 or α <= 0.
    """

    n: int = 2
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_count(self._name, "n", self.n, 2)
        if not 0 < self.alpha < float("inf"):
            raise ArgumentError(f"{self._name}: expected alpha > 0, got {self.alpha}")

    @property
    def dim(self) -> int:
        """Dimension d: n² of GL+(n), n² - 1 of SL(n), n(n - 1)/2 of SO(n)."""
        return self.num_symmetric + self.n * (self.n - 1) // 2

    @property
    def num_symmetric(self) -> int:
        """How many coordinates X has."""
        return self.n * (self.n + 1) // 2

    def basis(self, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """Write down the orthonormal basis of the Lie algebra that coordinates refer to.

        Parameters
        ----------
        dtype : dtype, default float64
            Of the result.
        device : device, default "cpu"
            Of the result.

        Returns
        -------
        Tensor, shape (d, n, n)
            Symmetric matrices first: those of the upper triangle row by row, or for SL(n) traceless diagonals and then
            the upper triangle; then skew matrices, -1 in the upper triangle. Each has tr(EᵀE) = 1/α.
        """
        vectors = [*self._symmetric_basis(), *self._skew_basis()]
        return (torch.stack(vectors) / self.alpha**0.5).to(device=device, dtype=dtype)

    def contains(self, h: Tensor, *, tol: float | None = None) -> Tensor:
        """Tell which matrices belong to the group.

        Parameters
        ----------
        h : Tensor, shape (..., n, n)
            Any real matrices.
        tol : float, optional
            Allowed error of det h = 1 (SL) or of every entry of hᵀh = I (SO). Default: the square root of the machine
            epsilon.

        Returns
        -------
        Tensor, shape (...)
            Booleans.
        """
        h = self._matrices("contains", h)
        return self._belongs(h, torch.finfo(h.dtype).eps ** 0.5 if tol is None else tol)

    def decompose(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Split h = exp(X) R.

        Parameters
        ----------
        h : Tensor, shape (..., n, n)
            Elements of the group, float32 or float64.

        Returns
        -------
        tuple of Tensor, shapes (..., n, n)
            X symmetric, the logarithm of P = (h hᵀ)^{1/2}, and R in SO(n). Both by singular values, whatever the
            condition; differentiable once, also where singular values agree.

        Raises
        ------
        ShapeError
            If the matrices are not n x n.
        ArgumentTypeError
            If they are not float32 or float64.
        ArgumentError
            If one does not belong to the group. For a reflection, det h < 0, split off a fixed one first.
        """
        h = self._elements("decompose", h)
        return polar_log(h)

    def compose(self, X: Tensor, R: Tensor) -> Tensor:
        """Multiply exp(X) R, the inverse of `decompose`.

        Parameters
        ----------
        X : Tensor, shape (..., n, n)
            Symmetric; of trace zero for SL(n), zero for SO(n).
        R : Tensor, shape (..., n, n)
            Rotations.

        Returns
        -------
        Tensor, shape (..., n, n)
            h.
        """
        return symmetric_exp(self._matrices("compose", X, "X")) @ self._matrices("compose", R, "R")

    def log_coordinates(self, h: Tensor) -> Tensor:
        """Read the global coordinates of h: those of log P + log R in the basis.

        Parameters
        ----------
        h : Tensor, shape (..., n, n)
            Elements of the group, n = 2 or 3.

        Returns
        -------
        Tensor, shape (..., d)
            Symmetric part first. The angle of a rotation of the plane is the last coordinate over √(2α), in (-π, π];
            rotations jump where it passes π. This is not the matrix logarithm of h, which need not exist.

        Raises
        ------
        ArgumentError
            If n > 3, or as `decompose`.
        """
        if self.n > 3:
            raise ArgumentError(f"{self._name}.log_coordinates: expected n = 2 or 3, got {self.n}")
        X, R = self.decompose(h)
        return self.alpha * torch.einsum(
            "aij,...ij->...a", self.basis(dtype=h.dtype, device=h.device), X + rotation_log(R)
        )

    def exp_coordinates(self, v: Tensor) -> Tensor:
        """Make the element of given coordinates, exp(X) exp(W) with X + W = Σ v_a E_a.

        Parameters
        ----------
        v : Tensor, shape (..., d)
            Any real numbers, float32 or float64.

        Returns
        -------
        Tensor, shape (..., n, n)
            h.

        Raises
        ------
        ShapeError
            If the last dimension is not d.
        """
        if v.ndim == 0 or v.shape[-1] != self.dim:
            raise ShapeError(
                f"{self._name}.exp_coordinates: expected v of shape (..., {self.dim}), got {tuple(v.shape)}"
            )
        A = torch.einsum("...a,aij->...ij", v, self.basis(dtype=v.dtype, device=v.device))
        return symmetric_exp((A + A.mT) / 2) @ torch.linalg.matrix_exp((A - A.mT) / 2)

    def sample(
        self,
        num_samples: int,
        *,
        generator: Generator | None = None,
        measure: Measure = "lognormal",
        variance: float = 0.1,
        rotations: Rotations = "uniform",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> GroupSamples:
        """Draw h = exp(X/2) R with X = Σ z_a E_a, z ~ N(0, σ² I), and R uniform on SO(n).

        Parameters
        ----------
        num_samples : int
            N.
        generator : torch.Generator, optional
            Source of the numbers. Default: torch's global generator on the CPU.
        measure : {"lognormal", "haar"}, default "lognormal"
            What averages approximate: the law of the samples, all weights one, or the invariant measure, by weights
            Jacobian / Gaussian density divided by their mean and cut at 10. The group is not compact, so the latter is
            good for functions that vanish where samples are rare.
        variance : float, default 0.1
            σ²; the standard deviation of the logarithm of a stretch is σ/2.
        rotations : {"uniform", "equispaced"}, default "uniform"
            Independent, or for n = 2 a regular N-gon turned by a random angle, of smaller variance.
        dtype : dtype, default float32
            Of the result.
        device : device, default "cpu"
            Of the result.

        Returns
        -------
        GroupSamples
            h, its inverse Rᵀ exp(-X/2), and the weights.

        Raises
        ------
        ArgumentTypeError
            If N is not an integer.
        ArgumentError
            If N < 1, the variance is not positive, a name is unknown, or equispaced rotations are wanted for n > 2.
        """
        call = f"{self._name}.sample"
        check_count(call, "num_samples", num_samples, 1)
        check_choice(call, "measure", measure, get_args(Measure))
        check_choice(call, "rotations", rotations, get_args(Rotations))
        if not 0 < variance < float("inf"):
            raise ArgumentError(f"{call}: expected variance > 0, got {variance}")
        if rotations == "equispaced" and self.n != 2:
            raise ArgumentError(f"{call}: rotations are equispaced for n = 2 only, here n = {self.n}")
        source = "cpu" if generator is None else generator.device
        z = variance**0.5 * torch.randn(
            num_samples, self.num_symmetric, generator=generator, dtype=torch.float64, device=source
        )
        if rotations == "equispaced":
            turn = torch.rand(1, generator=generator, dtype=torch.float64, device=source)
            steps = torch.arange(num_samples, dtype=torch.float64, device=source)
            R = plane_rotation(2 * torch.pi * (steps + turn) / num_samples)
        else:
            R = random_rotations(self.n, num_samples, generator)
        log_s = self.symmetric(z)
        weight = torch.ones(num_samples, dtype=torch.float64, device=source)
        if measure == "haar":
            log_weight = haar_log_density(log_s) + z.square().sum(-1) / (2 * variance)
            weight = (log_weight - log_weight.logsumexp(0)).exp() * num_samples
            weight = weight.clamp_max(_CLIP)
        h, h_inv = symmetric_exp(log_s / 2) @ R, R.mT @ symmetric_exp(-log_s / 2)
        return GroupSamples(*(part.to(device=device, dtype=dtype) for part in (h, h_inv, weight)))

    def symmetric(self, z: Tensor) -> Tensor:
        """Make X = Σ z_a E_a over the symmetric part of the basis.

        Parameters
        ----------
        z : Tensor, shape (..., num_symmetric)
            Coordinates.

        Returns
        -------
        Tensor, shape (..., n, n)
            X.
        """
        basis = self.basis(dtype=z.dtype, device=z.device)[: self.num_symmetric]
        return torch.einsum("...a,aij->...ij", z, basis)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _symmetric_basis(self) -> list[Tensor]:
        return [self._unit(i, j, 1.0) for i in range(self.n) for j in range(i, self.n)]

    def _skew_basis(self) -> list[Tensor]:
        return [self._unit(i, j, -1.0) for i in range(self.n) for j in range(i + 1, self.n)]

    def _unit(self, i: int, j: int, sign: float) -> Tensor:
        E = torch.zeros(self.n, self.n, dtype=torch.float64)
        E[i, j], E[j, i] = sign, 1.0
        return E / E.norm()

    def _belongs(self, h: Tensor, tol: float) -> Tensor:
        del tol  # an open condition
        return torch.isfinite(h).all(-1).all(-1) & (torch.linalg.det(h.detach()) > 0)

    def _matrices(self, method: str, h: Tensor, name: str = "h") -> Tensor:
        call = f"{self._name}.{method}"
        if not isinstance(h, Tensor) or h.dtype not in (torch.float32, torch.float64):
            found = h.dtype if isinstance(h, Tensor) else type(h).__name__
            raise ArgumentTypeError(f"{call}: expected {name} to be a float32 or float64 tensor, got {found}")
        if h.ndim < 2 or h.shape[-2:] != (self.n, self.n):
            raise ShapeError(f"{call}: expected {name} of shape (..., {self.n}, {self.n}), got {tuple(h.shape)}")
        return h

    def _elements(self, method: str, h: Tensor) -> Tensor:
        inside = self.contains(self._matrices(method, h))
        if not bool(inside.all()):
            count = int((~inside).sum())
            raise ArgumentError(
                f"{self._name}.{method}: h: {count} of {inside.numel()} matrices are not in the group"
                f" ({self._condition}); split off a fixed reflection where det h < 0"
            )
        return h

    @property
    def _condition(self) -> str:
        return "finite, det h > 0"


@dataclass(frozen=True, slots=True)
class GLPlus(MatrixGroup):
    """The matrices of positive determinant, GL+(n): the linear maps that can be reached from the identity.

    Parameters
    ----------
    n : int, default 2
        Order of the matrices.
    alpha : float, default 1.0
        Scale of the inner product.

    References
    ----------
    M. Mironenco, P. Forré (2024), ICLR, arXiv 2310.11366.
    """


@dataclass(frozen=True, slots=True)
class SL(MatrixGroup):
    """The matrices of determinant one, SL(n): the linear maps that keep volumes.

    Parameters
    ----------
    n : int, default 2
        Order of the matrices.
    alpha : float, default 1.0
        Scale of the inner product.
    """

    @property
    def num_symmetric(self) -> int:
        """How many coordinates X has: without the trace."""
        return self.n * (self.n + 1) // 2 - 1

    def _symmetric_basis(self) -> list[Tensor]:
        diagonals = []
        for k in range(1, self.n):
            entries = torch.zeros(self.n, dtype=torch.float64)
            entries[:k], entries[k] = 1.0, -float(k)
            diagonals.append(torch.diag(entries / entries.norm()))
        return diagonals + [self._unit(i, j, 1.0) for i in range(self.n) for j in range(i + 1, self.n)]

    def _belongs(self, h: Tensor, tol: float) -> Tensor:
        return torch.isfinite(h).all(-1).all(-1) & ((torch.linalg.det(h.detach()) - 1).abs() <= tol)

    @property
    def _condition(self) -> str:
        return "finite, det h = 1"


@dataclass(frozen=True, slots=True)
class SO(MatrixGroup):
    """The rotations, SO(n): X is zero.

    Parameters
    ----------
    n : int, default 2
        Order of the matrices.
    alpha : float, default 1.0
        Scale of the inner product.
    """

    @property
    def num_symmetric(self) -> int:
        """How many coordinates X has: none."""
        return 0

    def _symmetric_basis(self) -> list[Tensor]:
        return []

    def _belongs(self, h: Tensor, tol: float) -> Tensor:
        h = h.detach()
        gap = (h.mT @ h - torch.eye(self.n, dtype=h.dtype, device=h.device)).abs().amax((-2, -1))
        return torch.isfinite(h).all(-1).all(-1) & (gap <= tol) & (torch.linalg.det(h) > 0)

    @property
    def _condition(self) -> str:
        return "finite, hᵀh = I, det h = 1"


def haar_log_density(log_s: Tensor) -> Tensor:
    """Evaluate the logarithm of the invariant measure of the positive matrices S = exp(X) against Lebesgue's in X.

    log Π_{i<j} sinh((x_i - x_j)/2) / ((x_i - x_j)/2), x the eigenvalues of X. The measure det(S)^{-(n+1)/2} dS does not
    change under S -> g S gᵀ; with R uniform on SO(n), h = S^{1/2} R follows the Haar measure of GL+(n), and of SL(n) if
    X is kept traceless.

    Parameters
    ----------
    log_s : Tensor, shape (..., n, n)
        X = log S = log h hᵀ: twice the X of `GLPlus.decompose`.

    Returns
    -------
    Tensor, shape (...)
        0 where all eigenvalues agree, positive elsewhere.

    Raises
    ------
    ShapeError
        If the matrices are not square.

    References
    ----------
    M. Mironenco, P. Forré (2024), ICLR, arXiv 2310.11366.
    """
    if log_s.ndim < 2 or log_s.shape[-1] != log_s.shape[-2]:
        raise ShapeError(f"haar_log_density: expected log_s of shape (..., n, n), got {tuple(log_s.shape)}")
    x = torch.linalg.eigvalsh(log_s)
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], 1, device=x.device)
    return log_sinhc((x[..., i] - x[..., j]) / 2).sum(-1)
