"""Estimates of tr(A) from products with A alone.   Shapes: N order of A, K random columns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least, single_operator, square_operator, wide_dtype
from hesse.linalg._leave_one_out import probe_range
from hesse.linalg._random import sign_columns, sphere_columns
from hesse.linalg.memory import require_memory
from hesse.linalg.operator import LinearOperator

__all__ = ["TraceEstimate", "TraceMethod", "hutchinson_trace", "hutchpp_trace", "trace", "xnystrace", "xtrace"]

TraceMethod = Literal["auto", "exact", "hutchinson", "hutchpp", "xtrace", "xnystrace"]


@dataclass(frozen=True, slots=True)
class TraceEstimate:
    """A trace with the spread that sampling left in it."""

    value: Tensor  # (), or batch_shape; float32 if the operator is in half precision
    standard_error: Tensor  # of the shape of value, real
    num_matvecs: int

    def __float__(self) -> float:
        return float(self.value.detach())


def hutchinson_trace(
    operator: LinearOperator | Tensor,
    num_probes: int = 100,
    *,
    chunk_size: int | None = None,
    generator: Generator | None = None,
) -> TraceEstimate:
    """Average zᴴAz over random sign vectors z: unbiased, and exact for diagonal A.

    The variance is twice the squared Frobenius norm of the off-diagonal part (of the symmetric part of A), divided by
    K, whatever the spectrum: the method of choice for flat spectra, the wrong one for decaying ones (see `xtrace`).

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (..., N, N)
        A, in any floating dtype; it need not be symmetric. Matrices of a stack share the probes.
    num_probes : int, default 100
        K >= 2 products with A.
    chunk_size : int, optional
        Probes to a product, O(N · chunk_size) memory; it does not change the numbers drawn. Default: all at once.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.

    Returns
    -------
    TraceEstimate
        The standard error falls as 1/√K. Differentiable where the products are.

    Raises
    ------
    ShapeError
        If the operator is not square.
    ArgumentError
        If ``num_probes < 2``: one probe has no spread to report. Also a ValueError.

    References
    ----------
    M. F. Hutchinson (1990), Commun. Stat. Simul. Comput. 19(2).
    """
    operator = square_operator("hutchinson_trace", operator)
    at_least("hutchinson_trace", "num_probes", num_probes, 2)
    if chunk_size is not None:
        at_least("hutchinson_trace", "chunk_size", chunk_size, 1)
    pieces = [_quadratic_forms(operator, signs) for signs in _sign_chunks(operator, num_probes, chunk_size, generator)]
    return _summary(torch.cat(pieces, dim=-1), num_probes)


def hutchpp_trace(
    operator: LinearOperator | Tensor, num_matvecs: int = 100, *, generator: Generator | None = None
) -> TraceEstimate:
    """Take the trace exactly on the range of A Ω and by Hutchinson on the rest (Hutch++).

    tr A ≈ tr(QᴴAQ) + mean of zᴴ(I - QQᴴ) A (I - QQᴴ) z with Q = orth(A Ω), a third of the products for each of A Ω,
    A Q and the z. Reaches relative error ε for positive semi-definite A with O(1/ε) products, Hutchinson needs O(1/ε²).

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A; it need not be symmetric.
    num_matvecs : int, default 100
        m >= 6 products; the part not divisible by three goes to the z.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.

    Returns
    -------
    TraceEstimate
        Its standard error is that of the z, which is all the randomness that is left given Q. If m >= 3 N the trace is
        read off exactly, with N products.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack.
    ArgumentError
        If ``num_matvecs < 6``.

    References
    ----------
    R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff (2021), SOSA, arXiv 2010.09649.
    """
    operator = single_operator("hutchpp_trace", square_operator("hutchpp_trace", operator))
    at_least("hutchpp_trace", "num_matvecs", num_matvecs, 6)
    n, k = operator.shape[0], num_matvecs // 3
    if k >= n:
        return _exact(operator)
    signs = sign_columns(n, k, dtype=operator.dtype, device=operator.device, generator=generator)
    Q = torch.linalg.qr(_wide_product(operator, signs)).Q
    return _deflated_hutchinson(operator, Q, num_matvecs - 2 * k, num_matvecs, generator)


def xtrace(
    operator: LinearOperator | Tensor, num_matvecs: int = 100, *, generator: Generator | None = None
) -> TraceEstimate:
    """Estimate the trace so that every product serves twice: in the range finder and as a probe of the rest (XTrace).

    With Ω of K = m/2 columns, each column ω in turn is left out: Hutch++ with the range of A times the others, and ω as
    its only probe. All K estimates come from one QR factorisation of A Ω; the answer is their mean.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A; it need not be symmetric.
    num_matvecs : int, default 100
        m >= 4 products, an even number is used: m/2 for A Ω, m/2 for A Q.
    generator : torch.Generator, optional
        Source of the Gaussian columns. Default: torch's global generator.

    Returns
    -------
    TraceEstimate
        The standard error is the spread of the K estimates over √K, a good guide although they share their range. If A
        Ω has dependent columns, the range found is all that A has, and the remaining products only check this. If
        m >= N the trace is read off exactly, with N products.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack.
    ArgumentError
        If ``num_matvecs < 4``.
    MemoryLimitError
        If 4 N m numbers would not fit.

    Notes
    -----
    On decaying spectra far ahead of Hutchinson; on a flat spectrum somewhat behind it. Where eigenvalues fall as i⁻²,
    120 products leave 0.57 of the error of `hutchpp_trace`: 4/9 by the larger range and the larger number of probes,
    the rest is the correlation of the estimates. O(N m²) work beside the products, O(N m) memory. Probes are uniform on
    the sphere and rescaled in the complement of the range, which makes the estimate better still for flat tails.

    References
    ----------
    E. N. Epperly, J. A. Tropp, R. J. Webber (2024), SIAM J. Matrix Anal. Appl. 45(1), arXiv 2301.07825.
    """
    operator = single_operator("xtrace", square_operator("xtrace", operator))
    at_least("xtrace", "num_matvecs", num_matvecs, 4)
    n, k = operator.shape[0], num_matvecs // 2
    if 2 * k >= n:
        return _exact(operator)
    require_memory("xtrace", operator, size=2 * k)
    omega_NK = sphere_columns(n, k, dtype=wide_dtype(operator.dtype), device=operator.device, generator=generator)
    found = probe_range(_wide_product(operator, omega_NK))
    if found.S is None:
        left = max(2, k - found.Q.shape[1])
        return _deflated_hutchinson(operator, found.Q, left, k + found.Q.shape[1] + left, generator)
    Q, R, S = found.Q, found.R, found.S
    Z = _wide_product(operator, Q)
    H, W, T = Q.mH @ Z, Q.mH @ omega_NK, Z.mH @ omega_NK
    own = (S.conj() * W).sum(0)  # sᴴw
    U = W - S * own
    on_range = H.diagonal().sum() - (S.conj() * (H @ S)).sum(0)
    rest = (W.conj() * R).sum(0) - (T.conj() * U).sum(0) - (U.conj() * R).sum(0) + (U.conj() * (H @ U)).sum(0)
    # the part of ω outside the range of the others has a random length; on a sphere of dimension n - k + 1 it has not
    length = n - W.abs().square().sum(0) + own.abs().square()
    return _summary(on_range + rest * ((n - k + 1) / length), 2 * k)


def xnystrace(
    operator: LinearOperator | Tensor, num_matvecs: int = 100, *, generator: Generator | None = None
) -> TraceEstimate:
    """Estimate the trace of a positive semi-definite A through leave-one-out Nystrom approximations (XNysTrace).

    Each column ω of Ω in turn probes A - Â, where Â is the Nystrom approximation from the other columns. As A needs to
    be applied only once to each column, the range is twice as large as `xtrace`'s for the same number of products.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, positive semi-definite; an operator must declare it, a tensor is tested by the factorisation.
    num_matvecs : int, default 100
        m >= 2 products.
    generator : torch.Generator, optional
        Source of the Gaussian columns. Default: torch's global generator.

    Returns
    -------
    TraceEstimate
        The standard error is the jackknife's, which needs no further product; infinite for m = 2. It does not fall
        short in the mean, and is up to some five times too large where eigenvalues fall exponentially, because it sees
        the estimator with a column fewer. If m >= N the trace is read off exactly, with N products.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack.
    ArgumentError
        If ``num_matvecs < 2``, or the operator is not declared positive semi-definite.
    NumericalError
        If the operator turns out to have negative eigenvalues.

    Notes
    -----
    A shift of A by eps ‖A Ω‖_F keeps the factorisation stable and is subtracted again.

    References
    ----------
    B. Efron, C. Stein (1981), Ann. Stat. 9(3), for the jackknife.
    E. N. Epperly, J. A. Tropp, R. J. Webber (2024), SIAM J. Matrix Anal. Appl. 45(1), arXiv 2301.07825.
    """
    declared = isinstance(operator, Tensor) or operator.is_psd
    operator = single_operator("xnystrace", square_operator("xnystrace", operator, symmetric=declared))
    if not declared:
        raise ArgumentError(
            f"xnystrace: {type(operator).__name__} is not declared positive semi-definite; construct it with "
            "is_psd=True if it is, or use xtrace"
        )
    at_least("xnystrace", "num_matvecs", num_matvecs, 2)
    n, k = operator.shape[0], num_matvecs
    if k >= n:
        return _exact(operator)
    omega_NK = sphere_columns(n, k, dtype=wide_dtype(operator.dtype), device=operator.device, generator=generator)
    images = _wide_product(operator, omega_NK)
    shift = torch.finfo(images.dtype).eps * torch.linalg.matrix_norm(images)
    if bool(shift == 0):
        zero = images.real.new_zeros(())
        return TraceEstimate(zero.to(images.dtype), zero, k)
    images = images + shift * omega_NK
    core = omega_NK.mH @ images
    lower, failed = torch.linalg.cholesky_ex((core + core.mH) / 2)
    if int(failed) != 0:
        raise NumericalError(
            "xnystrace: Ωᴴ A Ω is not positive definite: A has negative eigenvalues (or is not symmetric); use xtrace"
        )
    # Â = B Bᴴ with B = Y C⁻¹; leaving column i out takes g_i g_iᴴ / m_ii away, with G = Y M and M = (ΩᴴY)⁻¹
    identity = torch.eye(k, dtype=core.dtype, device=core.device)
    inverse_lower = torch.linalg.solve_triangular(lower, identity, upper=False)
    B = images @ inverse_lower.mH
    G = B @ inverse_lower
    M = inverse_lower.mH @ inverse_lower
    inverse_factor = torch.linalg.solve_triangular(torch.linalg.qr(omega_NK).R, identity, upper=True)
    alone = inverse_factor @ inverse_factor.mH  # one over its diagonal: squared length of ω outside the others' span
    m = M.diagonal().real
    # ... which the factor (n - k + 1) / length puts to its mean
    changes = (n - k + 1) * alone.diagonal().real / m - (G.abs().square().sum(0) / m)
    value = B.abs().square().sum() + changes.mean() - n * shift
    return TraceEstimate(value.to(images.dtype), _jackknife(M, G, alone, n), k)


def _jackknife(M: Tensor, G: Tensor, alone: Tensor, n: int) -> Tensor:
    # the k leave-one-out estimates share nearly all their columns, so their spread says too little (3.6 times on
    # 0.7^i); the estimator is computed anew without each column, which takes two out of Â: 2 x 2 blocks of M
    k = len(M)
    if k < 3:
        return M.real.new_full((), torch.inf)
    gram = G.mH @ G
    m, a, g = M.diagonal().real, alone.diagonal().real, gram.diagonal().real
    cross = (M * gram.mT).real
    det = (m.unsqueeze(1) * m - M.abs().square()).clamp_min(torch.finfo(m.dtype).tiny)
    # row i: column i is gone for good; column j is left out in its turn, and probes
    taken = (m.unsqueeze(1) * g + g.unsqueeze(1) * m - 2 * cross) / det
    length = (a.unsqueeze(1) * a - alone.abs().square()) / a.unsqueeze(1)  # one over the squared length of ω_j
    probed = m.unsqueeze(1) / det * length * (n - k + 2)
    terms = probed - taken
    terms.fill_diagonal_(0)
    without = terms.sum(1) / (k - 1)
    return ((without - without.mean()).square().sum() * ((k - 1) / k)).sqrt()


def trace(
    operator: LinearOperator | Tensor,
    num_matvecs: int = 100,
    *,
    method: TraceMethod = "auto",
    generator: Generator | None = None,
) -> TraceEstimate:
    """Take the trace by the method named, or by the rule below.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A.
    num_matvecs : int, default 100
        Products allowed; 100 give four to ten digits on spectra that fall exponentially, one or two on flat ones.
    method : {"auto", "exact", "hutchinson", "hutchpp", "xtrace", "xnystrace"}, default "auto"
        "auto" reads the diagonal where N <= num_matvecs, else takes "xnystrace" if the operator is declared positive
        semi-definite and "xtrace" if not. It cannot know the spectrum: on a flat one "hutchinson" is better.
    generator : torch.Generator, optional
        Source of the random columns. Default: torch's global generator.

    Returns
    -------
    TraceEstimate
        Its ``standard_error`` is zero where the trace is exact.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack with a method other than "exact" and "hutchinson".
    ArgumentError
        If the method is unknown, or ``num_matvecs`` too small for it.
    """
    operator = square_operator("trace", operator)
    if method == "auto":
        method = "exact" if operator.shape[0] <= num_matvecs else "xnystrace" if operator.is_psd else "xtrace"
    if method == "exact":
        return _exact(operator)
    methods: dict[str, Callable[..., TraceEstimate]] = {
        "hutchinson": hutchinson_trace,
        "hutchpp": hutchpp_trace,
        "xtrace": xtrace,
        "xnystrace": xnystrace,
    }
    if method not in methods:
        raise ArgumentError(f"trace: method must be one of auto, exact, {', '.join(methods)}; got {method!r}")
    return methods[method](operator, num_matvecs, generator=generator)


def _sign_chunks(
    operator: LinearOperator, num_probes: int, chunk_size: int | None, generator: Generator | None
) -> Iterator[Tensor]:
    size = chunk_size or num_probes
    for start in range(0, num_probes, size):
        width = min(size, num_probes - start)
        yield sign_columns(operator.shape[0], width, dtype=operator.dtype, device=operator.device, generator=generator)


def _wide_product(operator: LinearOperator, block: Tensor) -> Tensor:
    return operator.matmat(block.to(operator.dtype)).to(wide_dtype(operator.dtype))


def _quadratic_forms(operator: LinearOperator, probes: Tensor) -> Tensor:
    wide = wide_dtype(operator.dtype)
    return (probes.conj().to(wide) * operator.matmat(probes).to(wide)).sum(-2)


def _exact(operator: LinearOperator) -> TraceEstimate:
    value = operator.trace().to(wide_dtype(operator.dtype))
    return TraceEstimate(value, torch.zeros_like(value.real), operator.shape[0])


def _deflated_hutchinson(
    operator: LinearOperator, Q: Tensor, num_probes: int, num_matvecs: int, generator: Generator | None
) -> TraceEstimate:
    signs = sign_columns(operator.shape[0], num_probes, dtype=Q.dtype, device=operator.device, generator=generator)
    signs = signs - Q @ (Q.mH @ signs)
    both = _wide_product(operator, torch.cat([Q, signs], dim=1))
    rank = Q.shape[1]
    on_range = (Q.conj() * both[:, :rank]).sum()
    samples = (signs.conj() * both[:, rank:]).sum(0)
    return _summary(on_range + samples, num_matvecs)


def _summary(samples: Tensor, num_matvecs: int) -> TraceEstimate:
    spread = samples.std(-1) if samples.dtype.is_complex is False else _complex_std(samples)
    return TraceEstimate(samples.mean(-1), spread / samples.shape[-1] ** 0.5, num_matvecs)


def _complex_std(samples: Tensor) -> Tensor:
    return (samples.real.var(-1) + samples.imag.var(-1)).sqrt()
