"""A sequence of systems with one matrix: each solve leaves behind the directions that were hardest for it.

From the directions V of conjugate gradients and their products W = A V, which are there anyway, the lowest eigenvectors
of M A are approximated in the inner product of A: WᴴM W y = θ VᴴW y. A window of vectors is kept; when it is full it is
cut down to the lowest Ritz vectors of now and of one step before, which carries most of what the whole Krylov space
knows about them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.linalg._arguments import at_least, single_operator, wide_dtype
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import Preconditioner
from hesse.linalg.solvers.cg import cg
from hesse.linalg.solvers.deflation import Deflation, gram_factor
from hesse.linalg.solvers.solution import Solution

__all__ = ["recycled_cg"]

_FLOOR = 1e-4  # what depends on other directions more than that is dropped: W must remain A V over many cuts


@torch.no_grad()
def recycled_cg(
    operator: LinearOperator,
    b: Tensor,
    *,
    deflation: Deflation | None = None,
    rank: int = 8,
    window: int | None = None,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int | None = None,
    recurrence_dtype: torch.dtype | None = None,
    record_history: bool = False,
    validate: bool = True,
) -> tuple[Solution, Deflation]:
    """Solve A x = b with `cg`, and collect a subspace that makes the next solve with the same A cheaper.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
        Hermitian positive definite A; not a stack.
    b : Tensor, shape (n,) or (..., n, k)
        Right-hand sides. One column at a time teaches most.
    deflation : Deflation, optional
        What the last solve returned; it is used in this one and improved by it. For another operator pass
        ``Deflation.of(operator, deflation.U)``.
    rank : int, default 8
        Directions to collect, 2 * rank vectors of memory when done. Worth as many as there are eigenvalues far below
        the rest.
    window : int, optional
        Vectors kept while the solve runs, twice that many in memory; >= 2 * rank + 2 * k. Default: the larger of this
        and 5 * rank.
    x0 : Tensor, shape of b, optional
        Start. Default: zero.
    preconditioner : LinearOperator or callable, optional
        As in `cg`. The subspace belongs to M A, so keep M from solve to solve; collecting applies M once more to each
        direction.
    rtol, atol, max_steps, recurrence_dtype, record_history, validate
        As in `cg`.

    Returns
    -------
    Solution
        As from `cg`; not one product more is made.
    Deflation
        At most ``rank`` directions with their products, the lowest first, in ``ritz_values`` the approximate
        eigenvalues of M A.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit, or the operator is a stack.
    ArgumentError
        If ``rank < 1``, the window is too small, a tolerance or limit is negative.
    NumericalError
        If b or the first product has NaN or Inf, or the operator is declared symmetric and is not.

    Notes
    -----
    O(n · window) work a step and column on average, beside that of `cg`.

    References
    ----------
    A. Stathopoulos, K. Orginos (2010), SIAM J. Sci. Comput. 32(1), arXiv 0707.0131; Y. Saad, M. Yeung, J. Erhel,
    F. Guyomarc'h (2000), SIAM J. Sci. Comput. 21(5).

    Examples
    --------
    >>> import torch
    >>> from hesse.linalg import Diagonal, recycled_cg
    >>> A = Diagonal(torch.cat([torch.tensor([1e-6, 1e-5, 1e-4]), torch.linspace(1, 2, 97)]).double(), is_psd=True)
    >>> g, space, steps = torch.Generator().manual_seed(0), None, []
    >>> for _ in range(3):
    ...     b = torch.randn(100, dtype=torch.float64, generator=g)
    ...     solution, space = recycled_cg(A, b, deflation=space, rank=3, rtol=1e-8)
    ...     steps.append(solution.num_steps)
    >>> steps[2] < steps[0]
    True
    """
    operator = single_operator("recycled_cg", operator)
    at_least("recycled_cg", "rank", rank, 1)
    width = b.shape[-1] if b.ndim > 1 else 1
    least = 2 * rank + 2 * width
    size = max(least, 5 * rank) if window is None else window
    if size < least:
        raise ArgumentError(f"recycled_cg: expected window >= 2 * rank + 2 * k = {least}, got {size}")
    apply = preconditioner.matmat if isinstance(preconditioner, LinearOperator) else preconditioner
    collected = _Window(rank, size, apply, operator.dtype)
    if deflation is not None:
        collected.observe(deflation.U, deflation.AU)
    solution = cg(
        operator,
        b,
        x0=x0,
        preconditioner=preconditioner,
        deflation=deflation,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        recurrence_dtype=recurrence_dtype,
        record_history=record_history,
        observe_fn=collected.observe,
        validate=validate,
    )
    return solution, collected.deflation(operator)


class _Window:
    """Directions and their products while a solve runs, mutable; a `Deflation` is what leaves the module."""

    def __init__(
        self, rank: int, size: int, precondition: Callable[[Tensor], Tensor] | None, dtype: torch.dtype
    ) -> None:
        self.rank, self.size, self.dtype = rank, size, dtype
        self.precondition = precondition
        self.V: list[Tensor] = []
        self.W: list[Tensor] = []
        self.count = 0

    def observe(self, p: Tensor, ap: Tensor) -> None:
        """Take in a block of directions.

        Parameters
        ----------
        p, ap : Tensor, shape (n, w)
            Directions and their products; copied.
        """
        if self.count and self.count + p.shape[1] > self.size:
            self._cut()
        # unit length keeps squares in range, and a column that stands still adds nothing
        length = torch.linalg.vector_norm(p, dim=0)
        live = (length > 0) & torch.isfinite(torch.linalg.vector_norm(ap, dim=0))
        self.V.append((p / torch.where(live, length, 1))[:, live])
        self.W.append((ap / torch.where(live, length, 1))[:, live])
        self.count += self.V[-1].shape[1]

    def deflation(self, operator: LinearOperator) -> Deflation:
        """Close the window.

        Parameters
        ----------
        operator : LinearOperator
            For the shape of an empty subspace.

        Returns
        -------
        Deflation
            The lowest Ritz vectors.
        """
        if not self.count:
            empty = torch.zeros(operator.shape[0], 0, dtype=wide_dtype(operator.dtype), device=operator.device)
            return Deflation(empty, empty, empty[0].real)
        V, W, G, F = self._pencil()
        values, C = _lowest(G, F, self.rank)
        return Deflation(V @ C, W @ C, values)

    def _pencil(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        V, W = torch.cat(self.V, dim=1), torch.cat(self.W, dim=1)
        MW = W if self.precondition is None else self.precondition(W.to(self.dtype)).to(W.dtype)
        return V, W, V.mH @ W, W.mH @ MW

    def _cut(self) -> None:
        V, W, G, F = self._pencil()
        before = len(G) - self.V[-1].shape[1]
        C = _lowest(G, F, self.rank)[1]
        if before:
            earlier = _lowest(G[:before, :before], F[:before, :before], self.rank)[1]
            C = torch.cat([C, torch.nn.functional.pad(earlier, (0, 0, 0, len(G) - before))], dim=1)
        C = C @ gram_factor(C.mH @ G @ C, _FLOOR)
        self.V, self.W = [V @ C], [W @ C]
        self.count = C.shape[1]


def _lowest(G: Tensor, F: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    # the lowest eigenpairs of F y = θ G y, Y with YᴴGY = I
    basis = gram_factor(G, _FLOOR)
    projected = basis.mH @ F @ basis
    values, vectors = torch.linalg.eigh((projected + projected.mH) / 2)
    return values[:rank], basis @ vectors[:, :rank]
