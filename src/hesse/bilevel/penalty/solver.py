"""The penalty method for nonconvex bilevel problems: gradients of f and g only, one loop with momentum or two without.

u ← P_Y(u - γ (s f_y + g_y + (u - y)/ρ)),   w ← P_Y(w - γ (g_y + (w - z)/ρ)),   y, z ← averages of themselves and u, w
x ← P_X(x - a (f_x(x, u) + (g_x(x, u) - g_x(x, w))/s))

Shapes: x (N,), all others (M,). The solver's attributes ``y`` and ``z`` are u and w; the centres have their own names.
"""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hesse.bilevel.checks import warn_of_rounding
from hesse.bilevel.penalty.two_copies import TwoCopies
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import positive
from hesse.errors import ArgumentError

__all__ = ["PenaltyBilevel"]

_GROWTH = 10.0  # an inner loop whose direction grows by this does not contract: its centre does not hold it


class PenaltyBilevel(TwoCopies):
    """For lower levels that are nonconvex, have many solutions, or whose Hessian products are too dear.

    Converges to stationary points of ψ_s(x) = (min_y (s f + g) - min_y g)/s, which lie within O(s) of those of the
    optimistic problem where s f + g satisfies a proximal error bound uniformly in s. Where the set of lower solutions
    changes its active constraints, ψ has directional derivatives only.

    Parameters
    ----------
    problem : BilevelProblem
        With or without samplers; ``project_x`` and ``project_y`` are obeyed.
    mode : {"single", "double"}, default "single"
        "single": one step of every variable from one pair of batches, all gradients with recursive momentum.
        "double": ``inner_steps`` steps of both copies, each on a batch of its own, then one of x.
    lr : float
        a, the step along ∇ψ_s itself.
    lr_lower : float
        γ, below 2 / (L_g + s L_f + 1/ρ).
    sigma : float, default 0.1
        s of the first step: the error of the solution is proportional to s, its noise to 1/s where samples are not
        shared.
    sigma_decay : float, default 0.25
        s = max(sigma (k + 1)^(-sigma_decay), sigma_min).
    sigma_min : float, default 1e-3
        Floor of s; it holds for s that never decays too.
    rho : float, optional
        ρ < 1 / (weak convexity of s f + g), which makes the inner problems strongly convex. Default: infinity, no
        centres, for lower levels that are convex or nearly so along the path.
    prox_step : float, default 0.5
        β in (0, 1], the weight of u and w in the centres; unused without ``rho``.
    momentum : float, default 0.02
        Floor of the weight of the newest sample, max(momentum, (k + 1)^(-2/3)), in "single"; 1 switches the recursion
        off, which halves the work and leaves the noise.
    inner_steps : int, default 10
        Of "double".
    batch_growth : float, optional
        "double" averages its step of x over ⌈(k + 1)^batch_growth⌉ batches. Default: one batch.
    trust_radius : float, optional
        Largest norm of the difference quotient (g_x(x, u) - g_x(x, w))/s; longer ones are shortened. Default: none.
    seed : int, default 0
        Unused but for the interface.

    Attributes
    ----------
    rho : float
        ρ as it stands: "double" halves it where a loop grows instead of contracting.

    Raises
    ------
    ArgumentError
        If an option is out of range, or the lower level is constrained by other means than ``project_y``.

    Warns
    -----
    UserWarning
        If s can fall under 1e-3 in single precision, where the difference quotient loses its digits.

    Notes
    -----
    A step of "single" costs three gradients (of f once, of g twice), six with momentum, and no graph of a graph: memory
    is that of plain training with three to six copies of x and y. Half precision leaves no digits of the
    difference quotient: keep the variables in float32.

    References
    ----------
    J. Kwon, D. Kwon, S. Wright, R. Nowak (2024), ICLR, arXiv 2309.01753.
    """

    tensors: ClassVar[tuple[str, ...]] = (*TwoCopies.tensors, "y_center", "z_center", "rho_state")

    def __init__(
        self,
        problem: BilevelProblem,
        mode: Literal["single", "double"] = "single",
        *,
        lr: float,
        lr_lower: float,
        sigma: float = 0.1,
        sigma_decay: float = 0.25,
        sigma_min: float = 1e-3,
        rho: float | None = None,
        prox_step: float = 0.5,
        momentum: float = 0.02,
        inner_steps: int = 10,
        batch_growth: float | None = None,
        trust_radius: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(problem, seed=seed)
        call = "PenaltyBilevel"
        if mode not in ("single", "double"):
            raise ArgumentError(f"{call}: mode must be single or double, got {mode!r}")
        positive(call, lr=lr, lr_lower=lr_lower, sigma=sigma, sigma_min=sigma_min, inner_steps=inner_steps)
        for name, value in (("rho", rho), ("trust_radius", trust_radius)):
            if value is not None and not value > 0:
                raise ArgumentError(f"{call}: expected {name} > 0, got {value}")
        for name, value in (("prox_step", prox_step), ("momentum", momentum)):
            if not 0 < value <= 1:
                raise ArgumentError(f"{call}: expected 0 < {name} <= 1, got {value}")
        for name, value in (("sigma_decay", sigma_decay), ("batch_growth", batch_growth)):
            if value is not None and not value >= 0:
                raise ArgumentError(f"{call}: expected {name} >= 0, got {value}")
        warn_of_rounding(call, sigma_min, self.x.dtype)
        self.mode, self.lr, self.lr_lower = mode, lr, lr_lower
        self.sigma_start, self.sigma_decay, self.sigma_min = sigma, sigma_decay, sigma_min
        self.prox_step, self.momentum, self.inner_steps = prox_step, momentum, inner_steps
        self.batch_growth, self.trust_radius = batch_growth, trust_radius
        self.rho_state = torch.tensor(math.inf if rho is None else rho, dtype=torch.float64)
        self.y_center = self.z_center = self.y

    @property
    def rho(self) -> float:
        """ρ as it stands; infinite without centres."""
        return float(self.rho_state)

    @property
    def sigma(self) -> float:
        """The penalty s of the next step."""
        return max(self.sigma_start * (self.iteration + 1) ** -self.sigma_decay, self.sigma_min)

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            The estimate of ∇ψ_s.
        """
        return self._single() if self.mode == "single" else self._double()

    def _single(self) -> Tensor:
        sigma = self.sigma
        found = self.tracked_gradients(self.momentum)
        estimate = self._estimate(found.upper_x, found.difference / sigma)
        self._move_copies(torch.add(found.lower_y, found.upper_y, alpha=sigma), found.lower_z)
        self._average()
        self.x = self.oracle.project_x(self.x - self.lr * estimate)
        return estimate

    def _double(self) -> Tensor:
        sigma, x = self.sigma, self.x
        if math.isfinite(self.rho):
            self.y, self.z = self.y_center, self.z_center
        first, last = 0.0, 0.0
        for t in range(self.inner_steps):
            upper, lower_y, lower_z = self.draw_batches()
            at_y = self.oracle.lower_gradient(x, self.y, lower_y)
            at_z = self.oracle.lower_gradient(x, self.z, lower_z)
            last = self._move_copies(
                torch.add(at_y, self.oracle.upper_gradients(x, self.y, upper)[1], alpha=sigma), at_z
            )
            first = last if t == 0 else first
        if last > _GROWTH * first:
            self.rho_state = self.rho_state / 2
        self._average()
        count = 1 if self.batch_growth is None else math.ceil((self.iteration + 1) ** self.batch_growth)
        estimate = torch.zeros_like(x)
        for _ in range(count):
            upper, lower_y, lower_z = self.draw_batches()
            upper_x = self.oracle.upper_gradients(x, self.y, upper)[0]
            at_y = self.oracle.lower_gradients(x, self.y, lower_y)[0]
            at_z = self.oracle.lower_gradients(x, self.z, lower_z)[0]
            estimate = estimate + self._estimate(upper_x, (at_y - at_z) / sigma) / count
        self.x = self.oracle.project_x(x - self.lr * estimate)
        return estimate

    def _move_copies(self, y_direction: Tensor, z_direction: Tensor) -> float:
        # the longer of both directions, where there are centres that must hold them
        length = 0.0
        if math.isfinite(self.rho):
            y_direction = y_direction + (self.y - self.y_center) / self.rho
            z_direction = z_direction + (self.z - self.z_center) / self.rho
            length = float(torch.maximum(y_direction.norm(), z_direction.norm()))
        self.y = self.oracle.project_y(torch.sub(self.y, y_direction, alpha=self.lr_lower))
        self.z = self.oracle.project_y(torch.sub(self.z, z_direction, alpha=self.lr_lower))
        return length

    def _average(self) -> None:
        if not math.isfinite(self.rho):
            self.y_center, self.z_center = self.y, self.z
            return
        self.y_center = torch.lerp(self.y_center, self.y, self.prox_step)
        self.z_center = torch.lerp(self.z_center, self.z, self.prox_step)

    def _estimate(self, upper_x: Tensor, quotient: Tensor) -> Tensor:
        if self.trust_radius is not None:
            quotient = quotient * (self.trust_radius / quotient.norm().clamp_min(self.trust_radius))
        return upper_x + quotient
