"""What a field's non-gradient part does: nothing to samples and densities, much to dimensions read off the field.

Oracles: closed-form scores and densities, the known dimension of the data. Peer: scikit-dimension on the same points.
"""

import time
import warnings
from statistics import mean, stdev

import torch
from torch import Tensor

from benchmarks._claims import Claim, Scale
from benchmarks.generative._gauge_problems import (
    DATA_SETS,
    noisy_sphere,
    sphere_score,
    sphere_with_rotation,
    train_model,
    wasserstein,
)
from benchmarks.peers import require_peer
from hesse.generative.gauge import (
    Field,
    SphereScore,
    asymmetry,
    decompose,
    decompose_linear,
    flow_jacobian,
    flow_log_density,
    probability_flow,
)
from hesse.generative.intrinsic_dim import DimensionMethod, intrinsic_dimension, plateau_dimension

__all__ = ["CLAIMS"]

READ_OUT = 0.05  # noise level of the closed-form demonstration
SIGMAS = (0.02, 0.05, 0.1)
LOCAL: tuple[DimensionMethod, ...] = ("normal_bundle", "flipd", "jacobian")


def _right(
    field: Field, x: Tensor, sigma: float, truth: int, method: DimensionMethod, generator: torch.Generator
) -> float:
    estimate = intrinsic_dimension(field, x, sigma, method=method, generator=generator)
    return float((estimate.dimension == truth).double().mean())


def claim_invisible_to_samples(scale: Scale) -> list[Claim]:
    """A rotation added to the score of the sphere in R^5 changes neither samples nor log densities."""
    generator, score = torch.Generator().manual_seed(scale.seed), SphereScore(5)
    count, steps, repeats = scale(smoke=100, full=800), scale(smoke=40, full=200), scale(smoke=2, full=10)
    spots = score.sample(scale(smoke=20, full=200), READ_OUT, generator=generator)
    fields = {f"c = {amount}": sphere_with_rotation(score, amount) for amount in (0, 1, 3)}
    distances: dict[str, list[float]] = {name: [] for name in (*fields, "two true samples")}
    for _ in range(repeats):
        start, true, other = (score.sample(count, sigma, generator=generator) for sigma in (3.0, 0.0, 0.0))
        for name, field in fields.items():
            distances[name].append(wasserstein(probability_flow(field, start, 3.0, 0.01, num_steps=steps), true))
        distances["two true samples"].append(wasserstein(other, true))
    changes = {name: [a - b for a, b in zip(distances[name], distances["c = 0"], strict=True)] for name in fields}
    change = max(abs(mean(values)) for values in changes.values())
    rows = {
        name: {"mean W2": mean(values), "standard error": stdev(values) / repeats**0.5}
        for name, values in distances.items()
    }
    rows["largest standard error of a change"] = max(stdev(values) / repeats**0.5 for values in changes.values())
    error = {
        name: float(
            (
                flow_log_density(
                    field, spots, READ_OUT, 3.0, terminal_fn=lambda x: score.log_density(x, 3.0), num_steps=steps
                )
                - score.log_density(spots, READ_OUT)
            )
            .abs()
            .max()
        )
        for name, field in fields.items()
    }
    return [
        Claim("gauge field: change of mean W2 to the data", change, 0.02, "lower", rows, full_only=True),
        Claim("gauge field: largest error of log density", max(error.values()), 1e-3, "lower", error, full_only=True),
    ]


def claim_visible_to_readouts(scale: Scale) -> list[Claim]:
    """The same rotation takes one dimension from the normal bundle and spoils the trace; `decompose` removes it."""
    generator, score = torch.Generator().manual_seed(scale.seed), SphereScore(5)
    x = score.sample(scale(smoke=100, full=1000), generator=generator)
    samples = score.sample(scale(smoke=2000, full=10_000), READ_OUT, generator=generator)
    dropped, trace, repaired, rows = {}, {}, {}, {}
    for amount in (0, 1, 3):
        field = sphere_with_rotation(score, amount)
        split = decompose(field, samples, READ_OUT, num_features=scale(smoke=200, full=400), generator=generator)
        before = {m: intrinsic_dimension(field, x, READ_OUT, method=m, generator=generator).dimension for m in LOCAL}
        after = {
            m: float(
                intrinsic_dimension(split.conservative, x, READ_OUT, method=m, generator=generator).dimension.mean()
            )
            for m in LOCAL
        }
        dropped[amount] = float((before["normal_bundle"] == 1).double().mean())
        trace[amount] = float(before["flipd"].mean())
        repaired[amount] = max(abs(value - 2) for value in after.values())
        rows[f"c = {amount}"] = {
            "before": {m: float(v.mean()) for m, v in before.items()},
            "after": after,
            "energy fractions": split.energy,
            "orthogonality": split.orthogonality,
            "held-out gauge residual": split.gauge_residual,
        }
    return [
        Claim(
            "rotation: points whose normal bundle loses one dimension", min(dropped[1], dropped[3]), 0.9, "higher", rows
        ),
        Claim("rotation c = 1: error of the trace formula", abs(trace[1] - 2), 0.5, "higher", trace),
        Claim(
            "repaired field: largest error of a mean dimension",
            max(repaired.values()),
            0.1,
            "lower",
            repaired,
            full_only=True,
        ),
    ]


def claim_gradient_is_neither_needed_nor_enough(scale: Scale) -> list[Claim]:
    """N(0, S): a field that is no gradient keeps the covariance, a gradient that is not the score loses it."""
    generator = torch.Generator().manual_seed(scale.seed)
    kind = {"dtype": torch.float64, "generator": generator}
    root = torch.randn(3, 3, **kind)
    S = root @ root.T / 3 + 0.3 * torch.eye(3, dtype=torch.float64)
    square = torch.randn(3, 3, **kind)
    Q = (square - square.T) / torch.linalg.matrix_norm(square - square.T, 2)
    eye = torch.eye(3, dtype=torch.float64)
    start = torch.randn(scale(smoke=2000, full=20_000), 3, **kind) @ torch.linalg.cholesky(S + 9 * eye).T

    def error(amount: float, stretch: float) -> float:
        def field(x: Tensor, sigma: float) -> Tensor:
            pull = torch.linalg.solve(S + sigma**2 * eye, x.T).T
            return -pull + amount * pull @ Q.T + stretch * x

        x = probability_flow(field, start, 3.0, 0.01, num_steps=scale(smoke=60, full=120))
        return float(torch.linalg.matrix_norm(x.T @ x / len(x) - S) / torch.linalg.matrix_norm(S))

    gauge = {f"c = {amount}": error(amount, 0.0) for amount in (0, 1, 3)}
    wrong = error(0.0, 0.3)
    M = (Q - eye) @ torch.linalg.inv(S)
    A, rest = decompose_linear(M, S)
    x = torch.randn(scale(smoke=10_000, full=500_000), 3, **kind) @ torch.linalg.cholesky(S).T
    split = decompose(lambda y, _: y @ M.T, x, 1.0, num_features=10, generator=generator)
    gap = (split.conservative(x) - x @ A).norm() / (x @ A).norm()
    flux = rest @ S
    identity = float((A + torch.linalg.inv(S)).abs().max() + (flux + flux.T).abs().max())
    return [
        Claim("gauge field: error of the covariance", max(gauge.values()), 0.03, "lower", gauge, full_only=True),
        Claim("wrong gradient: error of the covariance", wrong, 0.2, "higher", {"score + 0.3 x": wrong}),
        Claim("linear field in closed form: error of A and of antisymmetry", identity, 1e-10, "lower"),
        Claim("linear field on samples: error of A", float(gap), 0.01, "lower", {"samples": len(x)}, full_only=True),
    ]


def claim_learnt_fields(scale: Scale) -> list[Claim]:
    """A network that is a gradient by construction against a free one: same trunk, same steps, three seeds."""
    steps, seeds, count = scale(smoke=30, full=2500), scale(smoke=1, full=3), scale(smoke=50, full=500)
    arms = {
        "free": ("free", steps),
        "energy": ("energy", steps),
        "free, 3 x steps": ("free", 3 * steps),
        "energy, 3 x steps": ("energy", 3 * steps),
    }
    claims, asymmetries, ratios = [], {}, {}
    for name, draw in DATA_SETS.items():
        table: dict[str, list[dict]] = {arm: [] for arm in arms}
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        for offset in range(seeds):
            seed = seeds * scale.seed + offset
            generator = torch.Generator().manual_seed(seed)
            data, x = draw(20_000, generator), draw(count, generator).float()
            for arm, (kind, length) in arms.items():
                model = train_model(kind, data, length, seed)
                seconds[arm].append(model.seconds)
                table[arm].append(_judge(model.field, name, x, data, generator))
        summary = {arm: _average(results) for arm, results in table.items()}
        worst = min(share for result in table["energy"] for share in result["jacobian right"])
        pairs = zip(summary["energy"]["jacobian right"], summary["free"]["jacobian right"], strict=True)
        gain = max(energy - free for energy, free in pairs)
        ratios[name] = mean(seconds["energy"]) / mean(seconds["free"])
        asymmetries[name] = {arm: max(found["asymmetry"]) for arm, found in summary.items()}
        claims += [
            Claim(
                f"{name}, energy model: worst share of points of right dimension",
                worst,
                0.95,
                "higher",
                summary | {"seconds of training, energy : free": ratios[name]},
                full_only=True,
                note=f"at sigma = {SIGMAS}, the worst of {seeds} seeds; rows are means over seeds",
            ),
            Claim(
                f"{name}, energy model: most gain in that share over the free model",
                gain,
                1 / count,
                "higher",
                {arm: found["jacobian right"] for arm, found in summary.items()},
                full_only=True,
                note="of mean shares, at one sigma; the arms of three times the steps show how much is accuracy of fit",
            ),
        ]
    energy = max(found["energy"] for found in asymmetries.values())
    return [*claims, Claim("energy model: asymmetry", energy, 1e-6, "lower", asymmetries)]


def _judge(field: Field, name: str, x: Tensor, data: Tensor, generator: torch.Generator) -> dict[str, list[float]]:
    noised = {s: x + s * torch.randn(x.shape, generator=generator) for s in (*SIGMAS, 0.2, 1.0)}
    path = flow_jacobian(field, 10 * torch.randn(50, x.shape[1], generator=generator), 10.0, 0.01)
    start = 10 * torch.randn(len(x), x.shape[1], generator=generator)
    rows = torch.randint(len(data), (len(x),), generator=generator)
    found = {
        "jacobian right": [_right(field, x, s, 2, "jacobian", generator) for s in SIGMAS],
        "normal bundle mean": [
            float(intrinsic_dimension(field, x, s, method="normal_bundle", generator=generator).dimension.mean())
            for s in SIGMAS
        ],
        "asymmetry": [float(asymmetry(field, noised[s], s, generator=generator)) for s in SIGMAS],
        "singular values of the flow": path.singular_values[:, -1].median(0).values.tolist(),
        "W2": [wasserstein(probability_flow(field, start, 10.0, 0.01), data[rows])],
    }
    if name.startswith("sphere"):
        score = SphereScore(x.shape[1])
        found["weighted score error at 0.05, 0.2, 1"] = [
            float(s**2 * (field(noised[s], s) - score(noised[s].double(), s)).square().sum(1).mean())
            for s in (0.05, 0.2, 1.0)
        ]
    return found


def _average(results: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    columns = {key: zip(*(result[key] for result in results), strict=True) for key in results[0]}
    return {key: [mean(column) for column in values] for key, values in columns.items()}


def claim_against_estimators_without_a_model(scale: Scale) -> list[Claim]:
    """The energy model against scikit-dimension: the clean sphere, then noisy spheres in R^20."""
    peers = require_peer("skdim").id
    generator = torch.Generator().manual_seed(scale.seed)
    count = scale(smoke=200, full=1500)
    clean = SphereScore(5).sample(count, generator=generator)
    model = train_model("energy", clean, scale(smoke=100, full=2500), scale.seed)
    ours = intrinsic_dimension(model.field, clean.float(), READ_OUT).dimension
    names = ("TwoNN", "MLE", "lPCA", *scale(smoke=(), full=("DANCo",)))
    rows = {"ours": float(ours.mean())} | {name: _peer(peers, name, clean) for name in names}
    claims = [
        Claim(
            "sphere in R5: mean error over points", float((ours - 2).abs().mean()), 0.1, "lower", rows, full_only=True
        )
    ]
    errors, closed, contest = {}, {}, {}
    levels = (0.1, 0.15, 0.2)
    for dim in (5, 10):
        _, noisy = noisy_sphere(scale(smoke=200, full=2000), dim, 20, 0.02, generator)
        model = train_model("energy", noisy, scale(smoke=30, full=5000), scale.seed, sigma_min=0.02)
        exact = sphere_score(dim, 0.02)
        off = {s: (intrinsic_dimension(model.field, noisy.float(), s).dimension - dim).abs().mean() for s in levels}
        closed[dim] = [float((intrinsic_dimension(exact, noisy, s).dimension - dim).abs().max()) for s in levels]
        errors[dim] = float(off[0.15])  # the middle of the range that the bar is set for
        plateau = plateau_dimension(model.field, noisy.float())
        contest[f"S^{dim}"] = {
            **{f"ours, mean error at {s}": float(found) for s, found in off.items()},
            "ours, mean error at each point's plateau": float((plateau.dimension - dim).abs().mean()),
            "share of levels on the plateau": float(plateau.confidence.mean()),
            **{name: _peer(peers, name, noisy) for name in ("TwoNN", "MLE", "lPCA", "FisherS")},
            "seconds of training": model.seconds,
        }
    return [
        *claims,
        Claim(
            "S^5, S^10 in R20: worst mean error over points",
            max(errors.values()),
            0.3,
            "lower",
            contest,
            full_only=True,
            note="read at the noisy points that the peers get, at sigma = 0.15",
        ),
        Claim(
            "S^5, S^10 in R20, closed-form score: largest error over points",
            max(max(values) for values in closed.values()),
            0.0,
            "lower",
            {f"S^{dim}": dict(zip(map(str, levels), values, strict=True)) for dim, values in closed.items()},
        ),
    ]


def _peer(peers: object, name: str, x: Tensor) -> dict[str, float] | str:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = float(getattr(peers, name)().fit(x.numpy()).dimension_)
        except Exception as error:  # a peer that fails is a row, with its error
            return f"{type(error).__name__}: {error}"
    return {"dimension": found, "seconds": time.perf_counter() - start}


CLAIMS = [
    claim_invisible_to_samples,
    claim_visible_to_readouts,
    claim_gradient_is_neither_needed_nor_enough,
    claim_learnt_fields,
    claim_against_estimators_without_a_model,
]
