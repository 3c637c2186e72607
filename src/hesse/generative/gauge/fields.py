"""Score fields v(x, σ) of data noised as x_0 + σ ε, their Jacobians and how far they are from gradients.

Every schedule becomes this one by x_t = a_t x, σ = s_t / a_t; `score_field` does it.   Shapes: B points, D coordinates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.func import jvp, vjp, vmap

from hesse.errors import ArgumentError, ShapeError
from hesse.generative.diffusion import DiffusionPrior

__all__ = ["Field", "SphereScore", "asymmetry", "check_points", "field_jacobian", "gauge_residual", "score_field"]

Field = Callable[[Tensor, float], Tensor]
"""(x of shape (B, D), σ) -> (B, D), row by row."""

_SATURATED = 300.0  # coth is 1 to the last digit of float64 long before


def check_points(call: str, x: Tensor, sigma: float) -> None:
    """Refuse points that are not rows of floats, and noise levels that are not positive.

    Parameters
    ----------
    call : str
        The function, for the message.
    x : Tensor
        What came.
    sigma : float
        What came.

    Raises
    ------
    ShapeError
        If x is not (B, D) of a floating dtype.
    ArgumentError
        If ``sigma`` is not positive and finite.
    """
    if x.ndim != 2 or not x.is_floating_point() or not x.numel():
        raise ShapeError(f"{call}: expected x of shape (B, D), floating, got {tuple(x.shape)} {x.dtype}")
    if not 0 < sigma < math.inf:
        raise ArgumentError(f"{call}: expected sigma > 0, got {sigma}")


def score_field(prior: DiffusionPrior) -> Field:
    """Read a model of noise, score, denoised or velocity, on any schedule, as v(x, σ) = -ε(a x, t) / σ.

    Parameters
    ----------
    prior : DiffusionPrior
        The model; t is the time at which s_t / a_t = σ. Its samples must be vectors.

    Returns
    -------
    Field
        It raises ArgumentError for σ outside the schedule, where the model was not trained.
    """
    schedule = prior.schedule

    def field(x: Tensor, sigma: float) -> Tensor:
        t = schedule.time_at(sigma)
        a = float(schedule.signal(t))
        reached = float(schedule.noise_sd(t)) / a
        if abs(reached - sigma) > 1e-3 * sigma:
            raise ArgumentError(f"score_field: sigma = {sigma} is outside the schedule; the nearest is {reached:.4g}")
        return -prior.noise(a * x, t) / sigma

    return field


@dataclass(frozen=True, slots=True)
class SphereScore:
    """The uniform law on the unit sphere of the first three coordinates of R^D, noised: density and score.

    With r = |x_123| and κ = r / σ²: log p = -(r² + 1) / 2σ² + log(sinh κ / κ) - 3/2 log 2πσ² + log N(rest; 0, σ² I),
    and the score of x_123 is x (-1/σ² + L / σ⁴), L = (coth κ - 1/κ) / κ, which is 1/3 at κ = 0.

    Parameters
    ----------
    dim : int, default 3
        D >= 3.

    Raises
    ------
    ArgumentError
        If ``dim < 3``.
    """

    dim: int = 3

    def __post_init__(self) -> None:
        if self.dim < 3:
            raise ArgumentError(f"SphereScore: expected dim >= 3, got {self.dim}")

    def _split(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        check_points("SphereScore", x, sigma)
        if x.shape[1] != self.dim:
            raise ShapeError(f"SphereScore: expected x of shape (B, {self.dim}), got {tuple(x.shape)}")
        radius = x[:, :3].square().sum(1).clamp_min(1e-30).sqrt()
        return radius, radius / sigma**2

    def log_density(self, x: Tensor, sigma: float) -> Tensor:
        """Log density of the noised law.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.
        sigma : float
            Noise level.

        Returns
        -------
        Tensor, shape (B,)
            In nats.
        """
        radius, kappa = self._split(x, sigma)
        near = kappa < 1e-3
        safe = torch.where(near, torch.ones_like(kappa), kappa)
        growth = torch.where(near, kappa.square() / 6, safe + torch.log1p(-(-2 * safe).exp()) - (2 * safe).log())
        square = radius.square() + 1 + x[:, 3:].square().sum(1)
        return growth - square / (2 * sigma**2) - self.dim / 2 * math.log(2 * math.pi * sigma**2)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Score of the noised law.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Points.
        sigma : float
            Noise level.

        Returns
        -------
        Tensor, shape (B, D)
            ∇ log p.
        """
        _, kappa = self._split(x, sigma)
        near = kappa < 1e-2
        safe = torch.where(near, torch.ones_like(kappa), kappa)
        coth = torch.where(safe > _SATURATED, torch.ones_like(safe), 1 / safe.clamp_max(_SATURATED).tanh())
        langevin = torch.where(near, 1 / 3 - kappa.square() / 45 + 2 * kappa**4 / 945, (coth - 1 / safe) / safe)
        pull = torch.cat([langevin.unsqueeze(1).expand(-1, 3), x.new_zeros(len(x), self.dim - 3)], 1)
        return x * (pull / sigma**4 - 1 / sigma**2)

    def sample(self, num_samples: int, sigma: float = 0.0, *, generator: Generator | None = None) -> Tensor:
        """Draw points, in float64.

        Parameters
        ----------
        num_samples : int
            How many.
        sigma : float, default 0.0
            Noise on top.
        generator : torch.Generator, optional
            Default: torch's global generator.

        Returns
        -------
        Tensor, shape (num_samples, D)
            x_0 + σ ε.
        """
        kind = {"dtype": torch.float64, "generator": generator}
        points = torch.zeros(num_samples, self.dim, dtype=torch.float64)
        points[:, :3] = torch.nn.functional.normalize(torch.randn(num_samples, 3, **kind))
        return points + sigma * torch.randn(num_samples, self.dim, **kind)


def field_jacobian(field: Field, x: Tensor, sigma: float) -> Tensor:
    """J = ∂v/∂x at every point, by D products with one-hot rows.

    Parameters
    ----------
    field : Field
        v, row by row: no batch statistics.
    x : Tensor, shape (B, D)
        Points.
    sigma : float
        Noise level.

    Returns
    -------
    Tensor, shape (B, D, D)
        J[b, i, j] = ∂v_i / ∂x_j. One forward and D backward passes, O(B D) times the memory of one.

    Raises
    ------
    ShapeError
        If the field's value has another shape than x.
    """
    check_points("field_jacobian", x, sigma)
    value, pull = vjp(lambda y: field(y, sigma), x)[:2]
    if value.shape != x.shape:
        raise ShapeError(f"field_jacobian: the field gave {tuple(value.shape)} for x of shape {tuple(x.shape)}")
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return vmap(lambda row: pull(row.expand_as(x))[0])(basis).transpose(0, 1)


def asymmetry(
    field: Field, x: Tensor, sigma: float, num_probes: int = 10, *, generator: Generator | None = None
) -> Tensor:
    """E ‖J - Jᵀ‖² / (4 E ‖J‖²), in [0, 1]: zero for gradients, one for pure rotations.

    ‖A‖²_F = E |A u|² over sign vectors u; each costs one product with J and one with Jᵀ at every point.

    Parameters
    ----------
    field : Field
        v.
    x : Tensor, shape (B, D)
        Points over which to average, usually x_0 + σ ε.
    sigma : float
        Noise level.
    num_probes : int, default 10
        Sign vectors; the points average as well, so few suffice.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.

    Returns
    -------
    Tensor, shape ()
        The ratio of two unbiased estimates.

    Raises
    ------
    ArgumentError
        If ``num_probes < 1`` or ``sigma <= 0``.
    """
    check_points("asymmetry", x, sigma)
    if num_probes < 1:
        raise ArgumentError(f"asymmetry: expected num_probes >= 1, got {num_probes}")
    above, below = x.new_zeros(()), x.new_zeros(())
    pull = vjp(lambda y: field(y, sigma), x)[1]
    for _ in range(num_probes):
        u = torch.randint(2, x.shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1
        Ju = jvp(lambda y: field(y, sigma), (x,), (u,))[1]
        above = above + (Ju - pull(u)[0]).square().sum()
        below = below + Ju.square().sum()
    return above / (4 * below.clamp_min(torch.finfo(x.dtype).tiny))


def gauge_residual(field: Field, score: Field, x: Tensor, sigma: float) -> Tensor:
    """Evaluate div r + r · ∇ log p for r = v - ∇ log p: zero wherever the difference is invisible to the density.

    Parameters
    ----------
    field : Field
        v.
    score : Field
        ∇ log p, the true one.
    x : Tensor, shape (B, D)
        Points.
    sigma : float
        Noise level.

    Returns
    -------
    Tensor, shape (B,)
        In units of 1 / x²; the divergence is exact, by D products.
    """

    def remainder(y: Tensor, level: float) -> Tensor:
        return field(y, level) - score(y, level)

    J = field_jacobian(remainder, x, sigma)
    return J.diagonal(dim1=1, dim2=2).sum(1) + (remainder(x, sigma) * score(x, sigma)).sum(1)
