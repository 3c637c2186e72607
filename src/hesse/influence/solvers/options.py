"""How the damped Gauss-Newton system of a query is solved: one frozen set of options a method.

All three take the damping λ of each matrix, and PCG its preconditioner, from fitted factors, so that their answers
differ from those of the factors by the matrix alone.
"""

from dataclasses import dataclass
from typing import Literal

from hesse.errors import ArgumentError

__all__ = ["CG", "PCG", "FactorStrategy", "LiSSA", "Solver", "solver_named"]

FactorStrategy = Literal["ekfac", "kfac", "shampoo", "diagonal", "identity"]
"""How factors approximate the curvature within a weight matrix."""

_DAMPED = ("ekfac", "kfac", "shampoo", "diagonal")


@dataclass(frozen=True, slots=True)
class PCG:
    """Conjugate gradients preconditioned by the factors, from the factors' own answer on.

    Fidelity to the damped Gauss-Newton matrix for ``steps`` + 2 products with it a query: the residual of the start,
    the steps, and the explicit residual at the end. 0 steps leave the factors' answer as it is, and tell its residual;
    in the norm of the matrix no step is further from the solution than the one before. (A start from zero would spend
    the same products on one step more, in a space that holds this one: it gains a little, and has no such beginning.)

    Parameters
    ----------
    steps : int, default 20
        At most. On small networks 10 reach a correlation above 0.9 with the exact solution, 40 above 0.98.
    rtol : float, default 1e-4
        A query stops where ‖b - (G + λI)x‖ <= rtol ‖b‖: scores are not worth more digits than that.
    factors : {"ekfac", "kfac", "shampoo", "diagonal"}, default "ekfac"
        Preconditioner, and source of λ.
    columns : int, default 16
        Queries that share one vectorised product; memory grows with it. 1 loops, in the least memory.
    """

    steps: int = 20
    rtol: float = 1e-4
    factors: FactorStrategy = "ekfac"
    columns: int = 16

    def __post_init__(self) -> None:
        _check("PCG", self.steps, self.rtol, self.factors, self.columns, least=0)


@dataclass(frozen=True, slots=True)
class CG:
    """Conjugate gradients from zero, without a preconditioner: ``steps`` + 1 products a query.

    Parameters
    ----------
    steps : int, default 50
        At most.
    rtol : float, default 1e-4
        As of `PCG`.
    factors : {"ekfac", "kfac", "shampoo", "diagonal"}, default "ekfac"
        Source of λ alone; "diagonal" spares the eigendecompositions.
    columns : int, default 16
        As of `PCG`.
    """

    steps: int = 50
    rtol: float = 1e-4
    factors: FactorStrategy = "ekfac"
    columns: int = 16

    def __post_init__(self) -> None:
        _check("CG", self.steps, self.rtol, self.factors, self.columns, least=1)


@dataclass(frozen=True, slots=True)
class LiSSA:
    """The truncated Neumann series, x ← αb + (I - α(G_B + λI)) x, with G_B of a new random minibatch every step.

    Parameters
    ----------
    steps : int, default 300
        At most; each is one product with the matrix of a minibatch.
    batch_size : int or None, default 32
        Sequences a minibatch. None: all of them, at N / 32 times the cost of a step.
    step_size : float, optional
        α, below 1 / (largest eigenvalue). Default: 0.9 / (largest that a power iteration finds on four minibatches),
        which takes up to 40 products a call, whatever the number of queries.
    rtol : float, default 1e-3
        A query stops where a step changes x by no more than that share.
    factors : {"ekfac", "kfac", "shampoo", "diagonal"}, default "ekfac"
        Source of λ alone.
    columns : int, default 16
        As of `PCG`.
    seed : int, default 0
        Of the minibatches.

    References
    ----------
    N. Agarwal, B. Bullins, E. Hazan (2017), JMLR 18(116), arXiv 1602.03943; P. W. Koh, P. Liang (2017), ICML,
    arXiv 1703.04730.
    """

    steps: int = 300
    batch_size: int | None = 32
    step_size: float | None = None
    rtol: float = 1e-3
    factors: FactorStrategy = "ekfac"
    columns: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _check("LiSSA", self.steps, self.rtol, self.factors, self.columns, least=1)
        if self.batch_size is not None and self.batch_size < 1:
            raise ArgumentError(f"LiSSA: expected batch_size >= 1 or None, got {self.batch_size}")
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise ArgumentError(f"LiSSA: expected step_size > 0, got {self.step_size}")
        if not 0 <= self.seed < 2**63:
            raise ArgumentError(f"LiSSA: expected seed from 0 to 2**63 - 1, got {self.seed}")


Solver = PCG | CG | LiSSA

_NAMES: dict[str, type[PCG] | type[CG] | type[LiSSA]] = {"pcg": PCG, "cg": CG, "lissa": LiSSA}


def solver_named(name: str, *, steps: int | None = None, factors: FactorStrategy = "ekfac") -> Solver:
    """Make the options of a method from its name, as a command line spells it.

    Parameters
    ----------
    name : {"pcg", "cg", "lissa"}
        Method.
    steps : int, optional
        Default: that of the method.
    factors : {"ekfac", "kfac", "shampoo", "diagonal"}, default "ekfac"
        Of the run.

    Returns
    -------
    PCG, CG or LiSSA
        Otherwise at their defaults.

    Raises
    ------
    ArgumentError
        If there is no such method, or an option is out of range.
    """
    if name not in _NAMES:
        raise ArgumentError(f"strategy: expected one of {', '.join(_NAMES)}, got {name!r}")
    kind = _NAMES[name]
    return kind(factors=factors) if steps is None else kind(steps=steps, factors=factors)


def _check(call: str, steps: int, rtol: float, factors: str, columns: int, *, least: int) -> None:
    if steps < least:
        raise ArgumentError(f"{call}: expected steps >= {least}, got {steps}")
    if not 0 <= rtol < 1:
        raise ArgumentError(f"{call}: expected rtol from 0 to below 1, got {rtol}")
    if factors not in _DAMPED:
        raise ArgumentError(f"{call}: expected factors to be one of {', '.join(_DAMPED)}, got {factors!r}")
    if columns < 1:
        raise ArgumentError(f"{call}: expected columns >= 1, got {columns}")
