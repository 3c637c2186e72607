"""The values given everything else: min over z of ½|z|² + ½ λ_b τ |Bz - g|² + ½ v |F[Lz] - f|², by Gauss-Newton.

Each step solves (I + λ_b τ BᵀB + v PᵀP) z = rhs, densely for small grids, else by preconditioned conjugate gradients.
Shapes: N points in all, M boundary rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.linalg import FunctionOperator, Status, cg, multi_mode_product, safe_cholesky
from hesse.pde.gp_hm.equations import Equation, Orders, linearize
from hesse.pde.gp_hm.system import AxisFactors, Conditions, Precisions, Rows, apply_terms, derivatives, unwhiten

__all__ = ["InnerSolver", "NormalEquations"]

DENSE_LIMIT = 1500  # unknowns up to which, above one axis, a dense factorisation is used: it keeps all digits
_BLOCK = 1 << 22  # entries of the boundary's dense rows formed at once
_CG_STEPS = 600
_REFRESH = 40  # CG steps that cost more than a new preconditioner


@dataclass(frozen=True, slots=True)
class NormalEquations:
    """H = I + λ_b τ BᵀB + v PᵀP at one linearisation."""

    axes: Sequence[AxisFactors]
    terms: dict[Orders, Tensor]
    rows: Rows
    boundary: float  # λ_b τ
    equation: float  # v

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return tuple(len(axis.lower) for axis in self.axes)

    def apply(self, z: Tensor) -> Tensor:
        """Multiply H z.

        Returns
        -------
        Tensor, shape of z, (N_1, …, N_d[, k])
            Without forming H.
        """
        inside = apply_terms(self.axes, self.terms, apply_terms(self.axes, self.terms, z), adjoint=True)
        return z + self.boundary * self.rows.adjoint(self.rows.apply(z)) + self.equation * inside

    def rhs(self, values: Tensor, source: Tensor) -> Tensor:
        """Form λ_b τ Bᵀ g + v Pᵀ f.

        Returns
        -------
        Tensor, shape of the grid
            The right-hand side.
        """
        inside = apply_terms(self.axes, self.terms, source, adjoint=True)
        return self.boundary * self.rows.adjoint(values) + self.equation * inside

    def dense_equation(self) -> Tensor:
        """Form P.

        Returns
        -------
        Tensor, shape (N, N)
            For small grids.
        """
        out: Tensor | None = None
        for orders, coefficient in self.terms.items():
            block = Rows(
                tuple(
                    axis.orders[p][index]
                    for axis, p, index in zip(self.axes, orders, _grid_index(self.shape), strict=True)
                )
            ).dense()
            block = block * coefficient.reshape(-1, 1)
            out = block if out is None else out + block
        return torch.zeros(math.prod(self.shape), math.prod(self.shape)) if out is None else out

    def factor(self, values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Solve densely: min over z of |z|² + λ_b τ |Bz - values|² + v |Pz - target|², by orthogonal triangularisation.

        Cholesky's factor of H would have half the digits, which shows once v is large.

        Returns
        -------
        Tensor, shape of the grid
            The minimiser.
        Tensor, shape (N, N)
            R, upper triangular, with RᵀR = H; O(N² (2N + M)).
        """
        count, strength, precision = target.numel(), math.sqrt(self.boundary), math.sqrt(self.equation)
        zero = target.new_zeros(count, 1)
        stacked = torch.cat(
            [
                torch.cat([torch.eye(count, dtype=target.dtype), zero], 1),
                strength * torch.cat([self.rows.dense(), values.unsqueeze(1)], 1),
                precision * torch.cat([self.dense_equation(), target.reshape(-1, 1)], 1),
            ]
        )
        R = torch.linalg.qr(stacked, mode="r").R
        upper = R[:count, :count]
        return torch.linalg.solve_triangular(upper, R[:count, count:], upper=True).reshape(target.shape), upper

    def preconditioner(self) -> Callable[[Tensor], Tensor]:
        """Build an approximate inverse of H for conjugate gradients.

        I + v PᵀP is taken as diagonal in the product of the eigenbases of L_j⁻¹ K_j⁽ᵖ⁾ L_j⁻ᵀ, which Toeplitz
        matrices nearly share with K_j; the boundary rows are added exactly, by Woodbury's identity.

        Returns
        -------
        callable
            From and to (N, k); symmetric positive definite.
        """
        bases, gains = zip(*(_axis_basis(axis) for axis in self.axes), strict=True)
        even, odd = torch.zeros(self.shape, dtype=bases[0].dtype), torch.zeros(self.shape, dtype=bases[0].dtype)
        lengths = _outer([gain[-1] for gain in gains])
        for orders, coefficient in self.terms.items():
            size = _outer([gain[p] for gain, p in zip(gains, orders, strict=True)])
            mean = coefficient.mean()
            spread = coefficient.var(correction=0) * size.square()
            if sum(orders) % 2:
                odd = odd + mean.square() * size.square() + spread
            else:
                even, odd = even + mean * size, odd + spread
        weights = (1 / (1 + self.equation * lengths * (even.square() + odd))).unsqueeze(-1)
        turned = Rows(tuple(r @ q for r, q in zip(self.rows.factors, bases, strict=True)))
        gram = torch.eye(len(turned.factors[0]), dtype=weights.dtype) / self.boundary
        width = max(1, _BLOCK // math.prod(self.shape))
        for start in range(0, len(gram), width):
            some = Rows(tuple(r[start : start + width] for r in turned.factors)).dense().mT
            gram[:, start : start + width] += turned.apply(weights * some.reshape(*self.shape, -1))
        lower = safe_cholesky((gram + gram.mT) / 2).L

        def apply(flat: Tensor) -> Tensor:
            r = multi_mode_product(flat.reshape(*self.shape, -1), [*(q.mT for q in bases), None])
            y = weights * r
            y = y - weights * turned.adjoint(torch.cholesky_solve(turned.apply(y), lower))
            return multi_mode_product(y, [*bases, None]).reshape(flat.shape)

        return apply


class InnerSolver:
    """Solves for z again and again while kernels and precisions move, warm started.

    Parameters
    ----------
    equation : Equation
        F.
    source : Tensor, shape of the grid
        f.
    conditions : Conditions
        B and g.
    max_steps : int
        Gauss-Newton steps a call, for an F that is not linear.
    rtol : float
        Of the conjugate gradients.
    dense_limit : int
        Unknowns up to which systems of two or three axes are factored densely; those of one axis always are.
    """

    def __init__(
        self,
        equation: Equation,
        source: Tensor,
        conditions: Conditions,
        *,
        max_steps: int = 5,
        rtol: float = 1e-8,
        dense_limit: int = DENSE_LIMIT,
    ) -> None:
        self.equation = equation
        self.source = source
        self.conditions = conditions
        self.max_steps = 1 if equation.is_linear else max_steps
        self.rtol = rtol
        self.dense_limit = dense_limit
        self.num_cg_steps = 0  # of the last call
        self.converged = True  # whether its conjugate gradients met rtol
        self._precondition: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def normal_equations(
        self, axes: Sequence[AxisFactors], z: Tensor, precisions: Precisions
    ) -> tuple[NormalEquations, Tensor]:
        """Linearise at z.

        Parameters
        ----------
        axes : sequence of AxisFactors
            Detached.
        z : Tensor, shape of the grid
            Where.
        precisions : Precisions
            The weights.

        Returns
        -------
        NormalEquations
            H there.
        Tensor, shape of the grid
            F[Lz].
        """
        value, terms = linearize(self.equation, unwhiten(axes, z), derivatives(axes, z))
        rows = self.conditions.rows_fn(axes)
        return NormalEquations(axes, terms, rows, precisions.boundary, precisions.equation), value

    @torch.no_grad()
    def solve(self, axes: Sequence[AxisFactors], z: Tensor, precisions: Precisions) -> Tensor:
        """Minimise over z.

        Parameters
        ----------
        axes : sequence of AxisFactors
            Detached.
        z : Tensor, shape of the grid
            Start.
        precisions : Precisions
            The weights.

        Returns
        -------
        Tensor, shape of the grid
            The minimiser, exact to rounding (or to ``rtol``) for a linear F; else after at most ``max_steps`` steps,
            none of which raises the objective.
        """
        for _ in range(self.max_steps):
            normal, value = self.normal_equations(axes, z, precisions)
            target = self.source - value + apply_terms(axes, normal.terms, z)
            proposal = self._solve_linear(normal, target, z)
            if self.equation.is_linear:
                return proposal
            z, moved = self._backtrack(axes, z, proposal, precisions)
            if moved <= 1e-10:
                break
        return z

    def _backtrack(
        self, axes: Sequence[AxisFactors], z: Tensor, proposal: Tensor, precisions: Precisions
    ) -> tuple[Tensor, float]:
        start, step = self.objective(axes, z, precisions), proposal - z
        for halvings in range(12):
            trial = z + step * 0.5**halvings
            if self.objective(axes, trial, precisions) <= start:
                return trial, float((trial - z).norm() / trial.norm().clamp_min(1e-300))
        return z, 0.0

    def objective(self, axes: Sequence[AxisFactors], z: Tensor, precisions: Precisions) -> float:
        """Evaluate what `solve` minimises.

        Parameters
        ----------
        axes : sequence of AxisFactors
            Detached.
        z : Tensor, shape of the grid
            Where.
        precisions : Precisions
            The weights.

        Returns
        -------
        float
            ½|z|² + ½ λ_b τ |Bz - g|² + ½ v |F[Lz] - f|².
        """
        miss = self.conditions.rows_fn(axes).apply(z) - self.conditions.values
        rest = self.equation.residual(unwhiten(axes, z), derivatives(axes, z)) - self.source
        total = z.square().sum() + precisions.boundary * miss.square().sum() + precisions.equation * rest.square().sum()
        return 0.5 * float(total)

    def _solve_linear(self, normal: NormalEquations, target: Tensor, z: Tensor) -> Tensor:
        if target.ndim == 1 or target.numel() <= self.dense_limit:
            return normal.factor(self.conditions.values, target)[0]
        rhs = normal.rhs(self.conditions.values, target)
        count = rhs.numel()
        operator = FunctionOperator(
            lambda flat: normal.apply(flat.reshape(*rhs.shape, -1)).reshape(flat.shape),
            (count, count),
            dtype=rhs.dtype,
            device=rhs.device,
            is_psd=True,
        )
        if self._precondition is None:
            self._precondition = normal.preconditioner()
        found = cg(
            operator,
            rhs.reshape(-1),
            x0=z.reshape(-1),
            preconditioner=self._precondition,
            rtol=self.rtol,
            max_steps=_CG_STEPS,
            validate=False,
        )
        self.num_cg_steps = found.num_steps
        self.converged = found.status is Status.CONVERGED
        if found.num_steps > _REFRESH:
            self._precondition = None
        return found.x.reshape(rhs.shape)


def _axis_basis(axis: AxisFactors) -> tuple[Tensor, dict[int, Tensor]]:
    # eigenvectors of the symmetric whitened derivative, and how each order acts on them; -1: the squared lengths L q
    highest = max(axis.orders)
    whitened = {p: torch.linalg.solve_triangular(axis.lower, a, upper=False) for p, a in axis.orders.items() if p}
    top = whitened[highest] if highest else axis.lower.mT @ axis.lower
    symmetric = top.mT @ top if highest % 2 else (top + top.mT) / 2
    q = torch.linalg.eigh(symmetric).eigenvectors
    gains = {0: torch.ones_like(q[0]), -1: (axis.lower @ q).square().sum(0)}
    for p, m in whitened.items():
        turned = m @ q
        gains[p] = turned.norm(dim=0) if p % 2 else (q * turned).sum(0)
    return q, gains


def _outer(vectors: Sequence[Tensor]) -> Tensor:
    out = vectors[0]
    for vector in vectors[1:]:
        out = out.unsqueeze(-1) * vector
    return out


def _grid_index(shape: tuple[int, ...]) -> list[Tensor]:
    return [index.reshape(-1) for index in torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")]
