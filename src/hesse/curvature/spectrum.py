"""The spectrum of a curvature matrix: top eigenpairs, density, trace and diagonal, resumable and with progress.

All of it works on any symmetric `LinearOperator`; the numbers are those of `hesse.linalg`. What is added is for runs of
hours: with ``run=`` every step is saved to a folder, and the same call after a crash goes on to the same bits.
Shapes: N order of the matrix, K eigenpairs or probes, M Lanczos steps.
"""

from contextlib import ExitStack
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse._progress import progress
from hesse.curvature._checkpoint import Folder, open_checkpoint
from hesse.curvature._resumable import Moments, SavedLanczos, SavedRestarts, own_generator, sample
from hesse.errors import ArgumentTypeError
from hesse.linalg._arguments import at_least, single_operator, square_operator
from hesse.linalg._random import sign_columns
from hesse.linalg.diagonals import DiagonalEstimate
from hesse.linalg.eigen.eigsh import Which, eigsh
from hesse.linalg.eigen.lanczos import lanczos
from hesse.linalg.eigen.result import EigenResult
from hesse.linalg.eigen.slq import SpectralDensity, check_smoothing, density_of
from hesse.linalg.operator import LinearOperator
from hesse.linalg.traces import TraceEstimate

__all__ = ["eigenvalue_density", "sampled_diagonal", "sampled_trace", "top_eigenpairs"]


def top_eigenpairs(
    operator: LinearOperator,
    k: int = 10,
    *,
    which: Which = "LM",
    tol: float | None = None,
    max_steps: int | None = None,
    basis_size: int | None = None,
    verify: bool = True,
    generator: Generator | None = None,
    run: Folder | None = None,
    show_progress: bool | None = None,
) -> EigenResult:
    """Compute K eigenpairs A u = λ u at the end of the spectrum, by thick-restart Lanczos (`hesse.linalg.eigsh`).

    Parameters
    ----------
    operator : LinearOperator, shape (N, N)
        A, symmetric.
    k : int, default 10
        1 <= K <= N.
    which : {"LM", "LA", "SA"}, default "LM"
        Largest magnitude, largest or smallest eigenvalues.
    tol : float, optional
        Residual relative to the eigenvalue of largest magnitude. Default: 1e-10 in float64, 1e-5 otherwise.
    max_steps : int, optional
        Products at most. Default: max(10 N, 1000).
    basis_size : int, optional
        Vectors kept, more than K; they are float64, 8 N bytes each. Default: max(2 K + 1, 20).
    verify : bool, default True
        Whether K further products, in one block, give the residuals; see `hesse.linalg.eigsh`.
    generator : torch.Generator, optional
        Source of the first vector. Default: one seeded by torch's global generator. On resuming it is set to where the
        run stopped.
    run : str or PathLike, optional
        Folder to save every step to and to resume from. It takes the memory of the basis. Default: nothing is saved.
    show_progress : bool, optional
        Default: whether stderr is a terminal. The bar counts products; how many it takes is not known beforehand.

    Returns
    -------
    EigenResult
        Eigenvalues rising, in the units of the loss per squared unit of the parameters.

    Raises
    ------
    ShapeError
        If the operator is not square.
    ArgumentError
        If it is not symmetric, or an argument is out of range.
    ArtifactError
        If ``run`` holds a run of other settings or another matrix.
    NumericalError
        If a product has NaN or Inf.

    Examples
    --------
    >>> from hesse.curvature import hessian
    >>> operator = hessian(lambda p, _: (p["x"] ** 2 @ torch.tensor([1.0, 2.0, 3.0])) / 2, {"x": torch.ones(3)}, None)
    >>> top_eigenpairs(operator, 2).eigenvalues
    tensor([2., 3.])
    """
    operator = single_operator("top_eigenpairs", square_operator("top_eigenpairs", operator))
    generator = own_generator(generator)
    settings = {"k": k, "which": which, "tol": tol, "max_steps": max_steps, "basis_size": basis_size, "verify": verify}
    with ExitStack() as stack:
        checkpoint = (
            None if run is None else stack.enter_context(open_checkpoint(run, "eigenpairs", settings, operator))
        )
        expected = basis_size or max(2 * k + 1, 20)
        advance = stack.enter_context(progress("eigenpairs", expected, unit="products", enabled=show_progress))
        saved = SavedRestarts(checkpoint, generator, advance)
        if (result := saved.finished()) is not None:
            return result
        result = eigsh(
            operator,
            k,
            which=which,
            tol=tol,
            max_steps=max_steps,
            basis_size=basis_size,
            verify=verify,
            state=saved.resume(),
            on_step=saved,
            generator=generator,
        )
        saved.finish(result)
        return result


def eigenvalue_density(
    operator: LinearOperator,
    *,
    num_probes: int = 10,
    num_steps: int = 80,
    sigma: float | Literal["auto"] = "auto",
    grid: Tensor | int = 512,
    chunk_size: int | None = None,
    generator: Generator | None = None,
    run: Folder | None = None,
    show_progress: bool | None = None,
) -> SpectralDensity:
    """Estimate the density of eigenvalues by stochastic Lanczos quadrature (`hesse.linalg.spectral_density`).

    Parameters
    ----------
    operator : LinearOperator, shape (N, N)
        A, symmetric.
    num_probes : int, default 10
        K >= 2 sign vectors; the standard error falls as 1/√K.
    num_steps : int, default 80
        M products with each, at most N.
    sigma : float or "auto", default "auto"
        Width of the Gaussian at each Ritz value; "auto": the length of the spectrum over M.
    grid : Tensor, shape (G,), or int, default 512
        Where to evaluate. Neither sigma nor grid is part of a run: a finished run gives another at no product.
    chunk_size : int, optional
        Probes that run side by side, 8 N M bytes each. Default: all.
    generator : torch.Generator, optional
        Source of the signs. Default: one seeded by torch's global generator. On resuming it is set to where the run
        stopped.
    run : str or PathLike, optional
        Folder to save every step to and to resume from. It takes the memory of the basis. Default: nothing is saved.
    show_progress : bool, optional
        Default: whether stderr is a terminal.

    Returns
    -------
    SpectralDensity
        Per eigenvalue: its integral is one. `plot_density` draws it.

    Raises
    ------
    ShapeError
        If the operator is not square.
    ArgumentError
        If it is not symmetric, or an argument is out of range.
    ArtifactError
        If ``run`` holds a run of other settings or another matrix.
    NumericalError
        If a product has NaN or Inf.

    References
    ----------
    B. Ghorbani, S. Krishnan, Y. Xiao (2019), ICML, arXiv 1901.10159.
    """
    call = "eigenvalue_density"
    operator = single_operator(call, square_operator(call, operator, symmetric=True))
    at_least(call, "num_probes", num_probes, 2)
    at_least(call, "num_steps", num_steps, 1)
    size = num_probes if chunk_size is None else chunk_size
    at_least(call, "chunk_size", size, 1)
    check_smoothing(call, sigma, grid)
    generator = own_generator(generator)
    n, steps = operator.shape[0], min(num_steps, operator.shape[0])
    work = torch.complex128 if operator.dtype.is_complex else torch.float64
    settings = {"num_probes": num_probes, "num_steps": num_steps, "chunk_size": size}
    with ExitStack() as stack:
        checkpoint = None if run is None else stack.enter_context(open_checkpoint(run, "density", settings, operator))
        total = num_probes * steps
        advance = stack.enter_context(progress("eigenvalue density", total, unit="products", enabled=show_progress))
        saved = SavedLanczos(checkpoint, generator, advance)
        state = saved.resume()
        for first in range(size * len(saved.rules), num_probes, size):
            if state is None:
                width = min(size, num_probes - first)
                start = sign_columns(n, width, dtype=work, device=operator.device, generator=generator)
                state = lanczos(operator, steps, start=start, generator=generator, on_step=saved)
            elif state.num_steps < steps:
                state = lanczos(operator, steps - state.num_steps, state=state, generator=generator, on_step=saved)
            saved.finish_run(state.ritz())
            state = None
    nodes, weights, residuals = (torch.cat([rule[i] for rule in saved.rules]) for i in range(3))
    return density_of(nodes, weights, residuals, sigma=sigma, grid=grid)


def sampled_trace(
    operator: LinearOperator,
    num_probes: int = 100,
    *,
    rtol: float | None = None,
    chunk_size: int = 1,
    generator: Generator | None = None,
    run: Folder | None = None,
    show_progress: bool | None = None,
) -> TraceEstimate:
    """Average zᵀAz over random sign vectors z until they are used up or the standard error is small enough.

    Where the spectrum decays, `hesse.linalg.xtrace` needs far fewer products; this one can stop and resume at any.

    Parameters
    ----------
    operator : LinearOperator, shape (N, N)
        A, real.
    num_probes : int, default 100
        K >= 2 products at most.
    rtol : float, optional
        Stop when the standard error is at most rtol times the mean, looked at from 10 probes on. Default: use all.
    chunk_size : int, default 1
        Probes to a product, and between two saves.
    generator : torch.Generator, optional
        Source of the signs. Default: one seeded by torch's global generator. On resuming it is set to where the run
        stopped.
    run : str or PathLike, optional
        Folder to save every product to and to resume from. Default: nothing is saved.
    show_progress : bool, optional
        Default: whether stderr is a terminal.

    Returns
    -------
    TraceEstimate
        Unbiased for a fixed number of probes; stopping by ``rtol`` biases it by less than its standard error.

    Raises
    ------
    ShapeError
        If the operator is not square.
    ArgumentError
        If an argument is out of range.
    ArgumentTypeError
        If the operator is complex.
    ArtifactError
        If ``run`` holds a run of other settings or another matrix.

    References
    ----------
    M. F. Hutchinson (1990), Commun. Stat. Simul. Comput. 19(2).
    """
    operator = _checked("sampled_trace", operator, num_probes, chunk_size)
    if rtol is not None:
        at_least("sampled_trace", "rtol", rtol, 0)
    settings = {"num_probes": num_probes, "rtol": rtol, "chunk_size": chunk_size}

    def settled(moments: Moments) -> bool:
        if rtol is None or moments.count < 10:
            return False
        return bool(moments.standard_error() <= rtol * moments.mean.abs())

    moments = sample("trace", operator, settings, lambda z, az: (z * az).sum(0), settled, generator, run, show_progress)
    return TraceEstimate(moments.mean, moments.standard_error(), moments.count)


def sampled_diagonal(
    operator: LinearOperator,
    num_probes: int = 100,
    *,
    chunk_size: int = 1,
    generator: Generator | None = None,
    run: Folder | None = None,
    show_progress: bool | None = None,
) -> DiagonalEstimate:
    """Average z ⊙ Az over random sign vectors z, an estimate of the diagonal with a standard error for each entry.

    Parameters
    ----------
    operator : LinearOperator, shape (N, N)
        A, real.
    num_probes : int, default 100
        K >= 2 products.
    chunk_size : int, default 1
        Probes to a product, and between two saves.
    generator : torch.Generator, optional
        Source of the signs. Default: one seeded by torch's global generator. On resuming it is set to where the run
        stopped.
    run : str or PathLike, optional
        Folder to save every product to and to resume from. Default: nothing is saved.
    show_progress : bool, optional
        Default: whether stderr is a terminal.

    Returns
    -------
    DiagonalEstimate
        Unbiased; the variance of an entry is the squared length of the rest of its row over K.

    Raises
    ------
    ShapeError
        If the operator is not square.
    ArgumentError
        If an argument is out of range.
    ArgumentTypeError
        If the operator is complex.
    ArtifactError
        If ``run`` holds a run of other settings or another matrix.

    References
    ----------
    C. Bekas, E. Kokiopoulou, Y. Saad (2007), Appl. Numer. Math. 57.
    """
    operator = _checked("sampled_diagonal", operator, num_probes, chunk_size)
    settings = {"num_probes": num_probes, "chunk_size": chunk_size}
    moments = sample(
        "diagonal", operator, settings, lambda z, az: z * az, lambda _: False, generator, run, show_progress
    )
    return DiagonalEstimate(moments.mean, moments.standard_error(), moments.count)


def _checked(call: str, operator: LinearOperator, num_probes: int, chunk_size: int) -> LinearOperator:
    operator = single_operator(call, square_operator(call, operator))
    if operator.dtype.is_complex:
        raise ArgumentTypeError(f"{call}: expected a real operator, got {operator.dtype}; see hesse.linalg.trace")
    at_least(call, "num_probes", num_probes, 2)
    at_least(call, "chunk_size", chunk_size, 1)
    return operator
