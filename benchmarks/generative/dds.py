"""What DDS promises: the quality of DPS at a fraction of its time, without a backward pass.

Truths of the exact-prior part are drawn from the prior itself, whose posterior mean is the ceiling. Every method is
tuned over four values on pictures that are not used again.
"""

import io
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks._claims import Claim, ClaimFunction, PeerMissing, Scale
from benchmarks.data import digit_pictures, interleave, peak_rss_growth
from benchmarks.generative._dds_causes import Task, causes
from benchmarks.generative._dds_pictures import fit_mixture, phantom_volume, phantoms, psnr, total_variation
from benchmarks.peers import run_peer
from hesse.generative import (
    DDNM,
    DDS,
    DPS,
    Denoiser,
    DiffPIR,
    DiffusionPrior,
    DiffusionSampler,
    GaussianMixture,
    MultiCoilMRI,
    ParallelBeamCT,
    PictureNetwork,
    RealView,
    TVz,
    VariancePreserving,
    coil_maps,
    filtered_back_projection,
    mixture_posterior,
    sampling_mask,
    train_denoiser,
)
from hesse.linalg import Kronecker, LinearOperator, ScaledIdentity, cg

__all__ = ["CLAIMS"]

SIZE = 32
TUNING = ((5.0, 0.15), (5.0, 0.5), (15.0, 0.5), (15.0, 0.85))  # gamma and eta of DDS
STEP_SIZES = {1000: (0.5, 0.7, 1.0, 1.4), 50: (0.7, 1.4, 2.8, 5.6), 20: (1.0, 2.0, 4.0, 8.0)}
# the same two from a least-squares picture, where calls at high noise are saved
WARM_LEVEL = 0.2
WARM_TUNING = ((5.0, 0.85), (2.5, 1.0), (5.0, 1.0), (10.0, 1.0))
WARM_STEP_SIZES = {1000: (0.025, 0.05, 0.1, 0.25), 50: (0.25, 0.5, 1.0, 2.0), 20: (0.5, 1.0, 2.0, 4.0)}
CT_TUNING = ((30.0, 0.15), (100.0, 0.15), (100.0, 0.85), (300.0, 0.85))

Make = Callable[[Any, LinearOperator], DiffusionSampler]
Kind = Literal["digits", "phantoms"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One method after tuning: the value chosen, decibels of each value on the tuning pictures, and on the others."""

    value: Any
    tuned_db: list[float]
    task_db: list[float]
    found: Tensor  # of the last task

    @property
    def db(self) -> float:
        """Mean over tasks."""
        return float(np.mean(self.task_db))

    def row(self) -> dict[str, Any]:
        """What goes into the record."""
        return {"value": self.value, "tuning, dB": self.tuned_db, "each task, dB": self.task_db, "dB": self.db}


def _task(physics: LinearOperator, sigma_y: float, pictures: Tensor, num_tune: int, generator: Generator) -> Task:
    clean = physics.matvec(pictures.to(physics.dtype))
    noise = torch.randn(clean.shape, dtype=clean.dtype.to_real(), generator=generator)
    if clean.dtype.is_complex:
        noise = torch.complex(noise, torch.randn(noise.shape, dtype=noise.dtype, generator=generator))
    data = clean + sigma_y * noise
    return Task(physics, sigma_y, (pictures[:num_tune], data[:num_tune]), (pictures[num_tune:], data[num_tune:]))


def _tuned(make: Make, values: Sequence[Any], tasks: Sequence[Task], seed: int, *, warm: bool = False) -> Outcome:
    """Choose the value by the mean over the tuning pictures of all tasks; ``warm`` starts from least squares."""

    def run(value: Any, task: Task, data: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        picture = _least_squares(task.physics, data) if warm else None
        sampler = make(value, task.physics)
        return sampler.sample(data, sigma_y=task.sigma_y, picture=picture, generator=generator).flatten(1)

    tuned = [
        float(np.mean([float(psnr(run(value, task, task.tune[1]), task.tune[0]).mean()) for task in tasks]))
        for value in values
    ]
    best = values[int(np.nanargmax(tuned))]
    found = [run(best, task, task.test[1]) for task in tasks]
    judged = [float(psnr(pictures, task.test[0]).mean()) for pictures, task in zip(found, tasks, strict=True)]
    return Outcome(best, tuned, judged, found[-1])


def _least_squares(physics: LinearOperator, data: Tensor) -> Tensor:
    """A first guess: 20 steps of CG on (AᵀA + I/50) x = Aᵀy, for MRI of real pictures."""
    wide = RealView(physics, real_picture=True)
    back = wide.rmatvec(torch.view_as_real(data).flatten(-2))
    system = (wide.H @ wide).shift(0.02)
    return cg(system, back.mT.contiguous(), max_steps=20, rtol=1e-8, validate=False).x.mT.reshape(-1, 1, SIZE, SIZE)


def claim_exact_prior(scale: Scale) -> list[Claim]:
    """Four-coil MRI at R = 4, noise 0.01, pictures drawn from a mixture prior: DDS, DPS and the exact posterior."""
    generator, seed = torch.Generator().manual_seed(scale.seed), scale.seed
    long = scale(smoke=30, full=1000)
    many = scale(smoke=300, full=4000)
    mixture = fit_mixture(phantoms(many, SIZE, generator), scale(smoke=2, full=8), scale(smoke=20, full=60), generator)
    num_tune, num_test = scale(smoke=1, full=4), scale(smoke=1, full=4)
    maps = coil_maps(4, (SIZE, SIZE), dtype=torch.complex128)
    tasks = []
    for _ in range(scale(smoke=1, full=4)):  # a few masks: what they leave open differs by decibels
        physics = MultiCoilMRI(maps, sampling_mask((SIZE, SIZE), "uniform1d", 4.0, generator=generator))
        pictures = mixture.sample(num_tune + num_test, generator=generator)
        tasks.append(_task(physics, 0.01, pictures, num_tune, generator))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture.denoise(x.flatten(1), sigma).reshape(x.shape)

    prior = DiffusionPrior.from_denoiser(denoise, VariancePreserving(), (1, SIZE, SIZE))

    schedule = prior.schedule

    def grid(calls: int, warm: bool) -> Tensor:
        return schedule.geometric_times(calls, WARM_LEVEL) if warm else schedule.times(calls)

    def dps(calls: int, warm: bool = False) -> Make:
        return lambda value, physics: DPS(prior, physics, calls, step_size=value, times=grid(calls, warm))

    def dds(calls: int, warm: bool = False) -> Make:
        return lambda v, physics: DDS(prior, physics, calls, gamma=v[0], eta=v[1], times=grid(calls, warm))

    few, length = (50, 20), {1000: long, 50: 50, 20: 20}
    ours = {calls: _tuned(dds(calls), TUNING, tasks, seed) for calls in few}
    warm_ours = {calls: _tuned(dds(calls, True), WARM_TUNING, tasks, seed, warm=True) for calls in few}
    theirs = {calls: _tuned(dps(length[calls]), STEP_SIZES[calls], tasks, seed) for calls in (*few, 1000)}
    warm_theirs = {
        calls: _tuned(dps(length[calls], True), WARM_STEP_SIZES[calls], tasks, seed, warm=True)
        for calls in (*few, 1000)
    }
    best_ours = max(ours[50], warm_ours[50], key=lambda outcome: max(outcome.tuned_db))
    best_theirs = max(theirs[1000], warm_theirs[1000], key=lambda outcome: max(outcome.tuned_db))
    ddnm = _tuned(lambda v, physics: DDNM(prior, physics, 50, eta=v), (0.25, 0.5, 0.85, 1.0), tasks, seed)
    pir = _tuned(lambda v, physics: DiffPIR(prior, physics, 50, lam=v), (1.0, 3.0, 7.0, 25.0), tasks, seed)
    bounds = [_bounds(mixture, prior, task, seed) for task in tasks]
    ceiling, drawn, filled, noiseless = (float(np.mean(column)) for column in zip(*bounds, strict=True))

    last = tasks[-1]
    arms = {
        "dds": lambda: dds(50)(ours[50].value, last.physics).sample(last.test[1], sigma_y=last.sigma_y),
        "dps": lambda: dps(long)(theirs[1000].value, last.physics).sample(last.test[1], sigma_y=last.sigma_y),
    }
    times = interleave(arms, scale(smoke=1, full=3), warmup=0, clock="cpu")
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    ratio = seconds["dps"] / seconds["dds"]
    rows: dict[str, Any] = {
        "zero-filled, dB": filled,
        "exact posterior mean, dB": ceiling,
        "exact posterior mean of each mask, dB": [bound[0] for bound in bounds],
        "one sample of the exact posterior, dB": drawn,
        "DDS with CG for noiseless data, dB": noiseless,
        **{f"DDS, {calls} calls": outcome.row() for calls, outcome in ours.items()},
        **{f"DDS, {calls} calls, warm start": outcome.row() for calls, outcome in warm_ours.items()},
        **{f"DPS, {length[calls]} calls": outcome.row() for calls, outcome in theirs.items()},
        **{f"DPS, {length[calls]} calls, warm start": outcome.row() for calls, outcome in warm_theirs.items()},
        **causes(prior, ours[50].value, tasks, scale),
        "DDNM, 50 calls": ddnm.row(),
        "DiffPIR, 50 calls": pir.row(),
        "CPU seconds": times,
        "DPS of 4000 calls over DDS of 50, call count times measured time of a call": ratio * 4000 / long,
        "pictures judged": num_test * len(tasks),
    }
    gaps = {calls: ours[calls].db - theirs[calls].db for calls in few}
    warm_gaps = {f"{calls} calls": warm_ours[calls].db - warm_theirs[calls].db for calls in few}
    start = "the start, from noise or from a least-squares picture, is tuned for each method; the other is a row"
    cold = "both from pure noise; the row has both from a least-squares picture"
    behind, below = best_theirs.db - best_ours.db, ceiling - best_ours.db
    return [
        Claim("DDS of 50 calls falls behind DPS of 1000, dB", behind, 1.0, "lower", rows, True, start),
        Claim("time of DPS of 1000 calls over DDS of 50", ratio, 12.0, "higher", {"CPU seconds": times}, True),
        Claim("DDS ahead of DPS at 50 calls, dB", gaps[50], 0.5, "higher", {"warm": warm_gaps}, True, cold),
        Claim("DDS ahead of DPS at 20 calls, dB", gaps[20], 0.5, "higher", {"warm": warm_gaps}, True, cold),
        Claim("DDS of 50 calls below the posterior mean, dB", below, 3.5, "lower", {}, True, start),
    ]


def _bounds(mixture: GaussianMixture, prior: DiffusionPrior, task: Task, seed: int) -> tuple[float, ...]:
    """Decibels of the exact posterior's mean and of a sample, of the zero-filled picture, of DDS without noise."""
    truth, data = task.test
    wide = RealView(task.physics, real_picture=True)
    posterior = mixture_posterior(mixture, wide, torch.view_as_real(data).flatten(-2), task.sigma_y)
    drawn = posterior.sample(1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    filled = wide.rmatvec(torch.view_as_real(data).flatten(-2))
    noiseless = DDS(prior, task.physics, 50).sample(data, generator=torch.Generator().manual_seed(seed)).flatten(1)
    return tuple(float(psnr(found, truth).mean()) for found in (posterior.mean, drawn, filled, noiseless))


@lru_cache(maxsize=2)
def _learnt(kind: Kind, scale: Scale) -> tuple[DiffusionPrior, Denoiser, dict[str, float]]:
    """A U-Net of half a million weights, trained on fresh phantoms or on all digits but those kept for judging."""
    torch.manual_seed(scale.seed)
    generator = torch.Generator().manual_seed(scale.seed)
    data = partial(_fresh, generator) if kind == "phantoms" else _digits(scale.seed)[20:].unsqueeze(1)
    denoiser, start = Denoiser(PictureNetwork(1)), time.perf_counter()
    losses = train_denoiser(
        denoiser,
        data,
        sigma_min=0.005,
        max_steps=scale(smoke=3, full=1500),
        batch_size=16,
        ema_decay=0.99,
        generator=generator,
    )
    facts = {
        "seconds of training": time.perf_counter() - start,
        "weights": sum(weight.numel() for weight in denoiser.parameters()),
        "last loss": float(losses[-50:].mean()),
    }
    denoiser.requires_grad_(False)
    return DiffusionPrior.from_denoiser(denoiser, VariancePreserving(), (1, SIZE, SIZE)), denoiser, facts


def _fresh(generator: Generator, count: int) -> Tensor:
    return phantoms(count, SIZE, generator).unsqueeze(1)


def _digits(seed: int) -> Tensor:
    """The digits of scikit-learn in a random order, (1797, 32, 32)."""
    pixels, _ = digit_pictures()
    order = np.random.default_rng(seed).permutation(len(pixels))
    small = torch.from_numpy(pixels[order]).float().reshape(-1, 1, 8, 8)
    return functional.interpolate(small, (SIZE, SIZE), mode="bilinear").squeeze(1)


def _tomography(kind: Kind, scale: Scale) -> dict[str, Any]:
    """Every method on 12 views of one kind of pictures."""
    prior, denoiser, facts = _learnt(kind, scale)
    generator = torch.Generator().manual_seed(scale.seed + 1)
    num_tune, num_test = scale(smoke=1, full=4), scale(smoke=1, full=16)
    total = num_tune + num_test
    pictures = (phantoms(total, SIZE, generator) if kind == "phantoms" else _digits(scale.seed)[:total]).flatten(1)
    physics = ParallelBeamCT(SIZE, torch.arange(12) * 15.0)
    task = _task(physics, 0.005, pictures, num_tune, generator)
    truth, data = task.test
    fbp = float(psnr(filtered_back_projection(physics, data).flatten(1).clamp(0, 1), truth).mean())
    lams = (1e-4, 3e-4, 1e-3, 3e-3)
    tuned = [float(psnr(total_variation(physics, task.tune[1], SIZE, lam), task.tune[0]).mean()) for lam in lams]
    best = lams[int(np.argmax(tuned))]
    smooth = float(psnr(total_variation(physics, data, SIZE, best), truth).mean())
    calls = scale(smoke=5, full=50)
    ours = _tuned(lambda v, a: DDS(prior, a, calls, gamma=v[0], eta=v[1]), CT_TUNING, [task], scale.seed)
    dps = _tuned(lambda v, a: DPS(prior, a, calls, step_size=v), (1.0, 2.0, 4.0, 8.0), [task], scale.seed)
    pir = _tuned(lambda v, a: DiffPIR(prior, a, calls, lam=v), (1.0, 3.0, 7.0, 25.0), [task], scale.seed)
    arms = {
        "dds": lambda: DDS(prior, physics, calls).sample(data, sigma_y=task.sigma_y),
        "dps": lambda: DPS(prior, physics, calls).sample(data, sigma_y=task.sigma_y),
    }
    seconds = {name: float(np.median(times)) for name, times in interleave(arms, 1, warmup=0, clock="cpu").items()}
    return {
        **facts,
        "filtered back-projection, dB": fbp,
        "total variation": {"lam": best, "tuning, dB": tuned, "dB": smooth},
        "DDS": ours.row(),
        "DPS": dps.row(),
        "DiffPIR": pir.row(),
        "calls": calls,
        "CPU seconds": seconds,
        "time of DPS of 1000 calls over DDS of 50 with this network": 20 * seconds["dps"] / seconds["dds"],
        "deepinv": _deepinv(denoiser, task, scale),
    }


def claim_learned_prior(scale: Scale) -> list[Claim]:
    """Tomography from 12 views with a U-Net trained here, against back-projection, total variation and deepinv."""
    rows = {kind: _tomography(kind, scale) for kind in ("digits", "phantoms")}
    ours = rows["digits"]["DDS"]["dB"]
    note = "judged on digits; on phantoms, which are constant but for their edges, see the rows"
    return [
        Claim(
            "DDS ahead of filtered back-projection, dB",
            ours - rows["digits"]["filtered back-projection, dB"],
            4.0,
            "higher",
            rows,
            True,
            note,
        ),
        Claim(
            "DDS ahead of total variation, dB",
            ours - rows["digits"]["total variation"]["dB"],
            0.5,
            "higher",
            {kind: {"DDS, dB": row["DDS"]["dB"], "TV, dB": row["total variation"]["dB"]} for kind, row in rows.items()},
            True,
            note,
        ),
    ]


def _deepinv(denoiser: Denoiser, task: Task, scale: Scale) -> dict[str, Any]:
    """deepinv's DiffPIR, DPS and DDRM on the same network, matrix and data, tuned alike; or why there is none."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript; it is what two versions both read
        traced = torch.jit.trace(denoiser.network, (torch.zeros(2, 1, SIZE, SIZE), torch.ones(2)))
        torch.jit.save(traced, stream)
    arrays = {
        "network": np.frombuffer(stream.getvalue(), np.uint8),
        "matrix": task.physics.to_dense().numpy(),
        "data_sd": np.array(denoiser.data_sd),
        "size": np.array(SIZE),
        "sigma_y": np.array(task.sigma_y),
        "tune_x": task.tune[0].numpy(),
        "tune_y": task.tune[1].numpy(),
        "test_y": task.test[1].numpy(),
        "lambdas": np.array([1.0, 3.0, 7.0, 25.0]),
        "weights": np.array([0.5, 1.0, 2.0, 4.0]),
        "etas": np.array([0.25, 0.5, 0.85, 1.0]),
        "num_steps": np.array(scale(smoke=3, full=100)),
        "seed": np.array(scale.seed % 2**31),
    }
    try:
        peer = run_peer("deepinv", Path(__file__).parent / "_dds_deepinv.py", arrays)
    except (PeerMissing, RuntimeError) as error:
        return {"error": str(error)[-1500:]}
    rows: dict[str, Any] = {"calls": int(arrays["num_steps"]), "CPU seconds": peer.cpu_seconds}
    for name in ("DiffPIR", "DPS", "DDRM"):
        rows[name] = {
            "value": float(peer.arrays[f"{name}_value"]),
            "tuning, mean square errors": peer.arrays[f"{name}_errors"],
            "dB": float(psnr(torch.from_numpy(peer.arrays[name]), task.test[0]).mean()),
        }
    return rows


def claim_volume(scale: Scale) -> list[Claim]:
    """Total variation across 16 slices, few views and noise, against DDS slice by slice."""
    prior, _, _ = _learnt("phantoms", scale)
    generator = torch.Generator().manual_seed(scale.seed + 2)
    num_slices = scale(smoke=3, full=16)
    single = ParallelBeamCT(SIZE, torch.arange(8) * 22.5)
    physics = Kronecker([ScaledIdentity(num_slices), single])
    volumes = torch.stack([phantom_volume(num_slices, SIZE, generator) for _ in range(scale(smoke=2, full=4))])
    task = _task(physics, 0.01, volumes.flatten(1), len(volumes) // 2, generator)
    calls = scale(smoke=3, full=50)
    plain = _tuned(lambda v, a: DDS(prior, a, calls, gamma=v[0], eta=v[1]), CT_TUNING, [task], scale.seed)
    smooth = _tuned(
        lambda v, a: DDS(prior, a, calls, tv=TVz(rho=10 * v, lam=v, boundary="neumann")),
        (1e-3, 3e-3, 1e-2, 3e-2),
        [task],
        scale.seed,
    )

    def variation(pictures: Tensor) -> float:
        return float(pictures.unflatten(1, (num_slices, -1)).diff(dim=1).abs().sum(1).mean())

    rows = {
        "slice by slice": plain.row() | {"variation": variation(plain.found)},
        "total variation": smooth.row() | {"variation": variation(smooth.found)},
        "variation of the truth": variation(task.test[0]),
    }
    fall = variation(smooth.found) / variation(plain.found)
    return [
        Claim("total variation across slices gains, dB", smooth.db - plain.db, 0.5, "higher", rows, True),
        Claim("variation across slices, with over without", fall, 1.0, "lower", rows, True),
    ]


def _memory_case(method: str, batch: int, side: int) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    denoiser = Denoiser(PictureNetwork(1)).requires_grad_(False)
    prior = DiffusionPrior.from_denoiser(denoiser, VariancePreserving(), (1, side, side))
    physics = MultiCoilMRI(torch.ones(1, side, side, dtype=torch.complex64), sampling_mask((side, side)))
    sampler = (DDS if method == "dds" else DPS)(prior, physics, 2)
    data = torch.zeros(batch, physics.shape[0], dtype=torch.complex64)
    return lambda: sampler.sample(data, sigma_y=0.01)


def _call(case: Callable[[], Tensor]) -> Tensor:
    return case()


def claim_memory(scale: Scale) -> Claim:
    """Peak memory of two steps on a batch of pictures with the U-Net, each method in fresh processes."""
    batch, side = scale(smoke=4, full=16), scale(smoke=32, full=64)
    grown = {
        name: peak_rss_growth(_call, _memory_case, name, batch, side, repeats=scale(smoke=1, full=3))
        for name in ("dds", "dps")
    }
    return Claim("peak memory of DDS over DPS", grown["dds"] / grown["dps"], 0.5, "lower", {"bytes": grown}, True)


CLAIMS: list[ClaimFunction] = [claim_exact_prior, claim_learned_prior, claim_volume, claim_memory]
