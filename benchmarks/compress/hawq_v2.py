"""Claims about HAWQ-V2 (Dong et al., NeurIPS 2020): traces, allocation, and the loss after quantisation.

Oracles: dense float64 Hessians, all M^L plans, the loss itself. Networks on digits; SmolLM2-135M on held-out text.
"""

import time
import warnings
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.compress._hawq_digits import (
    BITS,
    Case,
    cross_entropy,
    even_plan,
    random_plans,
    table_of,
    top_eigenvalues,
    traces_of,
    trained,
)
from benchmarks.compress._hawq_smollm2 import claim_smollm2
from benchmarks.peers import require_peer, run_peer
from hesse.compress.hawq import (
    BitPlan,
    SensitivityTable,
    UniformQuantizer,
    activation_table,
    activation_traces,
    allocate_bits,
    candidate_plans,
    fine_tune,
    layer_traces,
    plan_losses,
    quadratic_table,
    quantize_model,
    uniform_plan,
)
from hesse.curvature import ggn

__all__ = ["CLAIMS"]

F64 = torch.float64
TORCHAO = Path(__file__).with_name("_torchao_peer.py")


def claim_oracle(scale: Scale) -> list[Claim]:
    """Traces of a float64 network of 342 weights against dense matrices."""
    with torch.random.fork_rng():
        torch.manual_seed(scale.seed)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 6), nn.Softplus(), nn.Linear(6, 10)
        ).double()
        data = trained("convolutional", 1000 * scale.seed, 1).data
        batch = data.train_x[:64].view(-1, 1, 8, 8).double(), data.train_y[:64]
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            cross_entropy(net, batch).backward()
            optimizer.step()
    runs = scale(smoke=10, full=100)
    generator = torch.Generator().manual_seed(scale.seed)
    options: dict[str, Any] = {"num_probes": 30, "rtol": 0.0, "generator": generator, "show_progress": False}
    found = [
        layer_traces(net, cross_entropy, batch, num_own_probes=30, probing=probing, **options)
        for probing in ("common", "hutch++")
        for _ in range(runs)
    ]
    dense = torch.stack([_dense_block(net, batch, name).trace() for name in found[0].names])
    scores = torch.stack([(f.trace - dense).abs() / f.standard_error for f in found])
    exact = layer_traces(net, cross_entropy, batch, matrix="ggn", probing="hutch++", **options | {"num_probes": 700})
    operator = ggn(lambda model, b: model(b[0]), net, batch, names=exact.names)
    blocks = torch.stack([operator.block([n]).to_dense().detach().trace() for n in exact.names]) / len(batch[1])
    gap = float(((exact.trace - blocks) / blocks).abs().max())
    taps = [activation_traces(net, cross_entropy, batch, num_probes=30, generator=generator) for _ in range(runs)]
    by_sample = _dense_activation_traces(net, batch, (0, 3, 5))
    tap_scores = torch.stack([(t.trace - by_sample).abs() / t.standard_error for t in taps])
    weights = sum(p.numel() for p in net.parameters())
    return [
        Claim(
            "block traces within three standard errors of the dense Hessian",
            float((scores <= 3).double().mean()),
            0.97,
            "higher",
            {"parameters": weights, "runs": 2 * runs, "dense": dense},
            note="of all runs and layers; of normal estimates 99.7 % would be",
        ),
        Claim("exact GGN traces agree with the dense matrix", gap, 1e-10, "lower", {"dense": blocks}),
        Claim(
            "activation traces within three standard errors of dense per-sample Hessians",
            float((tap_scores <= 3).double().mean()),
            0.97,
            "higher",
            {"dense": by_sample, "runs": runs},
        ),
    ]


def _dense_block(net: nn.Module, batch: tuple[Tensor, Tensor], name: str) -> Tensor:
    parameter = dict(net.named_parameters())[name].detach()

    def value(flat: Tensor) -> Tensor:
        outputs = torch.func.functional_call(net, {name: flat.view_as(parameter)}, (batch[0],))
        return nn.functional.cross_entropy(outputs, batch[1])

    matrix: Any = torch.autograd.functional.hessian(value, parameter.reshape(-1))
    return matrix


def _dense_activation_traces(net: nn.Sequential, batch: tuple[Tensor, Tensor], starts: tuple[int, ...]) -> Tensor:
    means: list[Tensor] = []
    for start in starts:
        x, rest = net[:start](batch[0]).detach(), net[start:]
        traces: list[Tensor] = []
        for example, label in zip(x, batch[1], strict=True):

            def value(a: Tensor, rest: nn.Module = rest, label: Tensor = label) -> Tensor:
                return nn.functional.cross_entropy(rest(a.unsqueeze(0)), label.unsqueeze(0))

            matrix: Any = torch.autograd.functional.hessian(value, example)
            traces.append(matrix.reshape(example.numel(), example.numel()).trace())
        means.append(torch.stack(traces).mean())
    return torch.stack(means)


def claim_allocation(scale: Scale) -> list[Claim]:
    """The knapsack against all 5^6 plans, on made-up tables of uneven sizes."""
    gaps, worse = [], 0
    tables = scale(smoke=2, full=10)
    for k in range(tables):
        table = _random_table(np.random.default_rng(abs(1000 * scale.seed + k)))
        columns = np.array(list(product(range(5), repeat=6)))
        sizes = sum(table.costs["size"][i, columns[:, i]] for i in range(6))
        omegas = sum(table.omega[i, columns[:, i]] for i in range(6))
        for average in (2.3, 3.0, 4.0, 6.5):
            budget = average * float(table.numel.sum())
            best = float(np.where(sizes <= budget, omegas, np.inf).min())
            gaps += [abs(allocate_bits(table, budget, solver=s).omega / best - 1) for s in ("exact", "milp")]
            worse += allocate_bits(table, budget, solver="ordered").omega >= best * (1 - 1e-12)
    return [
        Claim("exact allocation equals brute force", max(gaps), 1e-9, "lower", {"cases": 4 * tables, "plans": 5**6}),
        Claim("share of cases where the ordered search is not better", worse / (4 * tables), 1.0, "higher"),
    ]


def _random_table(rng: np.random.Generator) -> SensitivityTable:
    numel = rng.integers(50, 9000, 6)
    error = numel[:, None] * 4.0 ** -np.array(BITS) * rng.uniform(0.5, 2, (6, 5))
    average = 10 ** rng.uniform(-3, 0, 6)
    names = tuple(f"{i}.weight" for i in range(6))
    table = SensitivityTable("weight", names, BITS, numel, average[:, None] * error, error, average)
    return table.with_cost("size", numel[:, None] * np.array(BITS, dtype=np.float64))


ARMS = ("predicted", "measured", "even", "error only", "top eigenvalue", "rounding errors", "single layers")
"""The last two replace the trace: by ΔWᵀ H ΔW of the rounding errors, by the true loss with one layer rounded."""


def claim_post_training(scale: Scale) -> list[Claim]:
    """Calibration loss after quantisation without training, against one width, random plans, top eigenvalues."""
    seeds = [1000 * scale.seed + i for i in range(scale(smoke=1, full=5))]
    epochs, count = scale(smoke=3, full=25), scale(smoke=20, full=200)
    cases: list[dict[str, Any]] = []
    correlations: list[dict[str, float]] = []
    spreads: list[dict[str, Any]] = []
    for seed in seeds:
        case, traces = trained("convolutional", seed, epochs), traces_of("convolutional", seed, epochs)
        spreads.append({"seed": seed, "average": traces.average, "negative": int((traces.trace < 0).sum())})
        table = table_of(case, traces, UniformQuantizer())
        tops = table.with_omega(top_eigenvalues(case, table.names, seed)[:, None] * table.error)
        alone = _loss_of_single_layers(case, table)
        correlations.append(
            {
                "omega": float(spearmanr(table.omega.ravel(), alone.ravel()).statistic),
                "error": float(spearmanr(table.error.ravel(), alone.ravel()).statistic),
            }
        )
        others = {
            "top eigenvalue": tops,
            "rounding errors": quadratic_table(case.net, cross_entropy, case.calibration, BITS),
            "single layers": table.with_omega(alone - alone.min()),  # the same shift for every plan
        }
        cases += [_post_training(case, table, others, average, count, seed) for average in (2.5, 3.0, 4.0)]
    averages = torch.stack([s["average"] for s in spreads])
    omega, error = (fmean(c[k] for c in correlations) for k in ("omega", "error"))
    excess = {arm: [c[arm] - c["dense"] for c in cases] for arm in ARMS}
    return [
        Claim(
            "average traces of layers spread",
            float((averages.amax(1) / averages.amin(1).clamp_min(1e-12)).min()),
            40.0,
            "higher",
            {"by seed": spreads},
            full_only=True,
            note="the least of the seeds",
        ),
        *_excess_claims("predicted", "best prediction", cases, excess),
        *_excess_claims("measured", "best measured of ten candidates", cases, excess),
        Claim(
            "rank correlation of omega with the true loss of one layer",
            omega,
            0.7,
            "higher",
            {"by seed": correlations},
            full_only=True,
        ),
        Claim("its lead over the squared error alone", omega - error, 0.0, "higher", {"error": error}, full_only=True),
        Claim(
            "excess loss by top eigenvalues over that by traces",
            fmean(excess["top eigenvalue"]) / fmean(excess["predicted"]),
            1.0,
            "higher",
            {arm: fmean(values) for arm, values in excess.items()},
            full_only=True,
        ),
    ]


def _post_training(
    case: Case, table: SensitivityTable, others: dict[str, SensitivityTable], average: float, count: int, seed: int
) -> dict[str, Any]:
    """Losses of every arm at one budget, and of random plans of that size."""
    candidates = candidate_plans(table, average, constraint="average_bits", num_plans=10)
    named = {
        "predicted": allocate_bits(table, average, constraint="average_bits"),
        "even": even_plan(table, average),
        "error only": allocate_bits(table.with_omega(table.error), average, constraint="average_bits"),
        **{arm: allocate_bits(other, average, constraint="average_bits") for arm, other in others.items()},
        "measured": plan_losses(case.net, cross_entropy, case.calibration, candidates).best,
    }
    drawn = random_plans(table, average, count, seed)
    calibrated = plan_losses(case.net, cross_entropy, case.calibration, [*named.values(), *drawn])
    tested = plan_losses(case.net, cross_entropy, case.test, list(named.values()))
    losses = dict(zip(named, calibrated.losses.tolist(), strict=False))
    randoms = calibrated.losses[len(named) :]
    return {
        "seed": seed,
        "bits": average,
        "plans": {arm: list(named[arm].weights.values()) for arm in ("predicted", "measured")},
        "dense": calibrated.dense,
        "test": dict(zip(named, tested.losses.tolist(), strict=True)) | {"dense": tested.dense},
        "random median": float(randoms.median()),
        "random better than predicted": float((randoms < losses["predicted"]).double().mean()),
        "random better than measured": float((randoms < losses["measured"]).double().mean()),
        "num random": len(drawn),
        "best of all plans over even": float(calibrated.losses.min() - calibrated.dense)
        / (losses["even"] - calibrated.dense),
        **losses,
    }


def _excess_claims(arm: str, words: str, cases: list[dict[str, Any]], excess: dict[str, list[float]]) -> list[Claim]:
    def over_even(name: str) -> list[float]:
        return [a / b for a, b in zip(excess[name], excess["even"], strict=True)]

    ratios, rows = over_even(arm), {}
    if arm == "predicted":
        estimates = ("predicted", "rounding errors", "single layers")
        summary = {
            n: {"no more loss": fmean(r <= 1 for r in over_even(n)), "ratio": fmean(over_even(n))} for n in estimates
        }
        rows = {"cases": cases, "by estimate of the rise": summary}
    return [
        Claim(
            f"{words}: cases with no more loss than one width",
            fmean(float(c[arm] <= c["even"]) for c in cases),
            0.8,
            "higher",
            rows,
            full_only=True,
        ),
        Claim(
            f"{words}: mean ratio of excess loss to one width's",
            fmean(ratios),
            0.8,
            "lower",
            {
                "ratios": ratios,
                "ratio of means": fmean(excess[arm]) / fmean(excess["even"]),
                "mean of the best of all plans measured": fmean(c["best of all plans over even"] for c in cases),
            },
            full_only=True,
        ),
        Claim(
            f"{words}: share of random plans of the same size that are better",
            fmean(c[f"random better than {arm}"] for c in cases),
            0.05,
            "lower",
            {"worst case": max(c[f"random better than {arm}"] for c in cases)},
            full_only=True,
        ),
    ]


def _loss_of_single_layers(case: Case, table: SensitivityTable) -> np.ndarray:
    """How much the loss rises with one layer rounded, for every layer and width."""
    numel = dict(zip(table.names, table.numel.tolist(), strict=True))
    alone = [BitPlan({name: bits}, numel=numel) for name in table.names for bits in BITS]
    rises = plan_losses(case.net, cross_entropy, case.calibration, alone)
    return (rises.losses.numpy() - rises.dense).reshape(table.omega.shape)


def claim_trap(scale: Scale) -> list[Claim]:
    """3 bits with "max" scale, where the quadratic model is false: measuring candidates keeps the ruinous plan out."""
    seeds = [1000 * scale.seed + i for i in range(scale(smoke=1, full=5))]
    epochs = scale(smoke=3, full=25)
    quantizer = UniformQuantizer(scale="max")
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        case = trained("convolutional", seed, epochs)
        table = table_of(case, traces_of("convolutional", seed, epochs), quantizer)
        plans = candidate_plans(table, 3.0, constraint="average_bits", num_plans=10)
        measured = plan_losses(case.net, cross_entropy, case.calibration, [*plans, even_plan(table, 3.0)], quantizer)
        rows.append(
            {
                "seed": seed,
                "predicted best": float(measured.losses[0]),
                "validated": float(measured.losses[:-1].min()),
                "even": float(measured.losses[-1]),
                "dense": measured.dense,
            }
        )
    return [
        Claim(
            "max scale, 3 bits: validated plan no worse than one width",
            fmean(float(r["validated"] <= r["even"]) for r in rows),
            1.0,
            "higher",
            {"by seed": rows},
            full_only=True,
        ),
        Claim(
            "max scale, 3 bits: excess loss validated over excess of the best prediction",
            sum(r["validated"] - r["dense"] for r in rows) / sum(r["predicted best"] - r["dense"] for r in rows),
            1.0,
            "lower",
            full_only=True,
        ),
    ]


def claim_activations(scale: Scale) -> list[Claim]:
    """Inputs of layers by their traces, 6 bits on average, against 6 for all; weights stay as they are."""
    seeds = [1000 * scale.seed + i for i in range(scale(smoke=1, full=5))]
    epochs = scale(smoke=3, full=25)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        case = trained("convolutional", seed, epochs)
        generator = torch.Generator().manual_seed(seed)
        traces = activation_traces(case.net, cross_entropy, case.calibration, num_probes=30, generator=generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # negative traces can be seen in the row
            tables = {
                widths: activation_table(case.net, cross_entropy, case.calibration, traces, widths)
                for widths in ((4, 8), (4, 6, 8))
            }
        plans = {widths: allocate_bits(t, 6.0, constraint="average_bits") for widths, t in tables.items()}
        three = tables[4, 6, 8]
        numel = dict(zip(three.names, three.numel.tolist(), strict=True))
        every = [
            BitPlan({}, dict(zip(three.names, widths, strict=True)), numel)
            for widths in product((4, 8), repeat=len(three.names))
        ]
        with torch.no_grad():
            dense = float(cross_entropy(case.net, case.calibration))
        rows.append(
            {
                "seed": seed,
                "dense": dense,
                "average traces": traces.average,
                "predicted omega of 4 or 8": plans[4, 8].omega,
                "predicted omega of 6": float(three.omega[:, three.column(6)].sum()),
                "plan": list(plans[4, 8].activations.values()),
                "4 or 8": _with_inputs(case, plans[4, 8]) - dense,
                "4, 6 or 8": _with_inputs(case, plans[4, 6, 8]) - dense,
                "even": _with_inputs(case, BitPlan({}, dict.fromkeys(three.names, 6), numel)) - dense,
                "best of all 4 or 8": min(
                    _with_inputs(case, plan) - dense for plan in every if plan.average_activation_bits <= 6
                ),
            }
        )
    means = {k: fmean(r[k] for r in rows) for k in ("4 or 8", "4, 6 or 8", "even", "best of all 4 or 8")}
    return [
        Claim(
            "inputs at 4 or 8 bits: excess loss less that of 6 for all, over the size of the latter",
            (means["4 or 8"] - means["even"]) / abs(means["even"]),
            0.0,
            "lower",
            {"means": means, "by seed": rows},
            full_only=True,
            note="the best of all such plans, tried one by one, is in the row",
        ),
        Claim(
            "inputs at 4, 6 or 8 bits: excess loss less that of 6 for all, over the size of the latter",
            (means["4, 6 or 8"] - means["even"]) / abs(means["even"]),
            0.0,
            "lower",
            full_only=True,
        ),
    ]


def _with_inputs(case: Case, plan: BitPlan) -> float:
    model = quantize_model(case.net, plan).calibrate(cross_entropy, case.calibration)
    with torch.no_grad():
        return float(cross_entropy(model, case.calibration))


def claim_fine_tuning(scale: Scale) -> list[Claim]:
    """Three epochs through the rounding at 3 bits; no win over one width is claimed."""
    seeds = [1000 * scale.seed + i for i in range(scale(smoke=1, full=5))]
    epochs = scale(smoke=3, full=25)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        case = trained("convolutional", seed, epochs)
        table = table_of(case, traces_of("convolutional", seed, epochs), UniformQuantizer())
        row: dict[str, Any] = {"seed": seed, "dense": case.accuracy(case.net)}
        plans = {"hawq": allocate_bits(table, 3.0, constraint="average_bits"), "even": even_plan(table, 3.0)}
        for name, plan in plans.items():
            model = quantize_model(case.net, plan)
            row[f"{name} before"] = case.accuracy(model)
            generator = torch.Generator().manual_seed(seed)
            fine_tune(model, cross_entropy, case.batches(), epochs=scale(smoke=1, full=3), generator=generator)
            model.freeze()
            row[name], row[f"{name} bytes"] = case.accuracy(model), model.storage_bytes()
        rows.append(row)
    return [
        Claim(
            "3 bits, three epochs: test accuracy below the dense network's",
            fmean(r["dense"] - r["hawq"] for r in rows),
            0.01,
            "lower",
            {"by seed": rows},
            full_only=True,
        )
    ]


def claim_pyhessian(scale: Scale) -> list[Claim]:
    """Traces of six layers at equal standard errors: ours from common probes, PyHessian's from a run for each layer."""
    require_peer("pyhessian")
    pyhessian: Any = __import__("pyhessian")
    seed, epochs = 1000 * scale.seed, scale(smoke=3, full=25)
    case = trained("convolutional", seed, epochs)
    num_probes = scale(smoke=10, full=30)
    repeats = scale(smoke=1, full=3)
    ours_seconds: list[float] = []
    theirs_seconds: list[float] = []
    needed: dict[str, int] = {}
    ours: Any = None
    for turn in range(repeats):
        generator = torch.Generator().manual_seed(seed + turn)
        start = time.process_time()
        ours = layer_traces(
            case.net,
            cross_entropy,
            case.calibration,
            num_probes=num_probes,
            rtol=0.0,
            probing="hutch++",
            chunk_size=1,
            keep_graph=True,
            generator=generator,
            show_progress=False,
        )
        ours_seconds.append(time.process_time() - start)
        if not needed:
            needed = _probes_needed(pyhessian, case, ours, scale(smoke=10, full=100))
        start = time.process_time()
        for name, count in needed.items():
            _peer_trace(pyhessian, case, name, count)
        theirs_seconds.append(time.process_time() - start)
    rows = {
        "ours seconds": ours_seconds,
        "pyhessian seconds": theirs_seconds,
        "our probes": num_probes,
        "pyhessian probes": needed,
        "our standard errors": ours.standard_error,
        "our traces": ours.trace,
    }
    return [
        Claim(
            "seconds of PyHessian over ours at equal standard errors",
            median(theirs_seconds) / median(ours_seconds),
            3.0,
            "higher",
            rows,
            full_only=True,
            note="its own probes of a layer have no cross terms, so that it needs fewer of them; processor time",
        )
    ]


def _peer_trace(pyhessian: Any, case: Case, name: str, count: int) -> list[float]:
    for other, parameter in case.net.named_parameters():
        parameter.requires_grad_(other == name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its backward(create_graph=True) warns of a reference cycle
            peer = pyhessian.hessian(case.net, nn.CrossEntropyLoss(), data=case.calibration, cuda=False)
            found = peer.trace(maxIter=count, tol=-1.0)
    finally:
        case.net.requires_grad_(True)
        case.net.zero_grad()
    return [float(value) for value in found]


def _probes_needed(pyhessian: Any, case: Case, ours: Any, pilot: int) -> dict[str, int]:
    """How many of its probes give our standard error, from the spread of a pilot run that is not timed."""
    needed: dict[str, int] = {}
    for name, error in zip(ours.names, ours.standard_error.tolist(), strict=True):
        variance = float(np.var(_peer_trace(pyhessian, case, name, pilot), ddof=1))
        needed[name] = max(2, round(variance / error**2))
    return needed


def claim_torchao(scale: Scale) -> list[Claim]:
    """A perceptron on digits at the size of torchao's int4 weights, one scale a channel."""
    seeds = [1000 * scale.seed + i for i in range(scale(smoke=1, full=5))]
    epochs = scale(smoke=3, full=25)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        case = trained("perceptron", seed, epochs)
        quantizer = UniformQuantizer(per_channel=True)
        table = table_of(case, traces_of("perceptron", seed, epochs), quantizer)
        predicted = allocate_bits(table, 4.0, constraint="average_bits")
        candidates = candidate_plans(table, 4.0, constraint="average_bits", num_plans=10)
        plan = plan_losses(case.net, cross_entropy, case.calibration, candidates, quantizer).best
        weights = {name: p.detach().numpy() for name, p in case.net.named_parameters() if p.ndim > 1}
        peer = run_peer("torchao", TORCHAO, weights).arrays
        rounded = {b: {n: torch.from_numpy(peer[f"{n}:{b}"]) for n in weights} for b in (4, 8)}
        largest = UniformQuantizer(4, per_channel=True, scale="max")
        with torch.no_grad():
            parameters = {n: p for n, p in case.net.named_parameters() if n in weights}
            gap = max(
                float((largest.grid(p).round_trip(p) - rounded[4][n]).norm() / p.norm()) for n, p in parameters.items()
            )
            losses = {
                f"torchao int{b}": float(cross_entropy(_stand_in(case, values), case.calibration))
                for b, values in rounded.items()
            }
        measured = plan_losses(
            case.net, cross_entropy, case.calibration, [plan, uniform_plan(case.numel, 4), predicted], quantizer
        )
        rows.append(
            {
                "seed": seed,
                "plan": list(plan.weights.values()),
                "average bits": plan.average_bits,
                "dense": measured.dense,
                "hawq": float(measured.losses[0]),
                "ours, 4 bits for all": float(measured.losses[1]),
                "best prediction": float(measured.losses[2]),
                "distance of torchao's int4 weights from our grid at max scale": gap,
            }
            | losses
        )
    ours, theirs = (fmean(r[k] - r["dense"] for r in rows) for k in ("hawq", "torchao int4"))
    return [
        Claim(
            "excess loss over torchao int4's at the same size",
            ours / theirs,
            1.0,
            "lower",
            {"hawq": ours, "torchao int4": theirs, "by seed": rows},
            full_only=True,
            note="best measured of ten candidates",
        )
    ]


def _stand_in(case: Case, weights: dict[str, Tensor]) -> Any:
    return lambda x: torch.func.functional_call(case.net, weights, (x,))


def claim_torch_ao(scale: Scale) -> list[Claim]:
    """Against static int8 post-training quantisation of torch.ao: half the bits for weights, 8 for inputs."""
    quantize_fx: Any = require_peer("torch.ao.quantization.quantize_fx")
    ao: Any = require_peer("torch.ao.quantization")
    seeds = [1000 * scale.seed + i for i in range(scale(smoke=1, full=5))]
    epochs = scale(smoke=3, full=25)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        case = trained("convolutional", seed, epochs)
        table = table_of(case, traces_of("convolutional", seed, epochs), UniformQuantizer())
        plan = allocate_bits(table, 4.0, constraint="average_bits")
        inputs = BitPlan(
            {}, {n.rpartition(".")[0]: 8 for n in table.names}, {n.rpartition(".")[0]: 1 for n in table.names}
        )
        ours = quantize_model(case.net, plan.merge(inputs)).calibrate(cross_entropy, case.calibration)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the module says it is deprecated in favour of torchao
            mapping = ao.get_default_qconfig_mapping("x86")
            prepared = quantize_fx.prepare_fx(case.net, mapping, (case.calibration[0],))
            with torch.no_grad():
                prepared(case.calibration[0])
            theirs = quantize_fx.convert_fx(prepared)
        rows.append(
            {
                "seed": seed,
                "dense": case.accuracy(case.net),
                "hawq": case.accuracy(ours),
                "torch.ao int8": case.accuracy(theirs),
                "average bits": plan.average_bits,
            }
        )
    return [
        Claim(
            "half the bits of torch.ao's int8: test accuracy below it",
            fmean(r["torch.ao int8"] - r["hawq"] for r in rows),
            0.01,
            "lower",
            {"by seed": rows},
            full_only=True,
        )
    ]


CLAIMS: list[ClaimFunction] = [
    claim_oracle,
    claim_allocation,
    claim_post_training,
    claim_trap,
    claim_activations,
    claim_fine_tuning,
    claim_pyhessian,
    claim_torchao,
    claim_torch_ao,
    claim_smollm2,
]
