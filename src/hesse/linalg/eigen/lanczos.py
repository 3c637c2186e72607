"""The Lanczos recurrence: a tridiagonal (or block tridiagonal) picture of a symmetric operator on a Krylov space.

Shapes: A is (N, N); M steps; K independent starting vectors, or one block of B columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least, single_operator, square_operator
from hesse.linalg._random import gaussian_columns
from hesse.linalg.memory import require_memory
from hesse.linalg.operator import LinearOperator

__all__ = ["BlockLanczos", "LanczosState", "Reorthogonalization", "block_lanczos", "lanczos", "tridiagonal"]

Reorthogonalization = Literal["full", "selective", "none"]


@dataclass(frozen=True, slots=True)
class LanczosState:
    """What M steps have found, and all that is needed to go on: A Q = Q T + β_M q_{M+1} e_Mᵀ for each of K starts.

    A plain bag of tensors: save it with any tensor format and pass it back as ``state`` to continue.
    """

    alpha: Tensor  # (M, K), diagonals of T, float64
    beta: Tensor  # (M, K), below the diagonals; the last row couples to the next vector, float64
    start_norm: Tensor  # (K,), norms of the starting vectors, float64
    previous: Tensor  # (N, K), q_M
    current: Tensor  # (N, K), q_{M+1}
    basis: Tensor | None  # (M, N, K), q_1 … q_M, or None if it was not kept
    overlap: Tensor | None  # (2, M + 1, K), estimated loss of orthogonality; for "selective" only
    reorthogonalize: Reorthogonalization
    num_reorthogonalizations: int  # sweeps over the whole basis so far, in "selective"
    sweep_pending: bool  # whether the next vector must be swept as well, in "selective"

    @property
    def num_steps(self) -> int:
        """M."""
        return self.alpha.shape[0]

    def tridiagonal(self) -> Tensor:
        """Form T.

        Returns
        -------
        Tensor of float64, shape (K, M, M)
            One symmetric tridiagonal matrix per start.
        """
        return tridiagonal(self.alpha, self.beta)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Diagonalise T: approximate eigenvalues, their weights in the start, and how far off they can be.

        Returns
        -------
        values : Tensor of float64, shape (K, M)
            Ritz values, rising.
        weights : Tensor of float64, shape (K, M)
            Squared first components of T's eigenvectors; they sum to one. Gauss quadrature nodes and weights.
        residuals : Tensor of float64, shape (K, M)
            ‖A y - θ y‖: some eigenvalue of A lies at most this far from θ (to rounding).
        """
        values, vectors = torch.linalg.eigh(self.tridiagonal())
        return values, vectors[:, 0, :].square(), self.beta[-1].unsqueeze(1) * vectors[:, -1, :].abs()


@dataclass(frozen=True, slots=True)
class BlockLanczos:
    """A basis of a block Krylov space and the block tridiagonal T = QᴴAQ."""

    basis: Tensor  # (N, M B)
    T: Tensor  # (M B, M B), Hermitian
    coupling: Tensor  # (B, B), upper triangular: A Q = Q T + next · coupling · Eᴴ, E the last B unit vectors
    next: Tensor  # (N, B)


def tridiagonal(alpha: Tensor, beta: Tensor) -> Tensor:
    """Put diagonals together to symmetric tridiagonal matrices.

    Parameters
    ----------
    alpha : Tensor, shape (M, K)
        Diagonals.
    beta : Tensor, shape (M, K) or (M - 1, K)
        Off-diagonals; a last row M is left out.

    Returns
    -------
    Tensor, shape (K, M, M)
        One matrix per column.
    """
    side = beta[: alpha.shape[0] - 1].T
    return torch.diag_embed(alpha.T) + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)


def lanczos(
    operator: LinearOperator | Tensor,
    num_steps: int = 80,
    *,
    start: Tensor | None = None,
    state: LanczosState | None = None,
    reorthogonalize: Reorthogonalization = "full",
    keep_basis: bool | None = None,
    recurrence_dtype: torch.dtype = torch.float64,
    generator: Generator | None = None,
    on_step: Callable[[LanczosState], None] | None = None,
) -> LanczosState:
    """Run ``num_steps`` Lanczos steps from each starting vector, all with one product a step.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, symmetric (Hermitian).
    num_steps : int, default 80
        Further steps; with a basis no more than N in all are made.
    start : Tensor, shape (N,) or (N, K), optional
        Starting vectors, not zero; each column runs by itself. Default: one Gaussian vector.
    state : LanczosState, optional
        Where an earlier run stopped: the numbers are those of one uninterrupted run.
    reorthogonalize : {"full", "selective", "none"}, default "full"
        "full": each new vector against all earlier ones, twice where need be, which keeps orthogonality at rounding
        level for 4 N M flops a step and the O(N M K) memory of the basis. "selective": only when the estimated loss of
        orthogonality exceeds √eps; T is then that of an exact run to rounding. "none": O(N K) memory; converged
        eigenvalues return as copies, which does no harm in quadrature.
    keep_basis : bool, optional
        Default: whenever it is used anyway, that is unless "none".
    recurrence_dtype : torch.dtype, default torch.float64
        In which vectors are kept and sums taken; the product itself is in the operator's dtype. float32 halves the
        memory of the basis for operators of large float32 networks; complex operators use the complex type of it.
    generator : torch.Generator, optional
        Source of the start, and of the vectors that replace a vanished one. Default: torch's global generator.
    on_step : callable, optional
        Called with the state after every step, to save it or to show progress. Its basis is a view of memory that
        later steps leave alone.

    Returns
    -------
    LanczosState
        When β falls below N eps ‖T‖ the Krylov space is invariant: β is set to zero and the run goes on from a random
        vector orthogonal to it.

    Raises
    ------
    ShapeError
        If the operator is not square or a stack, or ``start`` does not fit it.
    ArgumentError
        If the operator is not symmetric, ``num_steps < 1``, ``start`` and ``state`` both come, ``start`` has a zero
        column, the basis is refused but needed, or ``state`` has another ``reorthogonalize``.
    MemoryLimitError
        If N (M + 8) K numbers would not fit, M being all steps with those of ``state``, or 0 without a basis.
    NumericalError
        If a product has NaN or Inf.

    References
    ----------
    B. N. Parlett (1998), The Symmetric Eigenvalue Problem, SIAM, ch. 13. H. D. Simon (1984), Math. Comp. 42(165).
    """
    operator = single_operator("lanczos", square_operator("lanczos", operator, symmetric=True))
    at_least("lanczos", "num_steps", num_steps, 1)
    if reorthogonalize not in ("full", "selective", "none"):
        raise ArgumentError(f"lanczos: reorthogonalize must be full, selective or none, got {reorthogonalize!r}")
    if keep_basis is False and reorthogonalize != "none":
        raise ArgumentError(f"lanczos: reorthogonalize={reorthogonalize!r} needs the basis; leave keep_basis out")
    if state is None:
        keep = keep_basis if keep_basis is not None else reorthogonalize != "none"
        size = min(num_steps, operator.shape[0]) if keep else 0
        columns = start.shape[1] if start is not None and start.ndim == 2 else 1
        work = _work_dtype(operator.dtype, recurrence_dtype)
        require_memory("lanczos", operator, columns=max(columns, 1), size=size, recurrence_dtype=work)
        run = _Run.begin(operator, start, reorthogonalize, keep, work, generator)
    else:
        if start is not None:
            raise ArgumentError("lanczos: start and state exclude each other; the state holds its own vectors")
        if state.reorthogonalize != reorthogonalize:
            raise ArgumentError(
                f"lanczos: the state was made with reorthogonalize={state.reorthogonalize!r}, now {reorthogonalize!r}"
            )
        size = 0 if state.basis is None else min(state.num_steps + num_steps, operator.shape[0])
        columns = state.current.shape[1]
        require_memory("lanczos", operator, columns=max(columns, 1), size=size, recurrence_dtype=state.current.dtype)
        run = _Run.resume(operator, state, generator)
    with torch.no_grad():
        run.reserve(num_steps)
        for _ in range(num_steps):
            if run.basis is not None and len(run.alpha) >= operator.shape[0]:
                break
            run.step()
            if on_step is not None:
                on_step(run.state())
    return run.state()


def block_lanczos(
    operator: LinearOperator | Tensor, start: Tensor, num_steps: int, *, recurrence_dtype: torch.dtype = torch.float64
) -> BlockLanczos:
    """Run Lanczos with blocks of B vectors that share one Krylov space, fully reorthogonalised.

    A block sees eigenvalues of multiplicity up to B, which a single vector cannot, and multiplies better.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, symmetric (Hermitian).
    start : Tensor, shape (N, B)
        Linearly independent columns.
    num_steps : int
        M >= 1 products with B columns, as far as N columns last.
    recurrence_dtype : torch.dtype, default torch.float64
        As in `lanczos`.

    Returns
    -------
    BlockLanczos
        A column that depends on earlier ones is dropped from its block by its zero coupling: the basis stays
        orthonormal, the column is replaced by a coordinate direction.

    Raises
    ------
    ShapeError
        If the operator is not square or a stack, or ``start`` does not fit it.
    ArgumentError
        If the operator is not symmetric, or ``num_steps < 1``.
    MemoryLimitError
        If N B (5 M + 4) numbers would not fit.

    Notes
    -----
    O(N (M B)²) work beside the products, O(N M B) memory.

    References
    ----------
    G. H. Golub, R. Underwood (1977), in Mathematical Software III.
    """
    operator = single_operator("block_lanczos", square_operator("block_lanczos", operator, symmetric=True))
    at_least("block_lanczos", "num_steps", num_steps, 1)
    n = operator.shape[0]
    if start.ndim != 2 or start.shape[0] != n or not 1 <= start.shape[1] <= n:
        raise ShapeError(f"block_lanczos: expected start of shape ({n}, b), 1 <= b <= {n}, got {tuple(start.shape)}")
    work = _work_dtype(operator.dtype, recurrence_dtype)
    width = start.shape[1]
    num_steps = min(num_steps, n // width)
    require_memory("block_lanczos", operator, columns=width, size=num_steps, recurrence_dtype=work)
    with torch.no_grad():
        block = torch.linalg.qr(start.to(work)).Q
        blocks: list[Tensor] = []
        T = torch.zeros(0, 0, dtype=work, device=operator.device)
        coupling = torch.zeros(width, width, dtype=work, device=operator.device)
        for _ in range(num_steps):
            images = operator.matmat(block.to(operator.dtype)).to(work)
            blocks.append(block)
            basis = torch.cat(blocks, dim=1)
            row = basis.mH @ images
            images = images - basis @ row
            again = basis.mH @ images
            images, row = images - basis @ again, row + again
            old = T.shape[0]
            grown = T.new_zeros(old + width, old + width)
            grown[:old, :old] = T
            diagonal = row[old:]
            grown[old:, old:] = (diagonal + diagonal.mH) / 2
            if old:
                grown[old - width : old, old:] = coupling.mH
                grown[old:, old - width : old] = coupling
            T = grown
            scale = torch.linalg.matrix_norm(T, ord=1) * n * torch.finfo(work).eps
            block, coupling = _orthonormal_block(images, basis, float(scale))
    return BlockLanczos(torch.cat(blocks, dim=1), T, coupling, block)


def _orthonormal_block(images: Tensor, basis: Tensor, tiny: float) -> tuple[Tensor, Tensor]:
    # QR column by column against basis and block; a dependent column gets zero coupling and a fresh direction
    columns: list[Tensor] = []
    coupling = images.new_zeros(images.shape[1], images.shape[1])
    for j in range(images.shape[1]):
        known = torch.cat([basis, *[c.unsqueeze(1) for c in columns]], dim=1)
        vector = images[:, j]
        for _ in range(2):
            inner = known.mH @ vector
            coupling[: len(columns), j] += inner[basis.shape[1] :]
            vector = vector - known @ inner
        norm = torch.linalg.vector_norm(vector)
        if float(norm) > tiny:
            coupling[j, j] = norm
        else:
            # the coordinate direction that the known columns miss most
            lost = 1 - known.abs().square().sum(1)
            vector = torch.zeros_like(vector)
            vector[lost.argmax()] = 1
            for _ in range(2):
                vector = vector - known @ (known.mH @ vector)
            norm = torch.linalg.vector_norm(vector)
            if float(norm) < torch.finfo(images.dtype).eps ** 0.5:  # the whole space is spanned
                columns.append(torch.zeros_like(vector))
                continue
        columns.append(vector / norm)
    return torch.stack(columns, dim=1), coupling


def _work_dtype(operator_dtype: torch.dtype, recurrence_dtype: torch.dtype) -> torch.dtype:
    if recurrence_dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"lanczos: recurrence_dtype must be float32 or float64, got {recurrence_dtype}")
    return recurrence_dtype.to_complex() if operator_dtype.is_complex else recurrence_dtype


def _column_major(block: Tensor) -> Tensor:
    # every vector in one stretch of memory, wherever it came from: sweeps are many times faster, and a vector read back
    # from a file rounds as the one that was written
    return block.mT.contiguous().mT


class _Run:
    """The recurrence with its vectors, mutable while it runs; `LanczosState` is what leaves the module."""

    def __init__(self, operator: LinearOperator, work: torch.dtype, generator: Generator | None) -> None:
        self.operator = operator
        self.work = work
        self.generator = generator
        self.eps = torch.finfo(work).eps
        self.start_norm: Tensor
        self.current: Tensor
        self.previous: Tensor
        self.alpha: list[Tensor] = []
        self.beta: list[Tensor] = []
        self.basis: Tensor | None = None  # the first len(self.alpha) of its rows are filled
        self.overlap: Tensor | None = None
        self.sweep_next = False
        self.num_sweeps = 0
        self.reorthogonalize: Reorthogonalization = "full"

    @classmethod
    def begin(
        cls,
        operator: LinearOperator,
        start: Tensor | None,
        reorthogonalize: Reorthogonalization,
        keep_basis: bool,
        work: torch.dtype,
        generator: Generator | None,
    ) -> "_Run":
        n = operator.shape[0]
        run = cls(operator, work, generator)
        if start is None:
            columns = gaussian_columns(n, 1, dtype=run.work, device=operator.device, generator=generator)
        else:
            columns = start.unsqueeze(1) if start.ndim == 1 else start
            if columns.ndim != 2 or columns.shape[0] != n or columns.device != operator.device:
                raise ShapeError(
                    f"lanczos: expected start of shape ({n},) or ({n}, k) on {operator.device}, got "
                    f"{tuple(start.shape)} on {start.device}"
                )
            columns = columns.detach().to(run.work)
        norms = torch.linalg.vector_norm(columns, dim=0)
        if not bool((norms > 0).all()) or not bool(torch.isfinite(norms).all()):
            raise ArgumentError("lanczos: start has a column that is zero or not finite")
        run.start_norm = norms.double()
        run.current = _column_major(columns / norms)
        run.previous = torch.zeros_like(run.current)
        run.reorthogonalize = reorthogonalize
        run.basis = run.current.new_empty(0, *run.current.shape) if keep_basis else None
        if reorthogonalize == "selective":
            run.overlap = torch.zeros(2, 1, columns.shape[1], dtype=torch.float64, device=operator.device)
            run.overlap[1] = 1
        return run

    @classmethod
    def resume(cls, operator: LinearOperator, state: LanczosState, generator: Generator | None) -> "_Run":
        if state.current.shape[0] != operator.shape[0]:
            raise ShapeError(
                f"lanczos: the state belongs to an operator of order {state.current.shape[0]}, got {operator.shape[0]}"
            )
        run = cls(operator, state.current.dtype, generator)
        run.start_norm = state.start_norm
        run.alpha, run.beta = list(state.alpha), list(state.beta)
        run.previous, run.current = _column_major(state.previous), _column_major(state.current)
        run.basis = state.basis
        run.overlap = state.overlap
        run.reorthogonalize = state.reorthogonalize
        run.num_sweeps = state.num_reorthogonalizations
        run.sweep_next = state.sweep_pending
        return run

    def reserve(self, num_steps: int) -> None:
        if self.basis is None:
            return
        filled = len(self.alpha)
        rows = min(filled + num_steps, max(self.operator.shape[0], filled))
        n, k = self.current.shape
        grown = self.basis.new_empty(rows, k, n).mT  # as the vectors lie, so that a sweep reads them in one stretch
        grown[:filled] = self.basis[:filled]
        self.basis = grown

    def state(self) -> LanczosState:
        return LanczosState(
            torch.stack(self.alpha),
            torch.stack(self.beta),
            self.start_norm,
            self.previous,
            self.current,
            None if self.basis is None else self.basis[: len(self.alpha)],
            self.overlap,
            self.reorthogonalize,
            self.num_sweeps,
            self.sweep_next,
        )

    def step(self) -> None:
        q = self.current
        image = self.operator.matmat(q.to(self.operator.dtype)).to(self.work)
        if self.beta:
            image = torch.addcmul(image, self.previous, self.beta[-1].to(self.work), value=-1)
        alpha = (q.conj() * image).sum(0).real.double()
        if not bool(torch.isfinite(alpha).all()):
            raise NumericalError(
                f"lanczos: the product of {type(self.operator).__name__} has NaN or Inf at step {len(self.alpha) + 1}"
            )
        image = torch.addcmul(image, q, alpha.to(self.work), value=-1)
        if self.basis is not None:
            self.basis[len(self.alpha)] = q
        self.alpha.append(alpha)
        if self.reorthogonalize == "full":
            image = self._sweep_fully(image)
        elif self.reorthogonalize == "selective":
            image = self._sweep_if_needed(image)
        beta = torch.linalg.vector_norm(image, dim=0).double()
        vanished = beta <= self.operator.shape[0] * self.eps * self._size(alpha)
        safe = torch.where(vanished, torch.ones_like(beta), beta)
        fresh = image / safe.to(self.work)
        if bool(vanished.any()):
            fresh = torch.where(vanished, self._replacement(q), fresh)
            beta = torch.where(vanished, torch.zeros_like(beta), beta)
        self.beta.append(beta)
        self.previous, self.current = q, _column_major(fresh)

    def _size(self, alpha: Tensor) -> Tensor:
        # a lower bound of the norm of T that costs nothing
        size = torch.stack(self.alpha).abs().amax(0)
        return torch.maximum(size, torch.stack(self.beta).amax(0)) if self.beta else alpha.abs()

    def _sweep(self, block: Tensor) -> Tensor:
        if self.basis is None:
            return block
        known = self.basis[: len(self.alpha)]
        # one column at a time, as matrix-vector products: batched products of these strides copy the basis first
        swept: list[Tensor] = []
        for column, vectors in zip(block.unbind(1), known.unbind(2), strict=True):
            swept.append(torch.addmv(column, vectors.mT, vectors.conj() @ column, alpha=-1))
        return torch.stack(swept).mT

    def _sweep_fully(self, block: Tensor) -> Tensor:
        # the recurrence has taken the two large parts out already, so that one sweep is enough; where it still takes
        # much away, rounding was large beside what is left, and a second follows (twice is enough: Kahan, Parlett)
        before = torch.linalg.vector_norm(block, dim=0)
        block = self._sweep(block)
        after = torch.linalg.vector_norm(block, dim=0)
        return self._sweep(block) if bool((after < 0.7 * before).any()) else block

    def _sweep_if_needed(self, image: Tensor) -> Tensor:
        # Simon's recurrence for the overlaps of the next vector with all earlier ones; a sweep also cleans the
        # vector after it, because the recurrence mixes two
        if self.overlap is None:
            return image
        before, now = self.overlap
        j = len(self.alpha)
        noise = self.eps * self.operator.shape[0] ** 0.5
        beta_next = torch.linalg.vector_norm(image, dim=0).double().clamp_min(torch.finfo(torch.float64).tiny)
        following = torch.full((j + 1, now.shape[1]), noise, dtype=torch.float64, device=now.device)
        if j > 1:
            alpha, beta = torch.stack(self.alpha), torch.stack(self.beta)
            rows = torch.arange(j - 1, device=now.device)
            mixed = beta[rows] * now[rows + 1] + (alpha[rows] - alpha[-1]) * now[rows] - beta[-1] * before[rows]
            mixed[1:] += beta[rows[1:] - 1] * now[rows[1:] - 1]
            following[: j - 1] = (mixed + mixed.sign() * noise * self._size(self.alpha[-1])) / beta_next
        following[j] = 1
        worst = float(following[: max(j - 1, 0)].abs().max()) if j > 1 else 0.0
        if worst > self.eps**0.5 or self.sweep_next:
            image = self._sweep(self._sweep(image))
            following[:j] = noise
            self.num_sweeps += 1
            self.sweep_next = not self.sweep_next
        padded = torch.cat([now, torch.zeros_like(now[:1])])
        self.overlap = torch.stack([padded, following])
        return image

    def _replacement(self, like: Tensor) -> Tensor:
        n, k = like.shape
        fresh = gaussian_columns(n, k, dtype=self.work, device=like.device, generator=self.generator)
        for _ in range(2):
            fresh = self._sweep(fresh)
            if self.basis is None:  # the last two are all there is to be orthogonal to
                for vector in (self.current, self.previous):
                    fresh = fresh - vector * (vector.conj() * fresh).sum(0)
        norms = torch.linalg.vector_norm(fresh, dim=0)
        exhausted = norms <= n * self.eps * n**0.5  # the basis spans the space: nothing is left
        return torch.where(exhausted, torch.zeros_like(fresh), fresh / norms.clamp_min(torch.finfo(self.work).tiny))
