"""The log joint density of values on a grid, boundary and equation, through whitened values.

U = (L_1 ⊗ … ⊗ L_d) z with K_j = L_j L_jᵀ makes the prior |z|²/2, and every linear functional of u a product of small
matrices with z.   Shapes: grid (N_1, …, N_d) of N points, M boundary rows; z may carry a last dimension of columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import SingularError
from hesse.linalg import mode_product, multi_mode_product, safe_cholesky
from hesse.pde.gp_hm.equations import Derivatives, Equation, Orders
from hesse.pde.gp_hm.kernels import SpectralMixture1d, is_uniform

__all__ = [
    "AxisFactors",
    "Conditions",
    "Precisions",
    "Rows",
    "apply_terms",
    "axis_factors",
    "derivatives",
    "log_joint",
    "unwhiten",
    "whiten",
]

LOG_PRECISION_CAP = 25.0  # a perfect fit would drive the precisions to infinity


@dataclass(frozen=True, slots=True)
class AxisFactors:
    """One axis: L and, for each order p in use, A_p = K⁽ᵖ⁾ L⁻ᵀ, so that A_p z are derivatives; A_0 = L."""

    orders: dict[int, Tensor]  # (N_j, N_j)

    @property
    def lower(self) -> Tensor:
        """L, shape (N_j, N_j)."""
        return self.orders[0]

    @property
    def logdet(self) -> Tensor:
        """The log-determinant of K, shape ()."""
        return 2 * self.lower.diagonal().log().sum()

    def detach(self) -> "AxisFactors":
        """Give the same factors without their graph.

        Returns
        -------
        AxisFactors
            Sharing memory.
        """
        return AxisFactors({p: a.detach() for p, a in self.orders.items()})


@dataclass(frozen=True, slots=True)
class Rows:
    """Linear functionals of z that are products over the axes: row m is ⊗_j rows[j][m]."""

    factors: tuple[Tensor, ...]  # one an axis, (M, N_j)

    def apply(self, z: Tensor) -> Tensor:
        """Evaluate the functionals at z (N_1, …, N_d[, k]).

        Returns
        -------
        Tensor, shape (M,) or (M, k)
            Their values; O(M N).
        """
        out = mode_product(z, self.factors[0], 0)  # (M, N_2, …, [k])
        for factor in self.factors[1:]:
            out = (out * factor.reshape(*factor.shape, *(1,) * (out.ndim - 2))).sum(1)
        return out

    def adjoint(self, values: Tensor) -> Tensor:
        """Apply the transposed rows to values (M,) or (M, k).

        Returns
        -------
        Tensor, shape (N_1, …, N_d[, k])
            The sum of the rows, weighted by the values.
        """
        letters = "abcdef"[: len(self.factors)]
        return torch.einsum(",".join(f"m{c}" for c in letters) + ",m...->" + letters + "...", *self.factors, values)

    def dense(self) -> Tensor:
        """Form the rows.

        Returns
        -------
        Tensor, shape (M, N)
            For small grids and boundaries.
        """
        out = self.factors[0]
        for factor in self.factors[1:]:
            out = (out.unsqueeze(2) * factor.unsqueeze(1)).flatten(1)
        return out


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is asked of u on the boundary: a function from factors to rows, and the values the rows must take."""

    rows_fn: Callable[[Sequence[AxisFactors]], Rows]
    values: Tensor  # (M,)
    orders: tuple[frozenset[int], ...]  # derivatives it needs, by axis


@dataclass(frozen=True, slots=True)
class Precisions:
    """Weight of the boundary and the log precisions of boundary and equation."""

    boundary_weight: float
    log_tau: Tensor  # ()
    log_v: Tensor  # ()

    @property
    def boundary(self) -> float:
        """λ_b τ."""
        return self.boundary_weight * math.exp(float(self.log_tau.detach()))

    @property
    def equation(self) -> float:
        """The precision v."""
        return math.exp(float(self.log_v.detach()))


def axis_factors(
    kernel: SpectralMixture1d, grid: Tensor, orders: frozenset[int], jitter: float, axis: int
) -> AxisFactors:
    """Factor the kernel matrix of one axis and whiten its derivatives.

    Parameters
    ----------
    kernel : SpectralMixture1d
        k_j.
    grid : Tensor, shape (N_j,)
        Points; equally spaced ones need N_j instead of N_j² evaluations.
    orders : frozenset of int
        Derivatives in use.
    jitter : float
        Added to the diagonal; ten times as much, up to 1e-3, where the factorisation fails.
    axis : int
        For the message.

    Returns
    -------
    AxisFactors
        Differentiable in the kernel's parameters; O(N_j³).

    Raises
    ------
    SingularError
        If no admissible jitter makes the matrix positive definite.
    """
    uniform = is_uniform(grid)

    def matrix(order: int) -> Tensor:
        return kernel.toeplitz(grid, order).to_dense() if uniform else kernel.matrix(grid, grid, order)

    eye = torch.eye(len(grid), dtype=grid.dtype, device=grid.device)
    try:
        found = safe_cholesky(matrix(0) + jitter * eye, jitter=9 * jitter, max_jitter=1e-3, relative=False)
    except SingularError as error:
        raise SingularError(f"GPHM: the kernel matrix of axis {axis} could not be factored: {error}") from error
    factors = {0: found.L}
    for order in sorted(orders - {0}):
        factors[order] = torch.linalg.solve_triangular(found.L, matrix(order).mT, upper=False).mT
    return AxisFactors(factors)


def apply_terms(
    axes: Sequence[AxisFactors], terms: dict[Orders, Tensor], z: Tensor, *, adjoint: bool = False
) -> Tensor:
    """Apply P z = Σ c_orders (A_{p_1} ⊗ … ⊗ A_{p_d}) z, or its transpose.

    Parameters
    ----------
    axes : sequence of AxisFactors
        d of them.
    terms : dict of orders to Tensor, shape (N_1, …, N_d)
        Coefficients of the linearised equation on the grid.
    z : Tensor, shape (N_1, …, N_d[, k])
        Operand.
    adjoint : bool, default False
        Whether to apply Pᵀ.

    Returns
    -------
    Tensor, shape of z
        O(N Σ N_j) a term and column.
    """
    out = torch.zeros_like(z)
    rest: list[None] = [None] * (z.ndim - len(axes))
    for orders, coefficient in terms.items():
        c = coefficient.reshape(*coefficient.shape, *(1,) * len(rest))
        matrices = [axis.orders[p] for axis, p in zip(axes, orders, strict=True)]
        if adjoint:
            out = out + multi_mode_product(c * z, [*(a.mT for a in matrices), *rest])
        else:
            out = out + c * multi_mode_product(z, [*matrices, *rest])
    return out


def derivatives(axes: Sequence[AxisFactors], z: Tensor) -> Derivatives:
    """Give every partial derivative of U on the grid, from whitened values.

    Parameters
    ----------
    axes : sequence of AxisFactors
        With the orders that will be asked for.
    z : Tensor, shape (N_1, …, N_d)
        Whitened values.

    Returns
    -------
    Derivatives
        Computed when asked for.
    """
    return Derivatives(
        len(axes), lambda orders: multi_mode_product(z, [a.orders[p] for a, p in zip(axes, orders, strict=True)])
    )


def whiten(axes: Sequence[AxisFactors], U: Tensor) -> Tensor:
    """Solve (L_1 ⊗ … ⊗ L_d) z = U.

    Parameters
    ----------
    axes : sequence of AxisFactors
        The factors.
    U : Tensor, shape (N_1, …, N_d)
        Values on the grid.

    Returns
    -------
    Tensor, shape of U
        z.
    """
    for mode, axis in enumerate(axes):
        flat = U.movedim(mode, 0)
        solved = torch.linalg.solve_triangular(axis.lower, flat.reshape(flat.shape[0], -1), upper=False)
        U = solved.reshape(flat.shape).movedim(0, mode)
    return U


def unwhiten(axes: Sequence[AxisFactors], z: Tensor) -> Tensor:
    """Multiply U = (L_1 ⊗ … ⊗ L_d) z.

    Parameters
    ----------
    axes : sequence of AxisFactors
        The factors.
    z : Tensor, shape (N_1, …, N_d)
        Whitened values.

    Returns
    -------
    Tensor, shape of z
        Values on the grid.
    """
    return multi_mode_product(z, [axis.lower for axis in axes])


def log_joint(
    axes: Sequence[AxisFactors],
    z: Tensor,
    equation: Equation,
    source: Tensor,
    conditions: Conditions,
    precisions: Precisions,
) -> Tensor:
    """Evaluate J, the log density of values, boundary and equation, up to constants.

    J = -½ Σ_j (N/N_j) log det K_j - ½ |z|² + λ_b [(M/2) log τ - (τ/2) |Bz - g|²] + (N/2) log v - (v/2) |F[U] - f|²

    Parameters
    ----------
    axes : sequence of AxisFactors
        Functions of the kernels' parameters.
    z : Tensor, shape (N_1, …, N_d)
        Whitened values; for the gradient at fixed U they must be a function of the factors.
    equation : Equation
        F.
    source : Tensor, shape (N_1, …, N_d)
        f.
    conditions : Conditions
        B and g.
    precisions : Precisions
        λ_b, log τ, log v.

    Returns
    -------
    Tensor, shape ()
        In nats; differentiable in everything.
    """
    count = z.numel()
    prior = -0.5 * z.square().sum()
    for axis in axes:
        prior = prior - 0.5 * (count // len(axis.lower)) * axis.logdet
    miss = conditions.rows_fn(axes).apply(z) - conditions.values
    tau, v = precisions.log_tau.exp(), precisions.log_v.exp()
    boundary = 0.5 * (len(miss) * precisions.log_tau - tau * miss.square().sum())
    rest = equation.residual(unwhiten(axes, z), derivatives(axes, z)) - source
    equation_term = 0.5 * (count * precisions.log_v - v * rest.square().sum())
    return prior + precisions.boundary_weight * boundary + equation_term
