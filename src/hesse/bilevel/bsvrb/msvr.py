"""Multi-block single-probe variance reduction: tracks m moving quantities of which a few are observed at a time.

    e_i ← (1 - a) e_i + a h_i(now) + γ (h_i(now) - h_i(before)) for the I blocks probed,   e_i unchanged for the others
    γ = (m - I) / (I (1 - a)) + (1 - a)

Both probes share one batch. A block is seen every m / I steps, so that the one difference it shows has to stand for
m / I of them.   Shapes: m blocks, I probed.
"""

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = ["MSVR", "msvr_gamma", "msvr_update"]


def msvr_gamma(num_blocks: int, num_probed: int, alpha: float) -> float:
    """Give γ = (m - I) / (I (1 - a)) + (1 - a); with I = m it is STORM's 1 - a.

    Parameters
    ----------
    num_blocks, num_probed : int
        m and I, with 1 <= I <= m.
    alpha : float
        a in (0, 1]; 1 with I = m only, since γ is infinite otherwise.

    Returns
    -------
    float
        About m / I.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    """
    if not 1 <= num_probed <= num_blocks:
        raise ArgumentError(f"msvr_gamma: expected 1 <= num_probed <= {num_blocks}, got {num_probed}")
    if not 0 < alpha <= 1:
        raise ArgumentError(f"msvr_gamma: expected 0 < alpha <= 1, got {alpha}")
    if num_probed == num_blocks:
        return 1 - alpha
    if alpha == 1:
        raise ArgumentError("msvr_gamma: alpha = 1 makes gamma infinite unless all blocks are probed; use alpha < 1")
    return (num_blocks - num_probed) / (num_probed * (1 - alpha)) + (1 - alpha)


def msvr_update(held: Tensor, now: Tensor, before: Tensor, alpha: float, gamma: float) -> Tensor:
    """Update the estimates of the probed blocks.

    Parameters
    ----------
    held : Tensor, shape (I, ...)
        e_i so far.
    now, before : Tensor, shape (I, ...)
        h_i at this iterate and at the one before, by the same batch.
    alpha : float
        a, the weight of the newest probe.
    gamma : float
        Multiple of the difference.

    Returns
    -------
    Tensor, shape (I, ...)
        New estimates; differentiable.
    """
    return (1 - alpha) * held + alpha * now + gamma * (now - before)


class MSVR:
    """The estimator by itself, for m tensors of one shape, starting from zero.

    Parameters
    ----------
    num_blocks : int
        m.
    shape : tuple of int
        Of each quantity.
    alpha : float
        a in (0, 1]: memory against noise.
    gamma : "msvr", "storm" or float, default "msvr"
        The formula; STORM's 1 - a, which is right with all blocks probed only; or a number: 0 is a moving average.
    dtype : torch.dtype, default torch.float32
        Of the estimates.
    device : torch.device or str, default "cpu"
        Of the estimates.

    Raises
    ------
    ArgumentError
        If ``alpha`` is not in (0, 1] or ``gamma`` is another name.

    Notes
    -----
    Where every h_i moves by c a step, the mean error e - h is c (γ / a + 1 - m / (I a)): the formula leads by
    (m / I - 1) / (1 - a) steps, STORM's factor lags by (m / I - 1) / a, and γ = m / I - a does neither.

    References
    ----------
    W. Jiang, G. Li, Y. Wang, L. Zhang, T. Yang (2022), NeurIPS, arXiv 2207.08540; Q. Hu, Z. Qiu, Z. Guo, L. Zhang,
    T. Yang (2023), ICML, arXiv 2305.18730.

    Examples
    --------
    >>> tracker = MSVR(2, (), 0.5)
    >>> tracker.update(torch.tensor([1]), torch.tensor([4.0]), torch.tensor([4.0]))
    >>> tracker.value
    tensor([0., 2.])
    """

    def __init__(
        self,
        num_blocks: int,
        shape: tuple[int, ...],
        alpha: float,
        gamma: str | float = "msvr",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        choose_gamma(gamma, num_blocks, num_blocks, alpha)  # refuses what is out of range
        self.alpha, self.gamma = alpha, gamma
        self.value = torch.zeros(num_blocks, *shape, dtype=dtype, device=device)

    def update(self, index: Tensor, now: Tensor, before: Tensor) -> None:
        """Take in what some blocks show.

        Parameters
        ----------
        index : Tensor of int64, shape (I,)
            Numbers of the blocks, each once.
        now, before : Tensor, shape (I, ...)
            h_i at this iterate and at the one before, by the same batch.

        Raises
        ------
        ShapeError
            If a probe's shape is not that of the estimates.
        """
        expected = (len(index), *self.value.shape[1:])
        if now.shape != expected or before.shape != expected:
            raise ShapeError(
                f"MSVR: expected probes of shape {expected}, got {tuple(now.shape)}, {tuple(before.shape)}"
            )
        gamma = choose_gamma(self.gamma, len(self.value), len(index), self.alpha)
        self.value[index] = msvr_update(self.value[index], now, before, self.alpha, gamma)


def choose_gamma(gamma: str | float, num_blocks: int, num_probed: int, alpha: float) -> float:
    """Turn the name of a rule into its γ.

    Parameters
    ----------
    gamma : str or float
        As of `MSVR`.
    num_blocks, num_probed : int
        m and I.
    alpha : float
        a.

    Returns
    -------
    float
        γ.

    Raises
    ------
    ArgumentError
        If it is another name, or ``alpha`` is not in (0, 1].
    """
    if gamma == "msvr":
        return msvr_gamma(num_blocks, num_probed, alpha)
    if isinstance(gamma, str) and gamma != "storm":
        raise ArgumentError(f"expected gamma to be 'msvr', 'storm' or a number, got {gamma!r}")
    storm = msvr_gamma(num_blocks, num_blocks, alpha)
    return storm if isinstance(gamma, str) else gamma
