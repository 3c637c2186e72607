"""The probability-flow ODE dx/dσ = -σ v(x, σ): samples, densities and the Jacobian of noise to data.

Shapes: B points of D coordinates, T noise levels.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.func import jvp, vmap

from hesse.errors import ArgumentError
from hesse.generative.gauge.fields import Field, check_points, field_jacobian

__all__ = ["Divergence", "FlowJacobian", "flow_jacobian", "flow_log_density", "probability_flow"]

Divergence = Literal["exact", "hutchinson", "hutch++"]
State = tuple[Tensor, Tensor]

_MOST_EXACT = 2000  # coordinates up to which D products a step are paid without asking


def _levels(call: str, start: float, end: float, num_steps: int) -> list[float]:
    if not (0 < start < math.inf and 0 < end < math.inf) or start == end:
        raise ArgumentError(f"{call}: expected two different positive noise levels, got {start}, {end}")
    if num_steps < 1:
        raise ArgumentError(f"{call}: expected num_steps >= 1, got {num_steps}")
    return [start * (end / start) ** (k / num_steps) for k in range(num_steps + 1)]


def _runge_kutta(rate: Callable[[Tensor, Tensor, float], State], state: State, start: float, end: float) -> State:
    # the classical step of order 4 in log σ, in which the steps are equal: d/dlog σ = σ d/dσ
    step, middle = math.log(end / start), math.sqrt(start * end)

    def moved(slope: State, by: float) -> State:
        return state[0] + by * slope[0], state[1] + by * slope[1]

    first = rate(*state, start)
    second = rate(*moved(first, step / 2), middle)
    third = rate(*moved(second, step / 2), middle)
    fourth = rate(*moved(third, step), end)
    mean = tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(first, second, third, fourth, strict=True))
    return moved((mean[0], mean[1]), step)


def probability_flow(field: Field, x: Tensor, start: float, end: float, *, num_steps: int = 60) -> Tensor:
    """Carry points from one noise level to another: down to sample, up to encode.

    Parameters
    ----------
    field : Field
        v.
    x : Tensor, shape (B, D)
        Points at level ``start``.
    start, end : float
        Noise levels, in units of the data.
    num_steps : int, default 60
        Runge-Kutta steps of order 4, geometric in σ; four evaluations each.

    Returns
    -------
    Tensor, shape (B, D)
        Points at level ``end``.
    """
    check_points("probability_flow", x, start)
    levels = _levels("probability_flow", start, end, num_steps)
    state = x, x.new_zeros(())

    def rate(y: Tensor, idle: Tensor, sigma: float) -> State:
        return -(sigma**2) * field(y, sigma), torch.zeros_like(idle)

    for low, high in pairwise(levels):
        state = _runge_kutta(rate, state, low, high)
    return state[0]


def flow_log_density(
    field: Field,
    x: Tensor,
    sigma_min: float = 0.01,
    sigma_max: float = 10.0,
    *,
    divergence: Divergence = "exact",
    terminal_fn: Callable[[Tensor], Tensor] | None = None,
    num_steps: int = 60,
    num_probes: int = 10,
    generator: Generator | None = None,
) -> Tensor:
    """Log p(x, σ_min) = log p(x_T, σ_max) - ∫ σ div v(x(σ), σ) dσ along the flow from σ_min up to σ_max.

    Exact, up to the steps, for every field whose conservative part is the score: a gauge field changes neither.

    Parameters
    ----------
    field : Field
        v.
    x : Tensor, shape (B, D)
        Points at σ_min.
    sigma_min, sigma_max : float, default 0.01, 10.0
        Where the density is wanted, and where it is known.
    divergence : {"exact", "hutchinson", "hutch++"}, default "exact"
        D products a step, right up to D of about 50, and replaced by "hutchinson" with a warning above 2000;
        ``num_probes`` products with random signs; or those split between a sketch of the range, on which the trace is
        exact, and signs beside it.
    terminal_fn : callable, optional
        Log density at σ_max, (B, D) -> (B,). Default: N(0, σ_max² I), off by the data's spread over σ_max squared.
    num_steps : int, default 60
        Runge-Kutta steps, geometric in σ. A gauge field that turns by an angle θ in all wants some 5 θ of them.
    num_probes : int, default 10
        Products for the estimates; drawn once for all steps, so that the ODE stays smooth.
    generator : torch.Generator, optional
        Source of the probes. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (B,)
        In nats.

    Raises
    ------
    ArgumentError
        If an argument is out of range or unknown.

    Warns
    -----
    UserWarning
        If D is too large for the exact divergence.

    References
    ----------
    Y. Song et al. (2021), ICLR, arXiv 2011.13456; C. Horvat, J.-P. Pfister (2024), ICLR, arXiv 2402.03845.
    """
    check_points("flow_log_density", x, sigma_min)
    levels = _levels("flow_log_density", sigma_min, sigma_max, num_steps)
    if divergence not in get_args(Divergence):
        raise ArgumentError(f"flow_log_density: divergence must be one of {get_args(Divergence)}, got {divergence!r}")
    if divergence == "exact" and x.shape[1] > _MOST_EXACT:
        divergence = "hutchinson"
        warnings.warn(
            f"flow_log_density: an exact divergence in {x.shape[1]} dimensions takes as many products a step; using "
            f'divergence="hutchinson" with {num_probes} probes. Choose it, or "hutch++", to silence this.',
            UserWarning,
            stacklevel=2,
        )
    if num_probes < (3 if divergence == "hutch++" else 1):
        raise ArgumentError(f"flow_log_density: num_probes = {num_probes} is too few for {divergence!r}")
    signs = torch.randint(2, (num_probes, *x.shape), generator=generator, device=x.device).to(x.dtype) * 2 - 1

    def rate(y: Tensor, total: Tensor, sigma: float) -> State:
        if divergence == "exact":
            trace = field_jacobian(field, y, sigma).diagonal(dim1=1, dim2=2).sum(1)
        else:
            trace = _estimated_trace(lambda u: jvp(lambda z: field(z, sigma), (y,), (u,))[1], signs, divergence)
        return -(sigma**2) * field(y, sigma), sigma**2 * trace + torch.zeros_like(total)

    state = x.contiguous(), x.new_zeros(len(x))  # forward differentiation writes to its own copy of an expanded x
    for low, high in pairwise(levels):
        state = _runge_kutta(rate, state, low, high)
    end, integral = state
    if terminal_fn is None:
        terminal = -end.square().sum(1) / (2 * sigma_max**2) - x.shape[1] / 2 * math.log(2 * math.pi * sigma_max**2)
    else:
        terminal = terminal_fn(end)
    return terminal - integral


def _estimated_trace(product: Callable[[Tensor], Tensor], signs: Tensor, divergence: Divergence) -> Tensor:
    # one trace a point; `hesse.linalg.hutchpp_trace` works on one operator, here each row has its own
    if divergence == "hutchinson":
        return (signs * vmap(product)(signs)).sum(2).mean(0)
    third = max(1, len(signs) // 3)
    Q = torch.linalg.qr(vmap(product)(signs[:third]).permute(1, 2, 0)).Q  # (B, D, K)
    on_range = (Q * vmap(product)(Q.permute(2, 0, 1)).permute(1, 2, 0)).sum((1, 2))
    beside = signs[2 * third :].permute(1, 2, 0)
    beside = beside - Q @ (Q.mT @ beside)
    return on_range + (beside * vmap(product)(beside.permute(2, 0, 1)).permute(1, 2, 0)).sum(1).mean(1)


@dataclass(frozen=True, slots=True, eq=False)
class FlowJacobian:
    """Where the flow went from noise, and the singular values of its Jacobian on the way."""

    x: Tensor  # (B, D): points at the last level
    levels: Tensor  # (T,)
    singular_values: Tensor  # (B, T, D), falling; of ∂x(σ)/∂x(σ_max), times σ_max


def flow_jacobian(
    field: Field, x: Tensor, sigma_max: float = 10.0, sigma_min: float = 0.01, *, num_steps: int = 60
) -> FlowJacobian:
    """Integrate x and Y = ∂x(σ)/∂x(σ_max) together: dY/dσ = -σ J Y, Y = I at σ_max.

    Parameters
    ----------
    field : Field
        v.
    x : Tensor, shape (B, D)
        Points at σ_max; `probability_flow` encodes data.
    sigma_max, sigma_min : float, default 10.0, 0.01
        Noise levels.
    num_steps : int, default 60
        Runge-Kutta steps, geometric in σ; each costs 4 D products at every point.

    Returns
    -------
    FlowJacobian
        Off a manifold the values track σ, along it they settle.

    References
    ----------
    C. Horvat, J.-P. Pfister (2024), ICLR, arXiv 2402.03845.
    """
    check_points("flow_jacobian", x, sigma_max)
    levels = _levels("flow_jacobian", sigma_max, sigma_min, num_steps)

    def rate(y: Tensor, Y: Tensor, sigma: float) -> State:
        columns = vmap(lambda u: jvp(lambda z: field(z, sigma), (y,), (u,))[1], in_dims=2, out_dims=2)(Y)
        return -(sigma**2) * field(y, sigma), -(sigma**2) * columns

    state = x, torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    spectra = [torch.linalg.svdvals(state[1])]
    for low, high in pairwise(levels):
        state = _runge_kutta(rate, state, low, high)
        spectra.append(torch.linalg.svdvals(state[1]))
    return FlowJacobian(state[0], x.new_tensor(levels), sigma_max * torch.stack(spectra, 1))
