"""What a field's non-gradient part does: nothing to samples and densities, much to dimensions read off the field.

Oracles: closed-form scores and densities, the known dimension of the data. Peer: scikit-dimension on the same points.
"""

import time
import warnings
from statistics import mean

import torch
from torch import Tensor

from benchmarks._claims import Claim, Scale
from benchmarks.generative._gauge_problems import (
    DATA_SETS,
    noisy_sphere,
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
    flow,
    flow_jacobian,
    flow_log_density,
)
from hesse.generative.intrinsic_dim import DimensionMethod, intrinsic_dimension

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
    count, steps = scale(smoke=100, full=800), scale(smoke=60, full=200)
    noisy, true = score.sample(count, 3.0, generator=generator), score.sample(count, generator=generator)
    spots = score.sample(scale(smoke=20, full=200), READ_OUT, generator=generator)
    distance, error = {}, {}
    for amount in (0, 1, 3):
        field = sphere_with_rotation(score, amount)
        distance[amount] = wasserstein(flow(field, noisy, 3.0, 0.01, num_steps=steps), true)
        found = flow_log_density(
            field, spots, READ_OUT, 3.0, terminal_fn=lambda x: score.log_density(x, 3.0), num_steps=steps
        )
        error[amount] = float((found - score.log_density(spots, READ_OUT)).abs().max())
    rows = {f"c = {amount}": value for amount, value in distance.items()}
    rows["two true samples"] = wasserstein(score.sample(count, generator=generator), true)
    change = max(abs(distance[amount] - distance[0]) for amount in (1, 3))
    densities = {f"c = {amount}": value for amount, value in error.items()}
    return [
        Claim("gauge field: change of W2 to the data", change, 0.02, "lower", rows, full_only=True),
        Claim(
            "gauge field: largest error of log density", max(error.values()), 1e-3, "lower", densities, full_only=True
        ),
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
    start = torch.randn(scale(smoke=2000, full=20_000), 3, **kind) @ torch.linalg.cholesky(S + 100 * eye).T

    def error(amount: float, stretch: float) -> float:
        def field(x: Tensor, sigma: float) -> Tensor:
            pull = torch.linalg.solve(S + sigma**2 * eye, x.T).T
            return -pull + amount * pull @ Q.T + stretch * x

        x = flow(field, start, 10.0, 0.01, num_steps=scale(smoke=60, full=120))
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
    steps, seeds = scale(smoke=150, full=2500), scale(smoke=1, full=3)
    count = scale(smoke=50, full=500)
    arms = {"free": ("free", steps), "energy": ("energy", steps), "free, 3 x steps": ("free", 3 * steps)}
    rows, worst, advantage, sharpness, ratios = {}, [], [], 0.0, []
    for name, draw in DATA_SETS.items():
        table: dict[str, list[dict]] = {arm: [] for arm in arms}
        for offset in range(seeds):
            seed = scale.seed + 1000 * offset
            generator = torch.Generator().manual_seed(seed)
            data, x = draw(20_000, generator), draw(count, generator).float()
            seconds = {}
            for arm, (kind, length) in arms.items():
                model = train_model(kind, data, length, seed)
                seconds[arm] = model.seconds
                found = _judge(model.field, name, x, data, generator)
                table[arm].append(found)
                if kind == "energy":
                    sharpness = max(sharpness, *found["asymmetry"])
            ratios.append(seconds["energy"] / seconds["free"])
        summary = {arm: _average(results) for arm, results in table.items()}
        worst += [share for result in table["energy"] for share in result["jacobian right"]]
        pairs = zip(summary["energy"]["jacobian right"], summary["free"]["jacobian right"], strict=True)
        advantage.append(max(energy - free for energy, free in pairs))
        rows[name] = summary
    rows["seconds of training, energy : free"] = mean(ratios)
    note = "part of the gap is accuracy of the fit: compare the free model trained three times as long"
    return [
        Claim("energy model: worst share of points of right dimension", min(worst), 0.95, "higher", rows, True, note),
        Claim(
            "energy model: least gain in that share over the free model",
            min(advantage),
            1 / count,
            "higher",
            dict(zip(DATA_SETS, advantage, strict=True)),
            full_only=True,
        ),
        Claim("energy model: asymmetry", sharpness, 1e-6, "lower"),
    ]


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
        "W2": [wasserstein(flow(field, start, 10.0, 0.01), data[rows])],
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
    errors, contest = {}, {}
    for dim in (5, 10):
        points, noisy = noisy_sphere(scale(smoke=200, full=2000), dim, 20, 0.02, generator)
        model = train_model("energy", noisy, scale(smoke=50, full=5000), scale.seed, sigma_min=0.02)
        at = {s: intrinsic_dimension(model.field, points.float(), s).dimension for s in (0.1, 0.15, 0.2)}
        errors[dim] = float((at[0.15] - dim).abs().mean())  # in the middle of the range that the bar is set for
        contest[f"S^{dim}"] = {
            **{f"ours, mean error at {s}": float((found - dim).abs().mean()) for s, found in at.items()},
            **{name: _peer(peers, name, noisy) for name in ("TwoNN", "MLE", "lPCA", "FisherS")},
            "seconds of training": model.seconds,
        }
    claims.append(
        Claim(
            "S^5, S^10 in R20: worst mean error over points",
            max(errors.values()),
            0.3,
            "lower",
            contest,
            full_only=True,
        )
    )
    return claims


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
