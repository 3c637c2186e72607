"""Does a typical run of linearised SGD leave a minimum?   Shapes: N samples, C outputs, R the rank of H, K runs."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.curvature.stability.coordinates import Features, batch_noise_factor, check_step, range_coordinates
from hesse.errors import ArgumentError

__all__ = ["LyapunovExponent", "lyapunov_exponent"]


@dataclass(frozen=True, slots=True)
class LyapunovExponent:
    """The rate at which a typical run grows, log of the factor a step; negative: almost every run contracts."""

    value: float  # nats a step
    standard_error: float  # from the spread of independent runs
    num_steps: int  # a run
    num_runs: int

    def __float__(self) -> float:
        return self.value


def lyapunov_exponent(
    features: Features,
    lr: float,
    batch_size: int,
    *,
    momentum: float = 0.0,
    replacement: bool = False,
    num_steps: int = 5000,
    num_runs: int = 8,
    generator: Generator | None = None,
) -> LyapunovExponent:
    """Estimate lim (1/t) log ‖θ_t - θ*‖ of linearised SGD, whose sign says whether a typical run leaves.

    By Jensen's inequality the exponent is at most half the log of the second-moment radius: runs can contract, all but
    a few, while their mean square explodes.

    Parameters
    ----------
    features : Tensor, shape (N, P) or (N, C, P), or RangeCoordinates
        Gradients of the outputs, as `second_moment_radius` takes them.
    lr : float
        η >= 0.
    batch_size : int
        B.
    momentum : float, default 0.0
        β in [0, 1), of torch's SGD.
    replacement : bool, default False
        Whether samples are drawn into a batch with replacement.
    num_steps : int, default 5000
        Steps a run, of which the first tenth is not counted; at least 20.
    num_runs : int, default 8
        Independent runs, K >= 2, made side by side.
    generator : torch.Generator, optional
        Source of starts and batches. Default: torch's global generator.

    Returns
    -------
    LyapunovExponent
        The mean over the runs with its standard error; in nats a step. It speaks of these many steps: where slow
        directions, which shrink by almost nothing, would take longer to prevail, the limit is nearer to zero.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Notes
    -----
    O(K B C R) a step, a Python loop over the steps.

    References
    ----------
    H. Furstenberg, H. Kesten (1960), Ann. Math. Stat. 31(2).
    """
    call = "lyapunov_exponent"
    check_step(call, lr, momentum)
    if num_steps < 20 or num_runs < 2:
        raise ArgumentError(f"{call}: expected num_steps >= 20 and num_runs >= 2, got {num_steps} and {num_runs}")
    coordinates = range_coordinates(features)
    batch_noise_factor(coordinates.num_samples, batch_size, replacement=replacement)
    if coordinates.rank == 0:
        return LyapunovExponent(-torch.inf, 0.0, num_steps, num_runs)
    rows, device = coordinates.rows, coordinates.rows.device
    home = device if generator is None else generator.device
    state = torch.randn(num_runs, coordinates.rank, dtype=rows.dtype, generator=generator, device=home).to(device)
    state = state / torch.linalg.vector_norm(state, dim=1, keepdim=True)
    velocity = torch.zeros_like(state)
    growth = torch.zeros(num_runs, dtype=rows.dtype, device=device)
    burn_in = num_steps // 10
    for step in range(num_steps):
        index = _draw(coordinates.num_samples, batch_size, num_runs, replacement, generator, home).to(device)
        batch = rows[index].flatten(1, 2)  # (K, B C, R)
        gradient = (batch.mT @ (batch @ state.unsqueeze(-1))).squeeze(-1) / batch_size
        velocity = momentum * velocity + gradient
        state = state - lr * velocity
        size = torch.linalg.vector_norm(torch.cat([state, lr * velocity], dim=1), dim=1, keepdim=True)
        state, velocity = state / size, velocity / size
        if step >= burn_in:
            growth += size.squeeze(1).log()
    rates = growth / (num_steps - burn_in)
    return LyapunovExponent(float(rates.mean()), float(rates.std()) / num_runs**0.5, num_steps, num_runs)


def _draw(
    n: int, batch_size: int, num_runs: int, replacement: bool, generator: Generator | None, device: torch.device
) -> Tensor:
    if replacement or batch_size == 1:
        return torch.randint(n, (num_runs, batch_size), generator=generator, device=device)
    return torch.rand(num_runs, n, generator=generator, device=device).topk(batch_size, dim=1).indices
