"""log p(x) of x = f(z) + σ ε from values of f alone.   Shapes: B points of D, Z latent, J nodes, K samples."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = ["Importance", "exact_log_likelihood", "importance_log_likelihood", "latent_nodes"]

MAX_ENTRIES = 1 << 22  # of the B x J matrix held at once where no gradient is wanted
LOG_TWO_PI = math.log(2 * math.pi)


class Importance(NamedTuple):
    """An estimate of log p(x) and what to differentiate in its place."""

    log_likelihood: Tensor  # (B,), a lower bound in expectation, in nats
    surrogate: Tensor  # (B,), whose gradient is the doubly reparametrised one


def latent_nodes(num_nodes: int, latent_dim: int, *, like: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw a jittered grid of standard normal points: one uniform point a cell, through the inverse normal cdf.

    Parameters
    ----------
    num_nodes : int
        J; in two dimensions the next square number is taken.
    latent_dim : int
        1 or 2.
    like : Tensor
        Gives dtype and device.
    generator : torch.Generator, optional
        Source of the jitter. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (J, Z)
        Of equal weight 1/J.

    Raises
    ------
    ArgumentError
        For more than two dimensions: a grid needs a power of them; use an importance sampled likelihood there.
    """
    if latent_dim not in (1, 2):
        raise ArgumentError(
            f'likelihood="exact" lays a grid in one or two latent dimensions, got {latent_dim}; use "iwae"'
        )
    side = num_nodes if latent_dim == 1 else math.isqrt(num_nodes - 1) + 1
    cells = torch.arange(side, dtype=like.dtype, device=like.device)
    corners = torch.cartesian_prod(*[cells] * latent_dim).reshape(-1, latent_dim)
    jitter = torch.rand(corners.shape, dtype=like.dtype, device=like.device, generator=generator)
    tiny = torch.finfo(like.dtype).eps
    return torch.special.ndtri(((corners + jitter) / side).clamp(tiny, 1 - tiny))


def exact_log_likelihood(
    x: Tensor,
    decode_fn: Callable[[Tensor], Tensor],
    sigma: Tensor | float,
    latent_dim: int,
    *,
    num_nodes: int = 1000,
    generator: Generator | None = None,
) -> Tensor:
    """Log (1/J) Σ_j N(x; f(z_j), σ² I) over a jittered grid of standard normal z_j.

    Parameters
    ----------
    x : Tensor, shape (B, D)
        Points.
    decode_fn : callable
        f, from (J, Z) to (J, D).
    sigma : Tensor or float
        σ > 0, in units of x. In float32 it should not be below a thousandth of x's spread, where distances lose their
        digits.
    latent_dim : int
        Z, 1 or 2.
    num_nodes : int, default 1000
        J. A node should lie within σ of every point of the image of f, or the sum is too small.
    generator : torch.Generator, optional
        Source of the jitter. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (B,)
        In nats; differentiable in x, f and σ.

    Raises
    ------
    ArgumentError
        If Z > 2, or there is no node.
    ShapeError
        If f does not return D coordinates.

    Notes
    -----
    O(BJD) time. Without gradients the B x J matrix is streamed over x in pieces of four million entries.
    """
    if num_nodes < 1:
        raise ArgumentError(f"exact_log_likelihood: expected num_nodes >= 1, got {num_nodes}")
    images = decode_fn(latent_nodes(num_nodes, latent_dim, like=x, generator=generator))
    if images.ndim != 2 or images.shape[1:] != x.shape[1:]:
        raise ShapeError(
            f"exact_log_likelihood: the network must map to shape ({num_nodes}, {x.shape[1]}), got "
            f"{tuple(images.shape)}"
        )
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    size = len(x) if torch.is_grad_enabled() else max(1, MAX_ENTRIES // len(images))
    squares = images.square().sum(1)
    pieces = []
    for part in x.split(size):
        distance = (part.square().sum(1, keepdim=True) + squares - 2 * part @ images.mT).clamp_min(0)
        pieces.append((-distance / (2 * sigma.square())).logsumexp(1))
    return torch.cat(pieces) - math.log(len(images)) - x.shape[1] * (sigma.log() + LOG_TWO_PI / 2)


def importance_log_likelihood(
    x: Tensor,
    decode_fn: Callable[[Tensor], Tensor],
    sigma: Tensor | float,
    mean: Tensor,
    log_variance: Tensor,
    *,
    num_samples: int = 10,
    generator: Generator | None = None,
) -> Importance:
    """Log (1/K) Σ_k p(x | z_k) p(z_k) / q(z_k | x), with z_k from q = N(mean, diag exp(log_variance)) and normal p(z).

    With one sample it is the evidence lower bound, its Kullback-Leibler term in closed form.

    Parameters
    ----------
    x : Tensor, shape (B, D)
        Points.
    decode_fn : callable
        f, from (K B, Z) to (K B, D).
    sigma : Tensor or float
        σ > 0, in units of x.
    mean, log_variance : Tensor, shape (B, Z)
        Of q, as an encoder gives them.
    num_samples : int, default 10
        K. Both the bound and its gradient tighten as K grows.
    generator : torch.Generator, optional
        Source of the samples. Default: torch's global generator.

    Returns
    -------
    Importance
        The estimate, and the surrogate whose gradient in f and σ is that of the estimate, and in the encoder the
        doubly reparametrised one, which does not drown in noise as K grows.

    Raises
    ------
    ArgumentError
        If there is no sample.

    Notes
    -----
    K passes of B points through f.

    References
    ----------
    Y. Burda, R. Grosse, R. Salakhutdinov (2016), ICLR, arXiv 1509.00519. G. Tucker, D. Lawson, S. Gu, C. J. Maddison
    (2019), ICLR, arXiv 1810.04152.
    """
    if num_samples < 1:
        raise ArgumentError(f"importance_log_likelihood: expected num_samples >= 1, got {num_samples}")
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    noise = torch.randn(num_samples, *mean.shape, dtype=x.dtype, device=x.device, generator=generator)
    z = mean + (log_variance / 2).exp() * noise  # (K, B, Z)
    if num_samples == 1:
        reconstruction = _log_normal(x, decode_fn(z[0]), sigma)
        gap = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
        return Importance(reconstruction - gap, reconstruction - gap)
    images = decode_fn(z.flatten(0, 1)).unflatten(0, (num_samples, len(x)))
    # q's own parameters are held: what they move beside z has mean zero
    fixed_mean, fixed_log_variance = mean.detach(), log_variance.detach()
    log_q = -((z - fixed_mean).square() / fixed_log_variance.exp() + fixed_log_variance).sum(2) / 2
    log_ratio = _log_normal(x, images, sigma) - z.square().sum(2) / 2 - log_q  # (K, B); the 2π of p and q cancel
    weights = log_ratio.detach().softmax(0)
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * weights.unsqueeze(2))
    return Importance(log_ratio.logsumexp(0) - math.log(num_samples), (weights * log_ratio).sum(0))


def _log_normal(x: Tensor, centre: Tensor, sigma: Tensor) -> Tensor:
    return -(x - centre).square().sum(-1) / (2 * sigma.square()) - x.shape[-1] * (sigma.log() + LOG_TWO_PI / 2)
