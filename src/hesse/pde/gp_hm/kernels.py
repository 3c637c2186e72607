"""Stationary kernels from mixture spectra, with their derivatives in closed form.

k(r) = Σ_q w_q g(r; ρ_q) cos(2π μ_q r); r = |x - x'|.   Shapes: Q components, any shape of lags, N points of a grid.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hesse.errors import ArgumentError
from hesse.linalg import Toeplitz

__all__ = ["Envelope", "SpectralMixture1d", "WeightMap", "is_uniform"]

Envelope = Literal["matern52", "gaussian"]
WeightMap = Literal["log", "softplus"]
_UNIFORM = 1e-9  # relative spread of the steps of a grid that still counts as uniform


def is_uniform(grid: Tensor) -> bool:
    """Decide whether points are equally spaced, to rounding.

    Parameters
    ----------
    grid : Tensor, shape (N,)
        Increasing.

    Returns
    -------
    bool
        The verdict.
    """
    steps = grid.diff()
    return bool((steps - steps.mean()).abs().max() <= _UNIFORM * (grid[-1] - grid[0]).abs())


class SpectralMixture1d(nn.Module):
    """A kernel on the line whose spectral density is an even mixture of bumps at ±μ_q.

    - ``"matern52"``: Student-t bumps of five degrees of freedom, g = (1 + a r + a²r²/3) e^{-a r}, a = √5 ρ;
    - ``"gaussian"``: Gaussian bumps, g = e^{-ρ²r²} (the spectral-mixture kernel).

    Parameters
    ----------
    n_components : int, default 30
        Q, more than the solution has lines: the superfluous ones fade.
    envelope : {"matern52", "gaussian"}, default "matern52"
        The heavier tails of the Student-t bumps find a line that lies between two teeth of the comb.
    f_max : float, default 20.0
        Frequencies start at ``linspace(0, f_max, Q)``, in periods a unit of x. 0 with one component and
        ``requires_grad_(False)`` on ``frequency`` is the plain Matérn or Gaussian kernel.
    weights : {"log", "softplus"}, default "log"
        What the raw weights are: log w, under which a flat prior is the sparsifying Jeffreys prior of w, or the
        argument of a softplus. Weights start at 1/Q, inverse length scales ρ at 1.
    dtype : torch.dtype, default float64
        Of the parameters. Orders above 0 in single precision are for looking, not for solving equations.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Notes
    -----
    A call costs O(Q) a lag, in time and memory.

    References
    ----------
    S. Fang, M. Cooley, D. Long, S. Li, R. M. Kirby, S. Zhe (2024), ICLR, arXiv 2311.04465; A. G. Wilson, R. P. Adams
    (2013), ICML, for Gaussian bumps.
    """

    def __init__(
        self,
        n_components: int = 30,
        envelope: Envelope = "matern52",
        f_max: float = 20.0,
        *,
        weights: WeightMap = "log",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if n_components < 1:
            raise ArgumentError(f"SpectralMixture1d: expected n_components >= 1, got {n_components}")
        if envelope not in ("matern52", "gaussian"):
            raise ArgumentError(f"SpectralMixture1d: envelope must be 'matern52' or 'gaussian', got {envelope!r}")
        if weights not in ("log", "softplus"):
            raise ArgumentError(f"SpectralMixture1d: weights must be 'log' or 'softplus', got {weights!r}")
        if not 0 <= f_max < math.inf:
            raise ArgumentError(f"SpectralMixture1d: expected a finite f_max >= 0, got {f_max}")
        self.envelope: Envelope = envelope
        self.weights: WeightMap = weights
        start = -math.log(n_components) if weights == "log" else math.log(math.expm1(1 / n_components))
        self.raw_weight = nn.Parameter(torch.full((n_components,), start, dtype=dtype))
        self.frequency = nn.Parameter(torch.linspace(0, f_max, n_components, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(n_components, dtype=dtype))

    @property
    def weight(self) -> Tensor:
        """w, shape (Q,): the share of the prior variance k(0) of each component."""
        return self.raw_weight.exp() if self.weights == "log" else softplus(self.raw_weight)

    @property
    def max_order(self) -> int | None:
        """The highest derivative of k that exists at 0 and is offered; None for any."""
        return 2 if self.envelope == "matern52" else None

    def check_order(self, order: int) -> None:
        """Refuse derivatives that the kernel lacks.

        Parameters
        ----------
        order : int
            Of the derivative of k.

        Raises
        ------
        ArgumentError
            If it is negative, or above 2 for the Matérn envelope.
        """
        if order < 0 or (self.max_order is not None and order > self.max_order):
            raise ArgumentError(
                f"SpectralMixture1d: no derivative of order {order} with the {self.envelope} envelope"
                f"{'; its paths have two, use gaussian' if order > 2 else ''}"
            )

    def _envelopes(self, r: Tensor, order: int) -> list[Tensor]:
        # g, g', … for r >= 0, each with a last dimension Q
        if self.envelope == "matern52":
            a = math.sqrt(5) * self.log_scale.exp()
            ar, decay = a * r, torch.exp(-a * r)
            known = [
                lambda: (1 + ar + ar.square() / 3) * decay,
                lambda: -(a / 3) * ar * (1 + ar) * decay,
                lambda: -(a.square() / 3) * (1 + ar - ar.square()) * decay,
            ]
            return [build() for build in known[: order + 1]]
        b = (2 * self.log_scale).exp()
        out = [torch.exp(-b * r.square())]
        for n in range(order):  # Hermite's recursion: g⁽ⁿ⁺¹⁾ = -2b (r g⁽ⁿ⁾ + n g⁽ⁿ⁻¹⁾)
            previous = n * out[n - 1] if n else 0
            out.append(-2 * b * (r * out[n] + previous))
        return out

    def forward(self, lag: Tensor, order: int = 0) -> Tensor:
        """Evaluate d^p k / dx^p at lags x - x'.

        Parameters
        ----------
        lag : Tensor, any shape
            x - x', signed, in the parameters' dtype.
        order : int, default 0
            p. The closed forms hold at lag 0 as well, where differentiating |x - x'| would give a wrong zero.

        Returns
        -------
        Tensor, shape of ``lag``
            Differentiable in the parameters; use ``order`` for derivatives in x.

        Raises
        ------
        ArgumentError
            If the kernel lacks that derivative.
        """
        self.check_order(order)
        r = lag.abs().unsqueeze(-1)
        omega = 2 * math.pi * self.frequency
        envelopes = self._envelopes(r, order)
        angle = omega * r
        cosine = torch.cos(angle)
        sine = torch.sin(angle) if order else cosine
        turned = (cosine, -sine, -cosine, sine)  # cos and its derivatives
        total = torch.zeros_like(angle)
        for m in range(order + 1):  # Leibniz
            total = total + math.comb(order, m) * envelopes[order - m] * omega**m * turned[m % 4]
        value = total @ self.weight
        return value * lag.sign() if order % 2 else value

    def matrix(self, x1: Tensor, x2: Tensor, order: int = 0) -> Tensor:
        """Evaluate d^p k(x1_i, x2_j) / dx1^p for all pairs, at O(Q M N).

        Parameters
        ----------
        x1 : Tensor, shape (M,)
            Points that are differentiated in.
        x2 : Tensor, shape (N,)
            Points.
        order : int, default 0
            p.

        Returns
        -------
        Tensor, shape (M, N)
            Not symmetric for odd p.
        """
        return self(x1.unsqueeze(1) - x2, order)

    def toeplitz(self, grid: Tensor, order: int = 0) -> Toeplitz:
        """Evaluate the kernel matrix of a uniform grid from its N lags, at O(Q N).

        Parameters
        ----------
        grid : Tensor, shape (N,)
            Equally spaced, increasing.
        order : int, default 0
            p; the matrix is antisymmetric for odd p.

        Returns
        -------
        Toeplitz, shape (N, N)
            Of d^p k(x_i, x_j) / dx_i^p.

        Raises
        ------
        ArgumentError
            If the grid is not uniform.
        """
        if not is_uniform(grid):
            raise ArgumentError("SpectralMixture1d.toeplitz: the grid is not equally spaced; use matrix()")
        step = (grid[-1] - grid[0]) / (len(grid) - 1)
        column = self(step * torch.arange(len(grid), dtype=grid.dtype, device=grid.device), order)
        return Toeplitz(column, -column) if order % 2 else Toeplitz(column, is_psd=order == 0)
