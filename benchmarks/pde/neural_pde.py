"""Claims about preconditioned descent on elliptic energies: steps, Barron norms, dimension, width, a quasilinear case.

Finite elements with Newton's method are the right tool for at most three axes, and the rows say so: what this method
adds is the certificate, and sparse solutions in many dimensions.
"""

import math
import time
import warnings
from itertools import pairwise
from typing import Literal

import torch

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.pde._neural_pde_cases import (
    PeriodicMLP,
    finite_elements,
    mean_curvature_mix,
    plain_descent,
    random_waves,
    relative_h1,
    semilinear,
    torus_energy,
)
from benchmarks.peers import PeerMissing
from hesse.errors import ConvergenceError, NumericalError
from hesse.pde.barron import FourierSeries, PlaneWaveSeries, Sampling, SineSeries, barron_certificate
from hesse.pde.variational import DeepRitz, DescentRecord, EllipticEnergy, PreconditionedDescent

__all__ = ["CLAIMS"]

MESHES = {1: (64, 256), 2: (64, 128), 3: (16, 32)}
SMALL_MESHES = {1: (32, 64), 2: (16, 32)}
SETTINGS: dict[str, tuple[float, float]] = {"c=20, step 0.2": (20.0, 0.2), "c=1, step 1": (1.0, 1.0)}


def _worst_contraction(history: list[DescentRecord], least: float) -> float:
    """Largest ratio of the energy's distances from its minimum in consecutive steps, while they are above rounding."""
    gaps = [record.energy - least for record in history]
    floor = 1e-10 * abs(gaps[0])
    return max(after / before for before, after in pairwise(gaps) if after > floor)


def mesh_independence(scale: Scale) -> list[Claim]:
    """Steps to a relative H¹ error of 1e-10 do not depend on the mesh; plain descent stands still meanwhile."""
    meshes = scale(smoke=SMALL_MESHES, full=MESHES)
    counts: dict[str, dict[str, int | None]] = {}
    plain_rows: dict[str, dict[str, float]] = {}
    rates: dict[str, dict[str, float]] = {}
    spread, lagging, contraction = 0, 0.0, 0.0
    for dim, sizes in meshes.items():
        for label, (c, step) in SETTINGS.items():
            energy, solution = semilinear(dim, c)
            least = energy.value(solution)
            reached = []
            for modes in sizes:
                errors: list[float] = []
                solver = PreconditionedDescent(energy, backend="grid", step=step, num_modes=modes, tol=2e-12)
                solver.fit(observe_fn=lambda _t, u, e=errors, s=solution: e.append(relative_h1(u, s)))
                count = next((t for t, error in enumerate(errors) if error <= 1e-10), None)
                name = f"d={dim}, N={modes}, {label}"
                report = solver.certificate_report()
                worst = _worst_contraction(solver.history_, least)
                certified = 1 - report.strong_convexity / report.smoothness
                contraction = max(contraction, worst / certified)
                rates[name] = {"worst step": worst, "mean": report.observed_rate, "certified": certified}
                plain = plain_descent(energy, solution, modes, len(errors) - 1)
                slow = max((t for t, error in enumerate(plain, start=1) if error > 0.1), default=0)
                lagging = max(lagging, errors[slow])
                plain_rows[name] = {"plain": plain[-1], "ours": errors[-1], "step": slow, "ours then": errors[slow]}
                counts[name] = {"to 1e-10": count, "taken": solver.n_iter_}
                reached.append(math.inf if count is None else count)
            spread = max(spread, max(reached) - min(reached))
    return [
        Claim("steps to 1e-10 differ across meshes by", spread, 2, "lower", {"steps": counts}),
        Claim("error when plain descent is last above 0.1", lagging, 1e-8, "lower", plain_rows),
        Claim(
            "worst energy contraction over the certified one",
            contraction,
            1.0,
            "lower",
            rates,
            note="certified: 1 - α/β with β from the largest |u| on the path; steps above 1/β are not covered by it",
        ),
    ]


def long_steps(scale: Scale) -> Claim:
    """At c = 20 a fixed step of one diverges, and backtracking converges."""
    steps: dict[str, object] = {}
    worst = 0
    for dim in scale(smoke=(1,), full=(1, 2)):
        energy, solution = semilinear(dim, 20.0)
        modes = 64
        try:
            PreconditionedDescent(energy, backend="grid", step=1.0, num_modes=modes).fit()
            steps[f"d={dim}, step 1"] = "converged"
            worst = math.inf
        except (ConvergenceError, NumericalError) as error:
            steps[f"d={dim}, step 1"] = type(error).__name__
        for accelerate in (None, "anderson", "newton"):
            errors: list[float] = []
            solver = PreconditionedDescent(energy, backend="grid", accelerate=accelerate, num_modes=modes, tol=2e-12)
            solver.fit(observe_fn=lambda _t, u, e=errors, s=solution: e.append(relative_h1(u, s)))
            count = next((t for t, error in enumerate(errors) if error <= 1e-10), math.inf)
            steps[f"d={dim}, {accelerate or 'armijo'}"] = count
            if accelerate is None:
                worst = max(worst, count)
    return Claim("steps to 1e-10 with backtracking where a step of one diverges", worst, 70, "lower", steps)


def barron_growth(scale: Scale) -> list[Claim]:
    """Barron norms on the path stay near that of the solution, and below the certificate, which grows as a tower."""
    rows: dict[str, object] = {}
    ratios: list[float] = []
    fourth: dict[tuple[int, float], float] = {}
    kept = True
    for dim in scale(smoke=(1, 2, 3), full=(1, 2, 3, 4, 5, 6)):
        for c, step in ((1.0, 1.0), (20.0, 0.2)):
            energy, solution = semilinear(dim, c)
            solver = PreconditionedDescent(energy, tol=1e-4, truncation=1e-3, max_terms=40, max_steps=30, step=step)
            solver.fit()
            report = solver.certificate_report()
            ratio = report.largest_barron_norm / float(solution.barron_norm())
            ratios.append(ratio)
            kept = kept and report.holds is True
            logs = [record.log_certificate / math.log(10) for record in solver.history_[:8]]
            fourth[dim, c] = barron_certificate([step] * 4, energy.potential, _norm(energy), lowest=energy.lowest)[-1]
            rows[f"d={dim}, c={c:g}"] = {
                "largest measured over solution's": ratio,
                "measured": [record.barron_norm for record in solver.history_[:8]],
                "log10 certificate": logs,
                "exponent of growth, ln b_T / ln b_(T-1)": report.growth_exponent,
                "steps": solver.n_iter_,
                "relative H1 error": relative_h1(solver.solution_, solution),
                "terms": report.num_terms,
                "capped": report.capped,
            }
    for c in (1.0, 20.0):
        ends = [log for (_, each), log in fourth.items() if each == c]
        rows[f"c={c:g}: power of d in b_4"] = (ends[-1] - ends[0]) / math.log(len(ends))  # d runs from 1 to len(ends)
    return [
        Claim("largest Barron norm on the path over the solution's", max(ratios), 1.5, "lower", rows),
        Claim("measured Barron norms below the certificate", float(kept), 1.0, "higher", {"runs": len(ratios)}),
    ]


def _norm(energy: EllipticEnergy) -> float:
    if not isinstance(energy.source, FourierSeries):
        raise TypeError("the source of a manufactured problem is a series")
    return float(energy.source.barron_norm())


def dimension(scale: Scale) -> list[Claim]:
    """Five waves on the torus in 10, 20 and 50 dimensions: the same digits, where a network learns one or two."""
    runs: dict[str, object] = {}
    errors, seconds, advantages, norms = [], [], [], []
    for dim in scale(smoke=(10, 20), full=(10, 20, 50)):
        solution = random_waves(dim, 5, scale.seed)
        energy = torus_energy(solution, 1.0)
        trace, spent, solver = _capped(energy, solution, step=0.7, num_steps=scale(smoke=8, full=20))
        report = solver.certificate_report()
        ritz = _deep_ritz(energy, solution, spent, scale.seed)
        errors.append(trace[-1])
        seconds.append(spent)
        advantages.append(float(ritz["error"]) / trace[-1])
        norms.append(report.largest_barron_norm / float(solution.barron_norm()))
        runs[f"d={dim}"] = {
            "errors": trace,
            "seconds": spent,
            "barron ratio": norms[-1],
            "H1 error bound": report.error_bound,
            "H1 error": _h1_distance(solver.solution_, solution),
            "deep Ritz": ritz,
        }
    return [
        Claim("torus: largest relative error", max(errors), 1e-8, "lower", runs, full_only=True),
        Claim("torus: seconds of the slowest", max(seconds), 15.0, "lower", {"seconds": seconds}, full_only=True),
        Claim("torus: spread of errors over dimensions", max(errors) / min(errors) - 1, 0.01, "lower", runs),
        Claim("torus: largest Barron norm over the solution's", max(norms), 1.5, "lower", {"ratios": norms}),
        Claim(
            "torus: deep Ritz's error over ours in the same time",
            min(advantages),
            1000.0,
            "higher",
            {"ratios": advantages},
            full_only=True,
        ),
    ]


def hard_torus(scale: Scale) -> Claim:
    """Eight waves and c = 20, with backtracking: reported, the bar being only that the error bound is one."""
    rows: dict[str, object] = {}
    worst = 0.0
    for dim in scale(smoke=(20,), full=(20, 50)):
        solution = random_waves(dim, 8, scale.seed)
        energy = torus_energy(solution, 20.0)
        trace, spent, solver = _capped(energy, solution, step="armijo", num_steps=scale(smoke=3, full=25))
        report = solver.certificate_report()
        error = _h1_distance(solver.solution_, solution)
        worst = max(worst, error / report.error_bound)
        rows[f"d={dim}"] = {
            "errors": trace,
            "seconds": spent,
            "steps": [record.step for record in solver.history_],
            "H1 error": error,
            "H1 error bound": report.error_bound,
            "largest barron ratio": report.largest_barron_norm / float(solution.barron_norm()),
        }
    return Claim("c = 20, eight waves: H1 error over its a-posteriori bound", worst, 1.0, "lower", rows)


def _h1_distance(a: FourierSeries, b: FourierSeries) -> float:
    return float((a - b).h1_norm())


def _capped(
    energy: EllipticEnergy, solution: PlaneWaveSeries, *, step: float | Literal["armijo"], num_steps: int
) -> tuple[list[float], float, PreconditionedDescent]:
    """Relative L² errors by step, seconds, and the solver, with at most 150 terms kept."""
    trace: list[float] = []
    solver = PreconditionedDescent(energy, step=step, max_terms=150, truncation=0.0, tol=0.0, max_steps=num_steps)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the cap is hit is the setting here
        solver.fit(observe_fn=lambda _t, u: trace.append(float((u - solution).l2_norm() / solution.l2_norm())))
    return trace, time.perf_counter() - started, solver


def _deep_ritz(energy: EllipticEnergy, solution: PlaneWaveSeries, seconds: float, seed: int) -> dict[str, float]:
    """The same energy by a network of 3 x 64 in the same time, with the best of two learning rates."""
    points = torch.rand(4096, solution.dim, generator=torch.Generator().manual_seed(seed))
    exact = solution(points)
    rows: dict[str, float] = {"error": math.inf}
    for rate in (1e-3, 5e-3):
        torch.manual_seed(seed)  # torch.nn draws its weights from the global generator
        # a first short run says how many steps the time allows, so that the rate's decay ends with it
        probe = DeepRitz(PeriodicMLP(solution.dim), energy, time_limit=seconds / 10, max_steps=10**6).fit()
        ritz = DeepRitz(
            PeriodicMLP(solution.dim),
            energy,
            learning_rate=rate,
            max_steps=max(1, 10 * probe.n_iter_),
            generator=torch.Generator().manual_seed(seed),
        ).fit()
        error = float((ritz.predict(points) - exact).norm() / exact.norm())
        if error < rows["error"]:
            rows = {"error": error, "learning rate": rate, "steps": ritz.n_iter_}
    return rows


def width_law(scale: Scale) -> list[Claim]:
    """Maurey's sampling: the root mean square L² error falls as m^(-1/2) with one constant in all dimensions."""
    widths = [2**k for k in scale(smoke=(4, 6, 8), full=tuple(range(4, 13)))]
    repeats = scale(smoke=40, full=200)
    rows: dict[str, object] = {"widths": widths}
    slopes, constants, h1_shares = [], [], []
    for dim in (2, 10, 50):
        generator = torch.Generator().manual_seed(scale.seed)
        freqs = torch.randint(-6, 7, (64, dim), generator=generator)
        amplitudes = torch.randn(64, dtype=torch.float64, generator=generator)
        series = PlaneWaveSeries.cosines(freqs, amplitudes)
        means = []
        for width in widths:
            draws = [_sampled(series, width, "l2", generator) for _ in range(repeats)]
            means.append(math.sqrt(sum(float((draw - series).l2_norm()) ** 2 for draw in draws) / repeats))
        logs = torch.tensor(widths, dtype=torch.float64).log2()
        found = torch.tensor(means, dtype=torch.float64).log2()
        centred = logs - logs.mean()
        slopes.append(float((centred * found).sum() / centred.square().sum()))
        constants.append(math.exp(sum(math.log(e * m**0.5) for e, m in zip(means, widths, strict=True)) / len(means)))
        constants[-1] /= float(series.l1_norm())
        drawn = [float((_sampled(series, 64, "h1", generator) - series).h1_norm()) ** 2 for _ in range(repeats)]
        h1_shares.append(sum(drawn) / repeats * 64 / float(series.barron_norm()) ** 2)
        rows[f"d={dim}"] = {"rms errors": means, "slope": slopes[-1], "error √m / Σ|c|": constants[-1]}
    rows["mean square H1 error over Maurey's bound, m = 64"] = h1_shares
    worst = max(slopes, key=lambda slope: abs(slope + 0.5))
    return [
        Claim("width law: slope furthest from -1/2", worst, (-0.57, -0.43), "inside", rows),
        Claim("width law: largest constant over smallest", max(constants) / min(constants), 1.3, "lower", rows),
        Claim("width law: largest constant over Maurey's bound", max(constants), 1.0, "lower", rows),
    ]


def _sampled(series: PlaneWaveSeries, width: int, sampling: Sampling, generator: torch.Generator) -> PlaneWaveSeries:
    """The sampled network as a series again, so that its error is exact."""
    network = series.to_network(width, sampling=sampling, generator=generator)
    freqs = (network.weights.detach() / (2 * math.pi)).round().long()
    waves = PlaneWaveSeries.cosines(freqs, network.amplitudes.detach(), network.biases.detach())
    constant = network.offset.detach().reshape(1).to(waves.coef.dtype)
    return waves + PlaneWaveSeries(torch.zeros_like(freqs[:1]), constant)


def quasilinear(scale: Scale) -> list[Claim]:
    """-div(∇u + ∇u/√(1+|∇u|²)) = f in the plane: the certified rate, and agreement with scikit-fem."""
    freqs = torch.tensor([[1, 1], [2, 1], [1, 3]])
    source = SineSeries(freqs, torch.tensor([30.0, 15.0, -20.0], dtype=torch.float64))
    energy = EllipticEnergy(2, integrand=mean_curvature_mix, source=source, lam=1.0, Lam=2.0)
    rows: dict[str, object] = {}
    contraction, solutions = 0.0, []
    for modes in scale(smoke=(16, 32), full=(64, 128)):
        started = time.perf_counter()
        solver = PreconditionedDescent(energy, backend="grid", num_modes=modes, tol=1e-11).fit()
        spent = time.perf_counter() - started
        report = solver.certificate_report()
        worst = _worst_contraction(solver.history_, solver.history_[-1].energy)
        contraction = max(contraction, worst / report.certified_rate)
        newton = PreconditionedDescent(energy, backend="grid", accelerate="newton", num_modes=modes, tol=1e-11).fit()
        rows[f"N={modes}"] = {
            "steps": solver.n_iter_,
            "newton steps": newton.n_iter_,
            "seconds": spent,
            "worst contraction": worst,
            "certified": report.certified_rate,
            "H1 error bound": report.error_bound,
            "barron norm": report.barron_norm,
        }
        solutions.append(solver.solution_)
    rows["relative L2 distance of the two meshes"] = _distance(solutions)
    gap: float | None = None
    try:
        elements = finite_elements(source, scale(smoke=24, full=96))
        ours = solutions[-1](elements.points)
        gap = float((elements.values - ours).norm() / ours.norm())
        rows["scikit-fem"] = {"seconds": elements.seconds, "newton steps": elements.num_steps, "distance": gap}
    except PeerMissing as error:
        rows["scikit-fem"] = str(error)
    claims = [Claim("quasilinear: worst energy contraction over certified", contraction, 1.0, "lower", rows)]
    note = "relative, root mean square over the nodes; in the plane finite elements are the right tool"
    return [
        *claims,
        Claim("quasilinear: L2 distance from P2 elements", gap, 1e-4, "lower", rows, full_only=True, note=note),
    ]


def _distance(solutions: list[FourierSeries]) -> float:
    coarse, fine = solutions
    return float((coarse - fine).l2_norm() / fine.l2_norm())


CLAIMS: list[ClaimFunction] = [
    mesh_independence,
    long_steps,
    barron_growth,
    dimension,
    hard_torus,
    width_law,
    quasilinear,
]
