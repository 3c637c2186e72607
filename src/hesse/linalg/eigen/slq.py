"""Stochastic Lanczos quadrature: tr f(A), log-determinants and spectral densities from products with A.

Shapes: A is (N, N), symmetric; K probes; M Lanczos steps; G grid points.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError, SingularError
from hesse.linalg._arguments import at_least, single_operator, square_operator, wide_dtype
from hesse.linalg._random import sign_columns
from hesse.linalg.eigen.lanczos import LanczosState, Reorthogonalization, lanczos
from hesse.linalg.memory import require_memory
from hesse.linalg.operator import LinearOperator
from hesse.linalg.traces import TraceEstimate

__all__ = ["SpectralDensity", "check_smoothing", "density_of", "logdet", "slq", "spectral_density"]

LogdetMethod = Literal["slq", "exact", "cholesky"]


@dataclass(frozen=True, slots=True)
class SpectralDensity:
    """The distribution of the eigenvalues of A: a probability density over the real line, per eigenvalue."""

    nodes: Tensor  # (K, M), Ritz values, float64
    weights: Tensor  # (K, M), each row sums to one
    grid: Tensor  # (G,), float64
    density: Tensor  # (G,), its integral is one
    standard_error: Tensor  # (G,), from the spread over probes
    sigma: float  # width of the Gaussian at each node, in the units of A
    largest: Tensor  # (), largest Ritz value over all probes, a lower bound of the largest eigenvalue
    largest_residual: Tensor  # (), an eigenvalue lies within this distance of it
    smallest: Tensor  # (), smallest Ritz value, an upper bound of the smallest eigenvalue
    smallest_residual: Tensor  # ()
    num_matvecs: int

    def integrate(self, fn: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Average a function over the spectrum, without the smoothing: (1/N) tr f(A).

        Parameters
        ----------
        fn : callable
            Elementwise, on float64.

        Returns
        -------
        mean : Tensor, shape ()
            The average.
        standard_error : Tensor, shape ()
            From the spread over probes.
        """
        samples = _apply(fn, self.nodes, self.weights)
        return samples.mean(), samples.std() / samples.shape[0] ** 0.5


def slq(
    operator: LinearOperator | Tensor,
    fn: Callable[[Tensor], Tensor],
    *,
    num_probes: int = 10,
    num_steps: int = 80,
    reorthogonalize: Reorthogonalization = "full",
    chunk_size: int | None = None,
    generator: Generator | None = None,
) -> TraceEstimate:
    """Estimate tr f(A) ≈ (N/K) Σ_j Σ_l w_jl f(θ_jl), Gauss quadrature of sign vectors z_j by Lanczos.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, symmetric (Hermitian).
    fn : callable
        f, elementwise on float64 Ritz values, which lie between the smallest and the largest eigenvalue. Smooth there:
        the quadrature error falls exponentially in M, the faster the further f's singularities are from the spectrum.
    num_probes : int, default 10
        K >= 2; the standard error falls as 1/√K.
    num_steps : int, default 80
        M products with each probe, at most N.
    reorthogonalize : {"full", "selective", "none"}, default "full"
        See `lanczos`; "none" needs O(N) memory a probe and gives the same quadrature to rounding, but for a few more
        steps.
    chunk_size : int, optional
        Probes that run side by side, O(N M · chunk_size) memory with "full", beside O(N K) for all probes; it does not
        change the numbers drawn. Default: all.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.

    Returns
    -------
    TraceEstimate
        Its standard error covers the probes, not the quadrature, which has a bias where M is too small for f.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack.
    ArgumentError
        If the operator is not symmetric, ``num_probes < 2`` or ``num_steps < 1``.
    MemoryLimitError
        If N (M + 8) numbers in float64 for each of the probes that run side by side would not fit.
    NumericalError
        If f is not finite at a Ritz value with weight.

    References
    ----------
    S. Ubaru, J. Chen, Y. Saad (2017), SIAM J. Matrix Anal. Appl. 38(4).
    """
    operator = single_operator("slq", square_operator("slq", operator, symmetric=True))
    nodes, weights, _ = _quadrature("slq", operator, num_probes, num_steps, reorthogonalize, chunk_size, generator)
    nodes, weights = _weighted_only(nodes, weights)
    samples = _apply(fn, nodes, weights) * operator.shape[0]
    return _estimate(samples, operator, num_probes * nodes.shape[1])


def logdet(
    operator: LinearOperator | Tensor,
    *,
    method: LogdetMethod = "slq",
    num_probes: int = 20,
    num_steps: int = 60,
    generator: Generator | None = None,
) -> TraceEstimate:
    """Take the log-determinant of a positive definite operator, log det A = tr log A.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, symmetric positive definite.
    method : {"slq", "exact", "cholesky"}, default "slq"
        "slq": stochastic Lanczos quadrature. "exact": the structure's own closed form (`LinearOperator.logdet`).
        "cholesky": of the dense matrix, O(N³) time and O(N²) memory, differentiable in the usual way.
    num_probes, num_steps : int, default 20 and 60
        For "slq": about half a percent off for N = 2000 at condition 10⁴, much of it the quadrature's bias upwards,
        which the standard error does not cover; twice the steps remove it.
    generator : torch.Generator, optional
        For "slq": source of the signs. Default: torch's global generator.

    Returns
    -------
    TraceEstimate
        With "slq" the gradient with respect to the tensors inside A is estimated with the same probes,
        (1/K) Σ (A⁻¹z)ᴴ dA z, without bias but for the Lanczos solve of A⁻¹z; one more product each. It is not the
        derivative of the sampled value, so finite differences agree with it only within the sampling error.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack with "slq".
    ArgumentError
        If the method is unknown, the operator is not symmetric, or ``num_probes < 2``.
    MemoryLimitError
        With "slq", if N (M + 8) K numbers in float64 would not fit.
    SingularError
        If A turns out not to be positive definite.

    References
    ----------
    S. Ubaru, J. Chen, Y. Saad (2017), SIAM J. Matrix Anal. Appl. 38(4).
    """
    if method == "exact":
        operator = square_operator("logdet", operator)
        value = operator.logdet()
        return TraceEstimate(value, torch.zeros_like(value.real), 0)
    operator = square_operator("logdet", operator, symmetric=True)
    if method == "cholesky":
        lower, failed = torch.linalg.cholesky_ex(operator.to_dense().to(wide_dtype(operator.dtype)))
        if bool((failed != 0).any()):
            raise SingularError(f"logdet: {type(operator).__name__} is not positive definite; add a shift")
        value = 2 * lower.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
        return TraceEstimate(value, torch.zeros_like(value), operator.shape[0])
    if method != "slq":
        raise ArgumentError(f"logdet: method must be slq, exact or cholesky, got {method!r}")
    operator = single_operator("logdet", operator)
    n = operator.shape[0]
    (state,) = _runs("logdet", operator, num_probes, num_steps, "full", None, generator)
    ritz_values, ritz_weights, _ = state.ritz()
    nodes, weights = _weighted_only(ritz_values, ritz_weights)
    if not float(nodes.min()) > 0:
        raise SingularError(
            f"logdet: {type(operator).__name__} is not positive definite, it has a Ritz value "
            f"{float(nodes.min()):.3e}; add a shift"
        )
    found = _estimate(_apply(torch.log, nodes, weights) * n, operator, num_probes * nodes.shape[1])
    if not torch.is_grad_enabled():
        return found
    # zᴴ dA A⁻¹ z is, in the mean over signs, d log det A; A⁻¹z comes from the same Krylov space
    inverse_images, probes = _krylov_solves(state)
    images = operator.matmat(probes.to(operator.dtype))
    if not images.requires_grad:
        return found
    wide = wide_dtype(operator.dtype)
    surrogate = (inverse_images.to(wide).conj() * images.to(wide)).sum(0).mean().real
    value = found.value + (surrogate - surrogate.detach()).to(found.value.dtype)
    return TraceEstimate(value, found.standard_error, found.num_matvecs + num_probes)


def spectral_density(
    operator: LinearOperator | Tensor,
    *,
    num_probes: int = 10,
    num_steps: int = 80,
    sigma: float | Literal["auto"] = "auto",
    grid: Tensor | int = 512,
    reorthogonalize: Reorthogonalization = "full",
    chunk_size: int | None = None,
    generator: Generator | None = None,
) -> SpectralDensity:
    """Estimate the density of eigenvalues, φ(t) = (1/K) Σ_j Σ_l w_jl g(t - θ_jl) with a Gaussian g of width sigma.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, symmetric (Hermitian).
    num_probes : int, default 10
        K >= 2.
    num_steps : int, default 80
        M products with each probe, at most N; details finer than about the spectrum's length / M are not resolved.
    sigma : float or "auto", default "auto"
        Width of the Gaussian in the units of A. "auto": the length of the spectrum found divided by M, the resolution
        of the quadrature.
    grid : Tensor, shape (G,), or int, default 512
        Where to evaluate; a number of points spreads them over the spectrum found and four sigma to either side.
    reorthogonalize : {"full", "selective", "none"}, default "full"
        See `lanczos`.
    chunk_size : int, optional
        Probes that run side by side. Default: all.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.

    Returns
    -------
    SpectralDensity
        With nodes and weights, so that other functions of the spectrum cost nothing (`SpectralDensity.integrate`), and
        the extreme Ritz values with bounds of their errors.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack.
    ArgumentError
        If the operator is not symmetric, or an argument is out of range.
    MemoryLimitError
        As in `slq`.

    References
    ----------
    B. Ghorbani, S. Krishnan, Y. Xiao (2019), ICML, arXiv 1901.10159.
    L. Lin, Y. Saad, C. Yang (2016), SIAM Review 58(1).
    """
    operator = single_operator("spectral_density", square_operator("spectral_density", operator, symmetric=True))
    check_smoothing("spectral_density", sigma, grid)
    nodes, weights, residuals = _quadrature(
        "spectral_density", operator, num_probes, num_steps, reorthogonalize, chunk_size, generator
    )
    return density_of(nodes, weights, residuals, sigma=sigma, grid=grid)


def density_of(
    nodes: Tensor,
    weights: Tensor,
    residuals: Tensor,
    *,
    sigma: float | Literal["auto"] = "auto",
    grid: Tensor | int = 512,
) -> SpectralDensity:
    """Smooth the Ritz values of Lanczos runs that exist already; see `spectral_density`.

    Parameters
    ----------
    nodes, weights, residuals : Tensor of float64, shape (K, M)
        As `LanczosState.ritz` gives them for K >= 2 sign vectors.
    sigma, grid
        As of `spectral_density`.

    Returns
    -------
    SpectralDensity
        Another width or grid costs no product.

    Raises
    ------
    ArgumentError
        If K < 2, ``sigma <= 0`` or ``grid < 2``.
    """
    call, num_probes = "spectral_density", nodes.shape[0]
    at_least(call, "num_probes", num_probes, 2)
    check_smoothing(call, sigma, grid)
    top, bottom = nodes.argmax(), nodes.argmin()
    high, low = nodes.flatten()[top], nodes.flatten()[bottom]
    if sigma == "auto":
        width = float(high - low) / nodes.shape[1]
        width = width if width > 0 else max(abs(float(high)), 1.0) * 1e-3  # one single eigenvalue: a narrow peak
    else:
        width = float(sigma)
    if isinstance(grid, Tensor):
        points = grid.to(dtype=torch.float64, device=nodes.device)
    else:
        points = torch.linspace(
            float(low) - 4 * width, float(high) + 4 * width, grid, dtype=torch.float64, device=nodes.device
        )
    curves = torch.stack(
        [
            torch.exp(-0.5 * ((points.unsqueeze(1) - theta) / width).square()) @ w / (width * (2 * torch.pi) ** 0.5)
            for theta, w in zip(nodes, weights, strict=True)
        ]
    )
    return SpectralDensity(
        nodes,
        weights,
        points,
        curves.mean(0),
        curves.std(0) / num_probes**0.5,
        width,
        high,
        residuals.flatten()[top],
        low,
        residuals.flatten()[bottom],
        num_probes * nodes.shape[1],
    )


def check_smoothing(call: str, sigma: float | Literal["auto"], grid: Tensor | int) -> None:
    """Refuse a width or a grid that no density has.

    Parameters
    ----------
    call : str
        The caller, for the message.
    sigma, grid
        As of `spectral_density`.

    Raises
    ------
    ArgumentError
        If ``sigma <= 0`` or ``grid < 2``.
    """
    if sigma != "auto" and not float(sigma) > 0:
        raise ArgumentError(f"{call}: expected sigma > 0 or 'auto', got {sigma}")
    if not isinstance(grid, Tensor):
        at_least(call, "grid", grid, 2)


def _runs(
    call: str,
    operator: LinearOperator,
    num_probes: int,
    num_steps: int,
    reorthogonalize: Reorthogonalization,
    chunk_size: int | None,
    generator: Generator | None,
) -> Iterator[LanczosState]:
    at_least(call, "num_probes", num_probes, 2)
    at_least(call, "num_steps", num_steps, 1)
    side_by_side = num_probes if chunk_size is None else min(chunk_size, num_probes)
    at_least(call, "chunk_size", side_by_side, 1)
    n = operator.shape[0]
    num_steps = min(num_steps, n)
    kept = 0 if reorthogonalize == "none" else num_steps
    waiting = -(-num_probes // side_by_side) - 1  # chunks of probes that are drawn and do not run
    require_memory("slq", operator, columns=side_by_side, size=kept + waiting)
    work = torch.complex128 if operator.dtype.is_complex else torch.float64
    # all probes are drawn before the first run: a run may draw numbers of its own
    probes = sign_columns(n, num_probes, dtype=work, device=operator.device, generator=generator)
    for block in probes.split(side_by_side, dim=1):
        yield lanczos(operator, num_steps, start=block, reorthogonalize=reorthogonalize, generator=generator)


def _quadrature(
    call: str,
    operator: LinearOperator,
    num_probes: int,
    num_steps: int,
    reorthogonalize: Reorthogonalization,
    chunk_size: int | None,
    generator: Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    # map holds on to no run, so that the basis of one is gone before the next begins
    runs = _runs(call, operator, num_probes, num_steps, reorthogonalize, chunk_size, generator)
    nodes, weights, residuals = zip(*map(LanczosState.ritz, runs), strict=True)
    return torch.cat(nodes), torch.cat(weights), torch.cat(residuals)


def _weighted_only(nodes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    # after a breakdown the recurrence goes on in a space the probe has no part in: its nodes carry no weight, and
    # f need not be defined there, so they move onto the heaviest node
    idle = weights <= torch.finfo(weights.dtype).eps ** 2
    heaviest = nodes.gather(1, weights.argmax(1, keepdim=True)).expand_as(nodes)
    return torch.where(idle, heaviest, nodes), weights.masked_fill(idle, 0)


def _apply(fn: Callable[[Tensor], Tensor], nodes: Tensor, weights: Tensor) -> Tensor:
    values = fn(nodes)
    if not bool(torch.isfinite(values).all()):
        worst = nodes[~torch.isfinite(values)][0]
        raise NumericalError(
            f"slq: the function is not finite at the Ritz value {float(worst):.3e}; it must be defined on the whole "
            "spectrum (shift the operator, or clamp inside the function)"
        )
    return (weights * values).sum(1)


def _estimate(samples: Tensor, operator: LinearOperator, num_matvecs: int) -> TraceEstimate:
    wide = wide_dtype(operator.dtype)
    kind = wide.to_real() if wide.is_complex else wide
    return TraceEstimate(samples.mean().to(kind), (samples.std() / samples.shape[0] ** 0.5).to(kind), num_matvecs)


def _krylov_solves(state: LanczosState) -> tuple[Tensor, Tensor]:
    # x = ‖z‖ Q T⁻¹ e₁ for each probe z = ‖z‖ q₁
    if state.basis is None:
        raise ArgumentError("logdet: the gradient needs the Lanczos basis; use reorthogonalize='full'")
    T = state.tridiagonal()
    first = torch.zeros(*T.shape[:2], 1, dtype=T.dtype, device=T.device)
    first[:, 0] = state.start_norm.unsqueeze(1)
    coefficients = torch.linalg.solve(T, first).squeeze(-1)  # (K, M)
    solves = torch.einsum("mnk,km->nk", state.basis, coefficients.to(state.basis.dtype))
    return solves, state.basis[0] * state.start_norm.to(state.basis.dtype)
