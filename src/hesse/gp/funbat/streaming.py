"""What happens to a posterior between fits: one restart picked, earlier entries turned into a prior, factors read."""

from dataclasses import replace

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.gp.funbat.coordinates import merge_into
from hesse.gp.funbat.inference import Factor, Posterior
from hesse.gp.funbat.matern import MaternSSM
from hesse.gp.funbat.smoother import SmoothedChain, interpolate

__all__ = ["absorb", "pick", "read"]


def read(factor: Factor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate the functions of one mode anywhere.

    Parameters
    ----------
    factor : Factor
        After a sweep.
    times : Tensor, shape (M,)
        Scaled coordinates, in any order.

    Returns
    -------
    tuple of Tensor, shapes (S, M, R) and (S, M, R, R)
        Means and covariances.

    Raises
    ------
    ArgumentError
        If no sweep was made.
    """
    return interpolate(factor.ssm, _swept("read", factor), times)


def absorb(posterior: Posterior, points: Tensor) -> tuple[Posterior, tuple[Tensor, ...]]:
    """Turn the posterior into the prior of further entries: natural parameters become its base.

    Parameters
    ----------
    posterior : Posterior
        After a sweep.
    points : Tensor, shape (N, K)
        Scaled coordinates of the entries to come.

    Returns
    -------
    tuple of Posterior and K Tensors, shapes (N,)
        With the new coordinates inserted, where no message is yet; and the place of each entry in every mode.

    Raises
    ------
    ArgumentError
        If no sweep was made.
    """
    factors, index = [], []
    for factor, column in zip(posterior.factors, points.T, strict=True):
        times, old, place = merge_into(factor.times, column)
        mean, covariance = read(factor, times)
        base = torch.zeros_like(covariance), torch.zeros_like(mean)
        base[0][:, old], base[1][:, old] = factor.precision, factor.shift
        normalizer = _swept("absorb", factor).log_normalizer  # times without a message leave it as it is
        factors.append(Factor(factor.ssm, times, *base, mean, covariance, base, normalizer))
        index.append(place)
    core, noise = posterior.core, posterior.noise
    if not core.is_cp:
        precision = torch.cholesky_inverse(torch.linalg.cholesky(core.covariance))
        core = replace(core, base=(precision, (precision @ core.mean.unsqueeze(-1)).squeeze(-1)))
    noise = replace(noise, base=(noise.shape, noise.rate))
    return replace(posterior, factors=tuple(factors), core=core, noise=noise), tuple(index)


def pick(posterior: Posterior, restart: int) -> Posterior:
    """Keep one restart.

    Parameters
    ----------
    posterior : Posterior
        Of S restarts.
    restart : int
        Which, from 0.

    Returns
    -------
    Posterior
        With S = 1.
    """
    one = slice(restart, restart + 1)

    def cut(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return pair[0][one], pair[1][one]

    factors = tuple(
        replace(
            f,
            ssm=MaternSSM(f.ssm.nu, torch.as_tensor(f.ssm.lengthscale)[one], torch.as_tensor(f.ssm.variance)[one]),
            precision=f.precision[one],
            shift=f.shift[one],
            mean=f.mean[one],
            covariance=f.covariance[one],
            base=cut(f.base),
            base_normalizer=f.base_normalizer[one],
            chain=None if f.chain is None else _cut_chain(f.chain, one),
        )
        for f in posterior.factors
    )
    c, n = posterior.core, posterior.noise
    core = replace(c, mean=c.mean[one], covariance=c.covariance[one], base=cut(c.base))
    noise = replace(n, shape=n.shape[one], rate=n.rate[one], base=cut(n.base))
    return Posterior(factors, core, noise, posterior.bound[one], posterior.change[one])


def _swept(call: str, factor: Factor) -> SmoothedChain:
    if factor.chain is None:
        raise ArgumentError(f"{call}: the factor has not been through a sweep")
    return factor.chain


def _cut_chain(chain: SmoothedChain, one: slice) -> SmoothedChain:
    return replace(
        chain,
        mean=chain.mean[one],
        covariance=chain.covariance[one],
        log_normalizer=chain.log_normalizer[one],
        filtered=(chain.filtered[0][one], chain.filtered[1][one]),
        smoothed=(chain.smoothed[0][one], chain.smoothed[1][one]),
    )
