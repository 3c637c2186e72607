"""Which group elements the layers of a network work with: one moving lattice for all, or draws of their own.

Shapes: N elements, n order of the matrices.
"""

import warnings
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.quasirandom import SobolEngine

from hesse.equivariant._arguments import check_choice, check_count
from hesse.equivariant.lie._matrices import plane_rotation, random_rotations
from hesse.equivariant.lie.groups import GLPlus, GroupSamples, MatrixGroup, Measure
from hesse.errors import ArgumentError
from hesse.linalg import symmetric_exp

__all__ = ["SampleContext", "Sampling"]

Sampling = Literal["lattice", "independent", "official"]


@dataclass(frozen=True, slots=True)
class SampleContext:
    """How many elements, and how they are drawn.

    A layer of a network sums over sampled elements h_1..h_N. Drawn anew for every layer, the relative elements
    h⁻¹h̃ that its kernels see are random, and with ten of them that noise is larger than the signal. The moving lattice
    fixes a set H₀ and draws one element U for all layers: h_i = U h₀_i, and h_i⁻¹h_j never changes. In the continuum
    net(f; U H₀) = net(f ∘ U; H₀), so a random U in training plays the part of augmentation, without deforming an image,
    and the mean over U at test time is the integral over the group. With eight rotations and one stretch this is a
    convolutional network over C8 whose kernels are warped together.

    Parameters
    ----------
    group : MatrixGroup, default GLPlus(2)
        GL+(n), SL(n) or SO(n).
    num_samples : int, default 8
        N. Networks work with any N, also with another one than they were trained with.
    sampling : {"lattice", "independent", "official"}, default "lattice"
        The moving lattice; sets drawn independently, their angles (n = 2) a regular N-gon turned at random; or as the
        authors do, where the angles are fixed and stretches alone are random.
    variance : float, default 0.08
        σ² of the stretches' coordinates, as in `GLPlus.sample`: with 0.08 an axis is stretched by 14 % (one standard
        deviation). A warning is given above 0.5, where warped kernels leave their window.
    num_stretches : int, default 1
        Lattice only: H₀ holds this many stretches (a Sobol set, the identity first) times N / num_stretches rotations.
    measure : {"lognormal", "haar"}, default "lognormal"
        Weights of independent samples.

    Raises
    ------
    ArgumentTypeError
        If a number is not an integer.
    ArgumentError
        If a number is out of range, a name unknown, N not divisible by ``num_stretches``, or weights or stretches are
        asked for where they have no meaning.

    References
    ----------
    M. Mironenco, P. Forré (2024), ICLR, arXiv 2310.11366, for independent samples; the lattice is not theirs.
    """

    group: MatrixGroup = field(default_factory=GLPlus)
    num_samples: int = 8
    sampling: Sampling = "lattice"
    variance: float = 0.08
    num_stretches: int = 1
    measure: Measure = "lognormal"

    def __post_init__(self) -> None:
        call = "SampleContext"
        check_count(call, "num_samples", self.num_samples, 1)
        check_count(call, "num_stretches", self.num_stretches, 1)
        check_choice(call, "sampling", self.sampling, get_args(Sampling))
        check_choice(call, "measure", self.measure, get_args(Measure))
        if not 0 < self.variance < float("inf"):
            raise ArgumentError(f"{call}: expected variance > 0, got {self.variance}")
        if self.num_samples % self.num_stretches:
            raise ArgumentError(
                f"{call}: expected num_samples to be a multiple of num_stretches, got {self.num_samples} and "
                f"{self.num_stretches}"
            )
        if self.num_stretches > 1 and (self.sampling != "lattice" or self.group.num_symmetric == 0):
            raise ArgumentError(f"{call}: num_stretches belongs to a lattice of a group with stretches")
        if self.measure == "haar" and self.sampling != "independent":
            raise ArgumentError(f"{call}: measure='haar' needs sampling='independent', got {self.sampling!r}")
        if self.sampling == "official" and self.group.n != 2:
            raise ArgumentError(f"{call}: sampling='official' is for n = 2, the group has n = {self.group.n}")
        if self.variance > 0.5:
            warnings.warn(
                f"{call}: with variance={self.variance} kernels are warped out of their windows and gradients vanish; "
                "0.05 to 0.1 is usual",
                stacklevel=3,
            )
        if self.num_samples == 1:
            warnings.warn(f"{call}: with num_samples=1 group layers see no relative element", stacklevel=3)

    @property
    def spread(self) -> bool:
        """Whether relative elements hold stretches: kernels then need functions of them."""
        return self.group.num_symmetric > 0 and (self.sampling != "lattice" or self.num_stretches > 1)

    def draw(
        self,
        num_sets: int = 1,
        *,
        generator: Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> tuple[GroupSamples, ...]:
        """Draw the sets of one pass through a network.

        Parameters
        ----------
        num_sets : int, default 1
            How many different sets its layers distinguish; a lattice hands out the same one to all.
        generator : torch.Generator, optional
            Source of the numbers. Default: torch's global generator on the CPU.
        dtype : dtype, default float32
            Of the samples; they are made in float64.
        device : device, default "cpu"
            Of the samples.

        Returns
        -------
        tuple of GroupSamples
            One a set.
        """
        check_count("SampleContext.draw", "num_sets", num_sets, 1)
        if self.sampling == "lattice":
            mover = self.group.sample(1, generator=generator, variance=self.variance, dtype=torch.float64).h[0]
            return (self._lattice(mover, dtype, device),) * num_sets
        return tuple(self._independent(generator, dtype, device) for _ in range(num_sets))

    def fixed_samples(
        self,
        num_draws: int,
        num_sets: int = 1,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> tuple[tuple[GroupSamples, ...], ...]:
        """Draw the sets of several passes, the same ones for the same seed.

        For a lattice in the plane the elements U are a scrambled Sobol set over angles within one step of the lattice
        and stretches: fewer draws for the same accuracy than independent ones.

        Parameters
        ----------
        num_draws : int
            Passes to average over.
        num_sets : int, default 1
            Sets within a pass, as in `draw`.
        seed : int, default 0
            Any integer.
        dtype : dtype, default float32
            Of the samples.
        device : device, default "cpu"
            Of the samples.

        Returns
        -------
        tuple of tuple of GroupSamples
            One tuple a draw.
        """
        check_count("SampleContext.fixed_samples", "num_draws", num_draws, 1)
        seed %= 2**31
        if self.sampling != "lattice" or self.group.n != 2:
            generator = Generator().manual_seed(seed)
            return tuple(self.draw(num_sets, generator=generator, dtype=dtype, device=device) for _ in range(num_draws))
        engine = SobolEngine(1 + self.group.num_symmetric, scramble=True, seed=seed)
        points = engine.draw(num_draws, dtype=torch.float64)
        angles = 2 * torch.pi * points[:, 0] * self.num_stretches / self.num_samples
        log_s = self.group.symmetric(self._normal(points[:, 1:]))
        movers = symmetric_exp(log_s / 2) @ plane_rotation(angles)
        return tuple((self._lattice(mover, dtype, device),) * num_sets for mover in movers)

    def _lattice(self, mover: Tensor, dtype: torch.dtype, device: torch.device | str) -> GroupSamples:
        count = self.num_samples // self.num_stretches
        if self.group.n == 2:
            rotations = plane_rotation(2 * torch.pi * torch.arange(count, dtype=torch.float64) / count)
        else:
            rotations = random_rotations(self.group.n, count, Generator().manual_seed(0))  # H₀ is fixed
        h, h_inv = rotations, rotations.mT
        if self.num_stretches > 1:
            engine = SobolEngine(self.group.num_symmetric)
            engine.fast_forward(1)  # the first point has no normal quantile; the second is the identity
            log_s = self.group.symmetric(self._normal(engine.draw(self.num_stretches, dtype=torch.float64)))
            h = (symmetric_exp(log_s / 2)[:, None] @ rotations).flatten(0, 1)
            h_inv = (rotations.mT @ symmetric_exp(-log_s / 2)[:, None]).flatten(0, 1)
        mover = mover.cpu()
        parts = (mover @ h, h_inv @ torch.linalg.inv(mover), torch.ones(len(h)))
        return GroupSamples(*(part.to(device=device, dtype=dtype) for part in parts))

    def _normal(self, uniform: Tensor) -> Tensor:
        return self.variance**0.5 * torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))

    def _independent(self, generator: Generator | None, dtype: torch.dtype, device: torch.device | str) -> GroupSamples:
        drawn = self.group.sample(
            self.num_samples,
            generator=generator,
            measure=self.measure,
            variance=self.variance,
            rotations="equispaced" if self.group.n == 2 else "uniform",
            dtype=torch.float64,
        )
        if self.sampling == "official":
            # h = exp(X/2) R keeps its stretch and takes the angle of its place: only stretches are random
            places = 2 * torch.pi * torch.arange(self.num_samples, dtype=torch.float64) / self.num_samples
            _, R = self.group.decompose(drawn.h)
            turn = R.mT @ plane_rotation(places).to(R.device)
            drawn = GroupSamples(drawn.h @ turn, turn.mT @ drawn.h_inv, drawn.weight)
        return GroupSamples(*(part.to(device=device, dtype=dtype) for part in drawn))
