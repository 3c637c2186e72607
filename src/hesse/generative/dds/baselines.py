"""Other samplers for the same problems, on the same schedule and operators: DPS, MCG, DiffPIR and DDNM."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.generative.dds.data_step import least_squares_step, proximal_step
from hesse.generative.dds.loop import DiffusionSampler, InverseProblem, SamplerState, add_noise

__all__ = ["DDNM", "DPS", "MCG", "DiffPIR"]


@dataclass(frozen=True, eq=False)
class DPS(DiffusionSampler):
    """Diffusion posterior sampling: an ancestral step, then x -= step_size ∇_{x_t} ‖y - A x̂_0(x_t)‖.

    The gradient runs through the network. See `DDS` for ``prior``, ``physics``, ``times`` and ``chunk_size``.

    Parameters
    ----------
    num_steps : int, default 50
        Network calls, each with a backward pass; the paper makes 1000.
    step_size : float, default 1.0
        ζ, in units of x/y.
    eta : float, default 1.0
        1 is the ancestral step, 0 DDIM.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    H. Chung, J. Kim, M. T. McCann, M. L. Klasky, J. C. Ye (2023), ICLR, arXiv 2209.14687.
    """

    step_size: float = 1.0
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step_size > 0 or not 0 <= self.eta <= 1:
            raise ArgumentError(
                f"{type(self).__name__}: expected step_size > 0 and 0 <= eta <= 1, got {self.step_size}, {self.eta}"
            )

    def step(self, state: SamplerState, problem: InverseProblem, generator: Generator | None = None) -> SamplerState:
        """Make one step of the grid.

        Parameters
        ----------
        state : SamplerState
            From ``start``, or of the step before.
        problem : InverseProblem
            From ``prepare``.
        generator : torch.Generator, optional
            Source of z.

        Returns
        -------
        SamplerState
            At the next time.
        """
        now, then = self.moment(state.index), self.moment(state.index + 1)
        with torch.enable_grad():
            x = state.x.detach().requires_grad_()
            noise = self._noise(x, now, state.index)
            denoised = (x - now.s * noise) / now.a
            misfit = torch.linalg.vector_norm(problem.y - problem.physics.matmat(denoised.flatten(1).mT), dim=0)
            (slope,) = torch.autograd.grad(misfit.sum(), x)
        denoised = denoised.detach()
        x = add_noise(denoised, noise.detach(), now, then, self.eta, generator) - self.step_size * slope
        return SamplerState(x, state.index + 1, denoised)


@dataclass(frozen=True, eq=False)
class MCG(DPS):
    """Manifold-constrained gradients: a step of `DPS`, then x is moved onto the data as noised to its own time.

    The target is a' y + s' A z; the move is ``cg_steps`` steps of CG on the normal equations from x.

    Parameters
    ----------
    cg_steps : int, default 5
        Of the projection; one step is exact where A A^T = I.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    H. Chung, B. Sim, D. Ryu, J. C. Ye (2022), NeurIPS, arXiv 2206.00941.
    """

    cg_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one_step("MCG", self.cg_steps)

    def step(self, state: SamplerState, problem: InverseProblem, generator: Generator | None = None) -> SamplerState:
        """Make one step of the grid; arguments and result as of `DPS`.

        Parameters
        ----------
        state, problem, generator
            As of `DPS`.

        Returns
        -------
        SamplerState
            At the next time.
        """
        moved = super().step(state, problem, generator)
        then = self.moment(moved.index)
        columns = moved.x.flatten(1).mT
        target = then.a * problem.back
        if then.s > 0:
            fresh = torch.randn(columns.shape, dtype=columns.dtype, device=columns.device, generator=generator)
            target = target + then.s * problem.gram.matmat(fresh)
        x = least_squares_step(_with_target(problem, target), columns.contiguous(), self.cg_steps)
        return SamplerState(x.mT.reshape(moved.x.shape), moved.index, moved.denoised)


@dataclass(frozen=True, eq=False)
class DiffPIR(DiffusionSampler):
    """Plug-and-play restoration: the proximal point of x̂_0 with weight γ_t = s² / (a² λ σ_y²), then noise put back.

    ε' = (x_t - a x̂_0') / s is the noise that agrees with the data; x_t' = a' x̂_0' + s' (sqrt(1 - ζ) ε' + sqrt(ζ) z).
    See `DDS` for ``prior``, ``physics``, ``times`` and ``chunk_size``.

    Parameters
    ----------
    num_steps : int, default 50
        Network calls; the paper makes 100.
    lam : float, default 7.0
        λ, weight of the prior.
    zeta : float, default 0.1
        Fraction of the variance of the noise that is fresh.
    cg_steps : int, default 20
        Of the proximal problem, which the method wants solved.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    Y. Zhu et al. (2023), CVPR Workshops, arXiv 2305.08995.
    """

    lam: float = 7.0
    zeta: float = 0.1
    cg_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lam > 0 or not 0 <= self.zeta <= 1:
            raise ArgumentError(f"DiffPIR: expected lam > 0 and 0 <= zeta <= 1, got {self.lam}, {self.zeta}")
        _at_least_one_step("DiffPIR", self.cg_steps)

    @torch.no_grad()
    def step(self, state: SamplerState, problem: InverseProblem, generator: Generator | None = None) -> SamplerState:
        """Make one step of the grid.

        Parameters
        ----------
        state : SamplerState
            From ``start``, or of the step before.
        problem : InverseProblem
            From ``prepare``.
        generator : torch.Generator, optional
            Source of z.

        Returns
        -------
        SamplerState
            At the next time.
        """
        now, then = self.moment(state.index), self.moment(state.index + 1)
        noise = self._noise(state.x, now, state.index)
        columns = ((state.x - now.s * noise) / now.a).flatten(1).mT.contiguous()
        if problem.sigma_y == 0:
            columns = least_squares_step(problem, columns, self.cg_steps)
        else:
            gamma = (now.s / (now.a * problem.sigma_y)) ** 2 / self.lam
            columns = proximal_step(problem, columns, gamma, self.cg_steps)
        denoised = columns.mT.reshape(state.x.shape)
        fresh = torch.randn(denoised.shape, dtype=noise.dtype, device=noise.device, generator=generator)
        agreed = (state.x - now.a * denoised) / now.s
        x = then.a * denoised + then.s * ((1 - self.zeta) ** 0.5 * agreed + self.zeta**0.5 * fresh)
        return SamplerState(x, state.index + 1, denoised)


@dataclass(frozen=True, eq=False)
class DDNM(DiffusionSampler):
    """Null-space model: x̂_0' = x̂_0 - λ_t A⁺(A x̂_0 - y), then a DDIM step with fresh noise σ_t.

    λ_t = min(1, σ_t / (a' σ_y)), so that noise of the data is never more than the step adds anyway. A⁺ by CG on the
    normal equations. See `DDS` for ``prior``, ``physics``, ``times`` and ``chunk_size``.

    Parameters
    ----------
    num_steps : int, default 50
        Network calls; the paper makes 100.
    eta : float, default 0.85
        Of DDIM.
    cg_steps : int, default 20
        Of A⁺, exact in one where A A^T = I.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    Y. Wang, J. Yu, J. Zhang (2023), ICLR, arXiv 2212.00490.
    """

    eta: float = 0.85
    cg_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ArgumentError(f"DDNM: expected 0 <= eta <= 1, got {self.eta}")
        _at_least_one_step("DDNM", self.cg_steps)

    @torch.no_grad()
    def step(self, state: SamplerState, problem: InverseProblem, generator: Generator | None = None) -> SamplerState:
        """Make one step of the grid.

        Parameters
        ----------
        state : SamplerState
            From ``start``, or of the step before.
        problem : InverseProblem
            From ``prepare``.
        generator : torch.Generator, optional
            Source of z.

        Returns
        -------
        SamplerState
            At the next time.
        """
        now, then = self.moment(state.index), self.moment(state.index + 1)
        noise = self._noise(state.x, now, state.index)
        columns = ((state.x - now.s * noise) / now.a).flatten(1).mT.contiguous()
        moved = least_squares_step(problem, columns, self.cg_steps)
        if problem.sigma_y > 0:
            left = max(0.0, now.s**2 - (now.a / then.a * then.s) ** 2) ** 0.5
            fresh = self.eta * (then.s / now.s if then.s > 0 else 1.0) * left
            moved = columns + min(1.0, fresh / (then.a * problem.sigma_y)) * (moved - columns)
        denoised = moved.mT.reshape(state.x.shape)
        x = add_noise(denoised, noise, now, then, self.eta, generator)
        return SamplerState(x, state.index + 1, denoised)


def _at_least_one_step(call: str, cg_steps: int) -> None:
    if cg_steps < 1:
        raise ArgumentError(f"{call}: expected cg_steps >= 1, got {cg_steps}")


def _with_target(problem: InverseProblem, back: Tensor) -> InverseProblem:
    # the same operator with another A^T y; y itself is not read by the normal equations
    return InverseProblem(problem.physics, problem.gram, problem.y, back, problem.sigma_y, problem.batch)
