"""Claims about deep conjugate directions: steps against conjugate gradients, and honest times.

Every system is solved to its tolerance by both. The networks were trained on an empty box and have seen no obstacle.
``python -m benchmarks.pde._dcdm_train`` makes the weights again; at full scale one claim does so from its own seed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any, Literal

import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import interleave
from benchmarks.pde._dcdm_cases import (
    cases,
    deflated_cg,
    fluid_matrix,
    incomplete_cholesky_cg,
    multigrid,
    steps_of_both,
)
from benchmarks.pde._dcdm_train import SETTINGS, SIZES, train
from hesse.linalg import Dense, cg
from hesse.pde.dcdm import DCDMNet, DeepConjugateDirection, conjugate_directions

__all__ = ["CLAIMS"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Steps of both methods on the same right-hand sides."""

    plain: list[int]
    ours: list[int]
    fallback: int

    @property
    def ratio(self) -> float:
        return fmean(self.plain) / fmean(self.ours)

    @property
    def worst(self) -> float:
        return min(a / b for a, b in zip(self.plain, self.ours, strict=True))

    def rows(self) -> dict[str, Any]:
        means = {"cg": fmean(self.plain), "dcdm": fmean(self.ours), "ratio": self.ratio, "worst": self.worst}
        return means | {"fallback steps": self.fallback, "cg steps": self.plain, "dcdm steps": self.ours}


HOLES = ("empty", "solid")
FALLBACKS: dict[str, Literal["cg"] | None] = {"alone": None, "with fallback": "cg"}
BARS = {64: {1e-4: 4.5, 1e-6: 4.0}, 128: {1e-4: 3.5, 1e-6: 2.5}}


def _compare(
    solver: DeepConjugateDirection, size: int, dim: int, holes: str, tols: Sequence[float], seed: int
) -> dict[float, Comparison]:
    """CG and DCDM on the six cases, to each tolerance."""
    plain: dict[float, list[int]] = {tol: [] for tol in tols}
    ours: dict[float, list[int]] = {tol: [] for tol in tols}
    fallback = 0
    for case in cases(size, dim, holes, seed):
        table, fell = steps_of_both(solver, case, tols)
        fallback += fell
        for tol, (a, b) in table.items():
            plain[tol] += a
            ours[tol] += b
    return {tol: Comparison(plain[tol], ours[tol], fallback) for tol in tols}


def _claims(
    solver: DeepConjugateDirection,
    size: int,
    dim: int,
    bars: dict[float, float],
    scale: Scale,
    label: str,
    *,
    full_only: bool = False,
) -> tuple[list[Claim], dict[str, float]]:
    """One claim a tolerance about the smaller ratio of the two kinds of hole, and the worst single cases."""
    found = {holes: _compare(solver, size, dim, holes, list(bars), scale.seed) for holes in HOLES}
    claims, worst = [], {}
    for tol, bar in bars.items():
        here = {f"holes {holes}": table[tol] for holes, table in found.items()}
        ratio = min(comparison.ratio for comparison in here.values())
        worst[f"{tol:g}"] = min(comparison.worst for comparison in here.values())
        rows = {holes: comparison.rows() for holes, comparison in here.items()}
        name = f"CG steps over DCDM steps to {tol:g}, {label}"
        claims.append(Claim(name, ratio, bar, "higher", rows, full_only=full_only))
    return claims, worst


def claim_steps(scale: Scale) -> list[Claim]:
    """On a 64 x 64 grid, obstacles never seen: >= 4.5 times fewer steps than CG to 1e-4, >= 4 to 1e-6."""
    return _claims(DeepConjugateDirection.pretrained(2), 64, 2, BARS[64] | {1e-8: 3.0}, scale, "64 x 64")[0]


def claim_transfer(scale: Scale) -> list[Claim]:
    """The same weights on a 128 x 128 grid: >= 3.5 and >= 2.5 times fewer steps, and no case worse than CG."""
    claims, worst = _claims(DeepConjugateDirection.pretrained(2), 128, 2, BARS[128], scale, "128 x 128")
    name = "worst case at 128 x 128, CG steps over DCDM steps"
    return [*claims, Claim(name, min(worst.values()), 1.0, "higher", worst)]


def claim_growth(scale: Scale) -> Claim:
    """Transferred weights: what doubling the grid costs DCDM in steps, over what it costs CG. No size independence."""
    solver = DeepConjugateDirection.pretrained(2)
    curve = {
        size: _compare(solver, size, 2, "solid", [1e-4], scale.seed)[1e-4].rows()
        for size in scale(smoke=(32, 64), full=(32, 64, 128, 256))
    }
    sizes = sorted(curve)
    growth = {kind: [curve[b][kind] / curve[a][kind] for a, b in pairwise(sizes)] for kind in ("cg", "dcdm")}
    measured = max(d / c for c, d in zip(growth["cg"], growth["dcdm"], strict=True))
    rows = {"sizes": sizes, "growth": growth, "steps": {n: (curve[n]["cg"], curve[n]["dcdm"]) for n in sizes}}
    return Claim(
        "growth of the steps per doubling over CG's",
        measured,
        1.3,
        "lower",
        rows,
        full_only=True,
        note="the paper's size independence is for networks trained per size; these weights saw 64 x 64 only",
    )


def claim_three_dimensions(scale: Scale) -> list[Claim]:
    """3-D, trained on 24³: the bars of the transfer claim on a larger grid with obstacles."""
    size = scale(smoke=20, full=48)
    claims, worst = _claims(
        DeepConjugateDirection.pretrained(3), size, 3, BARS[128], scale, f"{size} x {size} x {size}", full_only=True
    )
    return [*claims, Claim("worst case in 3-D, CG steps over DCDM steps", min(worst.values()), 1.0, "higher", worst)]


def claim_retrained(scale: Scale) -> list[Claim]:
    """A network trained here from the run's seed, within 150 CPU seconds: the bars of the 64 x 64 claim."""
    steps = scale(smoke=20, full=SETTINGS[2]["num_steps"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # CPU seconds of one core
    solver, seconds = train(2, scale.seed + 1000, num_steps=steps)
    torch.set_num_threads(threads)
    size = f"{SIZES[2]} x {SIZES[2]}"
    loss = float(solver.losses[-100:].mean())
    rows = {"steps": steps, "loss": loss}
    claims = [Claim("CPU seconds of training", seconds, 150.0, "lower", rows, full_only=True, note="of this machine")]
    return claims + _claims(solver, 64, 2, BARS[64], scale, f"{size}, fresh weights", full_only=True)[0]


def claim_training_data(scale: Scale) -> Claim:
    """Training on Ritz vectors instead of white noise, same budget: >= 1.5 times fewer steps on smooth systems."""
    budget, limit = scale(smoke=10, full=400), scale(smoke=50, full=1000)
    steps: dict[str, dict[str, float]] = {}
    for name, noise in (("ritz", 0.0), ("white", 1.0)):
        solver, _ = train(2, scale.seed + 2000, num_steps=budget, noise=noise)
        steps[name] = {}
        for label, fallback in FALLBACKS.items():
            solver.fallback = fallback
            found = [
                int(solver.solve(case.operator, case.b[:, 1], tol=1e-6, max_steps=limit).num_steps)
                for case in cases(64, 2, "solid", scale.seed)
            ]
            steps[name][label] = fmean(found)
    rows = steps | {"training steps": budget, "limit": limit}
    ratio = steps["white"]["with fallback"] / steps["ritz"]["with fallback"]
    return Claim("steps with white-noise over Ritz training data", ratio, 1.5, "higher", rows, full_only=True)


def claim_window(scale: Scale) -> Claim:
    """Two earlier directions are enough: more than two save little."""
    solver, size = DeepConjugateDirection.pretrained(2), scale(smoke=64, full=128)
    steps = {}
    for i_orth in (0, 1, 2, 4, 8):
        solver.i_orth = i_orth
        steps[i_orth] = fmean(_compare(solver, size, 2, "solid", [1e-6], scale.seed)[1e-6].ours)
    return Claim("steps with a window of two over one of eight", steps[2] / steps[8], 1.25, "lower", {"steps": steps})


class _Constant(nn.Module):
    """The least useful network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, residual: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.weight.expand(residual.shape)
        return out if mask is None else torch.where(mask, out, 0)


def claim_fallback(scale: Scale) -> list[Claim]:
    """Networks that are no good, with the fallback: at most 2.5 times the steps of CG."""
    networks: dict[str, nn.Module] = {
        "constant": _Constant(),
        "untrained": DCDMNet(2, generator=torch.Generator().manual_seed(scale.seed)),
        "untrained, three levels": DCDMNet(2, levels=3, generator=torch.Generator().manual_seed(scale.seed)),
    }
    worst = {}
    for name, network in networks.items():
        worst[name] = 1 / _compare(DeepConjugateDirection(network), 64, 2, "empty", [1e-6], scale.seed)[1e-6].worst
    return [Claim("steps of useless networks over CG, worst case", max(worst.values()), 2.5, "lower", worst)]


def claim_times(scale: Scale) -> list[Claim]:
    """Wall time on this CPU beside CG, IC(0)-CG, deflated CG and pyamg: multigrid wins, the row says by how much."""
    size, repeats, tol = scale(smoke=64, full=256), scale(smoke=2, full=5), 1e-6
    case = cases(size, 2, "solid", scale.seed)[2]
    operator, b = case.operator, case.b[:, 0].contiguous()
    solver = DeepConjugateDirection.pretrained(2)

    def timed(build: Callable[[], Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        return build(), time.perf_counter() - start

    arms: dict[str, Callable[[], int]] = {
        "CG": lambda: cg(operator, b, rtol=tol, max_steps=3000).require().num_steps,
        "DCDM": lambda: solver.solve(operator, b, tol=tol, max_steps=3000).require().num_steps,
    }
    setup = {"CG": 0.0, "DCDM": 0.0}
    for name, build in {
        "IC(0)-CG": lambda: incomplete_cholesky_cg(operator, tol),
        "deflated CG, 16 vectors": lambda: deflated_cg(operator, tol, scale.seed),
        "pyamg smoothed aggregation": lambda: multigrid(operator, tol, "smoothed_aggregation_solver"),
        "pyamg Ruge-Stuben": lambda: multigrid(operator, tol, "ruge_stuben_solver"),
    }.items():
        rival, setup[name] = timed(build)
        arms[name] = lambda rival=rival: rival(b)
    steps = {name: arm() for name, arm in arms.items()}
    seconds = {name: median(times) for name, times in interleave(arms, repeats).items()}
    base = seconds["CG"]
    table = {
        name: {"steps": steps[name], "time over CG": seconds[name] / base, "setup over CG": setup[name] / base}
        for name in arms
    }
    rows = {"size": size, "tol": tol, "table": table}
    return [
        Claim(
            "time of DCDM over pyamg's smoothed aggregation, CPU",
            seconds["DCDM"] / seconds["pyamg smoothed aggregation"],
            1.0,
            "higher",
            rows,
            full_only=True,
            note="a limit, not a merit: on a CPU multigrid is the faster solver",
        ),
        Claim(
            "steps of IC(0)-CG over DCDM",
            steps["IC(0)-CG"] / steps["DCDM"],
            1.0,
            "higher",
            {"size": size, "steps": steps},
            full_only=True,
        ),
    ]


def claim_oracles(scale: Scale) -> list[Claim]:
    """Identity and full window are CG; solutions are SciPy's; the energy error never grows."""
    n, generator = 100, torch.Generator().manual_seed(scale.seed)
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    matrix = basis * torch.logspace(0, -1, n, dtype=torch.float64) @ basis.T
    operator = Dense((matrix + matrix.T) / 2, is_psd=True)
    b = torch.randn(n, dtype=torch.float64, generator=generator)
    iterates: list[Tensor] = []
    conjugate_directions(
        operator,
        b,
        lambda r: r,
        i_orth=n,
        tol=1e-10,
        fallback=None,
        callback_fn=lambda _k, x, _r: iterates.append(x[:, 0].clone()),
    )
    apart = max(
        float((x - cg(operator, b, rtol=0.0, max_steps=k).x).norm() / x.norm()) for k, x in enumerate(iterates, 1)
    )
    far, grown, runs = 0.0, 0, 0
    for dim, size in scale(smoke=((2, 40), (3, 12)), full=((2, 64), (3, 20))):
        solver = DeepConjugateDirection.pretrained(dim)
        for holes in HOLES:
            for case in cases(size, dim, holes, scale.seed):
                rows, inside = fluid_matrix(case.operator)
                exact = torch.zeros_like(case.b)
                exact[inside] = torch.from_numpy(scipy.sparse.linalg.spsolve(rows.tocsc(), case.b[inside].numpy()))
                energies: list[Tensor] = []

                def keep(_step: int, x: Tensor, _r: Tensor, case=case, exact=exact, energies=energies) -> None:
                    gap = x - exact
                    energies.append((gap * (case.operator @ gap)).sum(0))

                found = solver.solve(case.operator, case.b, tol=1e-11, callback_fn=keep).require()
                far = max(far, float((found.x - exact).norm() / exact.norm()))
                energy = torch.stack(energies)
                grown += int((energy[1:] > energy[:-1] * (1 + 1e-6) + 1e-20 * energy[0]).sum())
                runs += case.b.shape[1]
    return [
        Claim("identity with a full window, distance from CG", apart, 1e-8, "lower", {"n": n, "steps": len(iterates)}),
        Claim("distance from SciPy's direct solution", far, 1e-8, "lower", {"systems": runs}),
        Claim("steps that raised the energy error", grown, 0, "lower", {"systems": runs}),
    ]


CLAIMS: list[ClaimFunction] = [
    claim_steps,
    claim_transfer,
    claim_growth,
    claim_three_dimensions,
    claim_retrained,
    claim_training_data,
    claim_window,
    claim_fallback,
    claim_times,
    claim_oracles,
]
