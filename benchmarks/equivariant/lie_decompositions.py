"""Lie group decompositions: exact coordinates, equivariance in the continuum, and digits nobody deformed in training.

Oracles: inverse maps, quarter turns, invariance of the Haar measure, analytic functions deformed in closed form. The
robustness claims train on 1,200 upright digits and test on 597 deformed ones; peers, a plain CNN of equal size among
them, see the same digits in the same run. A CNN trained on deformed digits is shown beside them: where the family of
deformations is known, augmentation is cheaper and better.
"""

import math
from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.equivariant._lie_decompositions_digits import (
    DEFORMATIONS,
    Digits,
    affine_digits,
    homography_digits,
    split_rows,
    zero_frame,
)
from benchmarks.equivariant._lie_decompositions_nets import (
    accuracy,
    c8_cnn,
    lie_network,
    num_parameters,
    plain_cnn,
    spatial_transformer,
    train,
)
from hesse._threads import one_thread
from hesse.equivariant.lie import (
    SL,
    SO,
    GLPlus,
    GroupSamples,
    LieConv2d,
    LieLift2d,
    LieResNet,
    equivariance_report,
    haar_log_density,
)

F64 = torch.float64
FRAME = 4
GROUP_SIZE = 9  # of kernels summed over the group; the sum over pixels adds less than 1 % to the error


def claim_coordinates(scale: Scale) -> list[Claim]:
    """Decompositions and coordinates of matrices with a condition up to 100, and inverses of samples, in float64."""
    generator = torch.Generator().manual_seed(scale.seed)
    count = scale(smoke=200, full=5000)
    parts, coordinates = {}, {}
    for n in (2, 3):
        for group in (GLPlus(n), SL(n), SO(n)):
            h = _conditioned(group, count, generator)
            name = f"{type(group).__name__}({n})"
            X, R = group.decompose(h)
            drawn = group.sample(count, generator=generator, dtype=F64)
            eye = torch.eye(n, dtype=F64)
            sizes = torch.linalg.matrix_norm(h, 2)
            parts[name] = {
                "compose(decompose(h)) - h": _largest((group.compose(X, R) - h) / sizes[:, None, None]),
                "h h_inv - 1": _largest(drawn.h @ drawn.h_inv - eye),
            }
            again = group.exp_coordinates(group.log_coordinates(h))
            coordinates[name] = _largest((again - h) / sizes[:, None, None])
    dets = {
        f"SL({n})": _largest(torch.linalg.det(SL(n).sample(count, generator=generator, dtype=F64).h) - 1)
        for n in (2, 3)
    }
    layer = LieLift2d(SO(2), 1, 8, 7, generator=generator).double()
    quarter = torch.tensor([[0, -1], [1, 0]], dtype=F64)
    turns = torch.stack([torch.linalg.matrix_power(quarter, i) for i in range(4)])
    weights = layer.weights(GroupSamples(turns, turns.mT, torch.ones(4, dtype=F64))).unflatten(0, (8, 4))
    turned = max(_largest(weights[:, i] - weights[:, 0].rot90(-i, (2, 3))) for i in range(4))
    return [
        Claim(
            "parts put together, and inverses",
            max(max(row.values()) for row in parts.values()),
            1e-12,
            "lower",
            parts,
        ),
        Claim("exp of log coordinates", max(coordinates.values()), 1e-12, "lower", coordinates),
        Claim("determinants of SL samples", max(dets.values()), 1e-12, "lower", dets),
        Claim("quarter turns of a kernel", turned, 1e-10, "lower", {"kernels": 8, "size": 7}),
    ]


def _conditioned(group: GLPlus | SL | SO, count: int, generator: torch.Generator) -> Tensor:
    """Elements with singular values up to a factor of 100 apart."""
    U, V = (SO(group.n).sample(count, generator=generator, dtype=F64).h for _ in range(2))
    if isinstance(group, SO):
        return U
    logs = math.log(100) * torch.rand(count, group.n, generator=generator, dtype=F64)
    if isinstance(group, SL):
        logs = logs - logs.mean(1, keepdim=True)
    return U * logs.exp().unsqueeze(1) @ V


def _largest(gap: Tensor) -> float:
    return float(gap.detach().abs().max())


def claim_haar(scale: Scale) -> list[Claim]:
    """Averages weighted by Jacobian over density do not change when samples are multiplied from either side.

    σ = 0.9. The changes are averaged over the same samples, and judged by their own standard error.
    """
    generator = torch.Generator().manual_seed(scale.seed)
    group, variance, count = GLPlus(2), 0.81, scale(smoke=50_000, full=500_000)
    scores: dict[str, list[float]] = {"Haar": [], "without the Jacobian": []}
    relative: list[float] = []
    h = group.sample(count, generator=generator, variance=variance, dtype=F64).h
    X = 2 * group.decompose(h)[0]
    gaussian = X.square().sum((1, 2)) / (2 * variance)
    weights = {"Haar": (haar_log_density(X) + gaussian).exp(), "without the Jacobian": gaussian.exp()}
    before = _bump(h)
    for g in group.sample(3, generator=generator, variance=0.3, dtype=F64).h:
        for moved in (torch.linalg.inv(g) @ h, h @ g):
            change = _bump(moved) - before
            for name, weight in weights.items():
                samples = weight * change
                scores[name].append(float(samples.mean() / samples.std() * count**0.5))
            relative.append(float((weights["Haar"] * change).mean() / (weights["Haar"] * before).mean()))
    rows = {"standard errors": scores, "relative change with Haar weights": relative, "samples": count}
    return [
        Claim("Haar averages are invariant, in standard errors", max(map(abs, scores["Haar"])), 3.0, "lower", rows),
        Claim(
            "without the Jacobian they are not, in standard errors",
            max(map(abs, scores["without the Jacobian"])),
            10.0,
            "higher",
            {},
            full_only=True,
        ),
    ]


def _bump(h: Tensor) -> Tensor:
    v = GLPlus(2).log_coordinates(h)
    return torch.exp(-3 * v[:, :3].square().sum(1)) * (1.5 + torch.cos(v[:, 3] / 2**0.5))


def claim_lifting(scale: Scale) -> list[Claim]:
    """Lifting an analytic function and the function deformed, outputs moved along, on finer and finer kernels.

    Rotations, shears up to 0.1 and scales within 10 %, so that a stretched kernel still fits its window.
    """
    generator = torch.Generator().manual_seed(scale.seed)
    sizes = (5, 9, 17, 33)
    gs = [_deformation(generator) for _ in range(scale(smoke=3, full=20))]
    mixtures = [_mixture(generator) for _ in range(scale(smoke=2, full=8))]
    samples = _rotations(8)
    errors: dict[str, dict[int, float]] = {}
    kernels: dict[str, dict[str, Any]] = {
        "basis": {"kernel": "basis"},
        "SIREN, w0=2": {"kernel": "siren", "kernel_options": {"w0": 2.0}},
        "SIREN, w0=10": {"kernel": "siren", "kernel_options": {"w0": 10.0}},
    }
    for name, options in kernels.items():
        errors[name] = {}
        start = generator.get_state()
        for size in sizes:
            generator.set_state(start)  # the same kernel on every grid
            layer = LieLift2d(GLPlus(2), 1, 16, size, padding=0, generator=generator, **options).double()
            gap = total = 0.0
            for f in mixtures:
                plain = layer(f(_window(size)), samples).detach()
                for g in gs:
                    moved = GroupSamples(g @ samples.h, samples.h_inv @ torch.linalg.inv(g), samples.weight)
                    deformed = layer(f(_window(size), torch.linalg.inv(g)), moved).detach()
                    gap += float((deformed - plain).square().sum())
                    total += float(plain.square().sum())
            errors[name][size] = (gap / total) ** 0.5
    smooth = {name: row for name, row in errors.items() if name != "SIREN, w0=10"}
    return [
        Claim("lifting, relative error at k = 33", max(row[33] for row in smooth.values()), 0.02, "lower", errors),
        Claim(
            "lifting, error at k = 33 over that at k = 5",
            max(row[33] / row[5] for row in errors.values()),
            0.5,
            "lower",
            {},
            note="it shrinks with k",
        ),
    ]


def _deformation(generator: torch.Generator) -> Tensor:
    angle, shear, sx, sy = (2 * torch.rand(4, generator=generator, dtype=F64) - 1).tolist()
    cos, sin = math.cos(math.pi * angle), math.sin(math.pi * angle)
    rotation = torch.tensor([[cos, -sin], [sin, cos]], dtype=F64)
    return rotation @ torch.tensor([[1 + 0.1 * sx, 0.1 * shear], [0.0, 1 + 0.1 * sy]], dtype=F64)


def _rotations(count: int) -> GroupSamples:
    angles = 2 * math.pi * torch.arange(count, dtype=F64) / count
    h = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))
    return GroupSamples(h, h.mT, torch.ones(count, dtype=F64))


def _window(size: int) -> Tensor:
    axis = (2 * torch.arange(size, dtype=F64) + 1) / size - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], -1)


def _mixture(generator: torch.Generator) -> Callable[..., Tensor]:
    """Four Gaussians about the origin; as an image of one pixel batch and channel, or deformed by the inverse of g."""
    centres = 0.3 * torch.randn(4, 2, generator=generator, dtype=F64)
    heights = torch.randn(4, generator=generator, dtype=F64)
    widths = 0.2 + 0.2 * torch.rand(4, generator=generator, dtype=F64)

    def f(points: Tensor, g_inv: Tensor | None = None) -> Tensor:
        points = points if g_inv is None else points @ g_inv.mT
        distances = (points[..., None, :] - centres).square().sum(-1)
        return (heights * torch.exp(-distances / (2 * widths**2))).sum(-1)[None, None]

    return f


def claim_group_convolution(scale: Scale) -> list[Claim]:
    """A group convolution by Monte Carlo over Haar-weighted elements, function and outputs moved, inputs not.

    The basis, with its harmonics up to order 4, is shown beside the smooth kernel.
    """
    counts = scale(smoke=(64, 256), full=(64, 128, 256, 512))
    repeats = scale(smoke=4, full=80)
    kernels: dict[str, dict[str, Any]] = {
        "SIREN, w0=2": {"kernel": "siren", "kernel_options": {"w0": 2.0}},
        "basis": {"kernel": "basis", "spread": True},
    }
    each = {name: _monte_carlo_errors(options, counts, repeats, scale.seed) for name, options in kernels.items()}
    errors = {
        name: {count: float(row.square().mean().sqrt()) for count, row in table.items()} for name, table in each.items()
    }
    slopes = {name: _exponent(table) for name, table in each.items()}
    rows = {"relative error, root mean square": errors, "exponents": slopes, "repeats": repeats}
    return [
        Claim(
            "group convolution, relative error with 512 elements",
            errors["SIREN, w0=2"].get(512),
            0.10,
            "lower",
            rows,
            full_only=True,
        ),
        Claim(
            "group convolution, exponent of the error",
            slopes["SIREN, w0=2"],
            (-0.65, -0.35),
            "inside",
            {},
            full_only=True,
            note="of its geometric mean over functions and deformations",
        ),
    ]


def _exponent(table: dict[int, Tensor]) -> float:
    means = [float(row.log().mean()) for row in table.values()]
    return float(np.polyfit(np.log(list(table)), means, 1)[0])


def _monte_carlo_errors(options: dict[str, Any], counts: tuple[int, ...], repeats: int, seed: int) -> dict[int, Tensor]:
    """Relative errors of every case, by number of elements; cases are the same for every number."""
    generator = torch.Generator().manual_seed(seed)
    group, outputs = GLPlus(2), _rotations(2)
    layer = LieConv2d(group, 1, 2, GROUP_SIZE, separable=False, padding=0, generator=generator, **options).double()
    cases = [
        (_mixture(generator), _deformation(generator), group.sample(1, generator=generator, dtype=F64).h_inv[0])
        for _ in range(repeats)
    ]
    errors = {}
    for count in counts:
        found = []
        for f, g, centre_inv in cases:
            g_inv = torch.linalg.inv(g)
            inputs = group.sample(
                count, generator=generator, measure="haar", variance=0.4, rotations="equispaced", dtype=F64
            )
            with torch.no_grad():
                plain = layer(_on_group(f, inputs.h, centre_inv, None), inputs, outputs)
                moved = GroupSamples(g @ outputs.h, outputs.h_inv @ g_inv, outputs.weight)
                deformed = layer(_on_group(f, inputs.h, centre_inv, g_inv), inputs, moved)
            found.append((deformed - plain).norm() / plain.norm())
        errors[count] = torch.stack(found)
    return errors


def _on_group(f: Callable[..., Tensor], h: Tensor, centre_inv: Tensor, g_inv: Tensor | None) -> Tensor:
    """f(y) times a bump about a centre of the group, of (y, h̃) or (g⁻¹y, g⁻¹h̃); (1, 1, N, k, k).

    Narrower than the law of the samples, so that it vanishes where they are rare and weights are cut.
    """
    image = f(_window(GROUP_SIZE), g_inv)[0, 0]
    X, R = GLPlus(2).decompose(centre_inv @ (h if g_inv is None else g_inv @ h))
    bump = torch.exp(-6 * X.square().sum((1, 2)) + R[:, 0, 0])
    return (bump[:, None, None] * image)[None, None]


def claim_robustness(scale: Scale) -> list[Claim]:
    """Three trainings on upright digits; the same digits for a CNN of equal size; one seed for the other peers."""
    seeds = [scale.seed + i for i in range(scale(smoke=1, full=3))]
    epochs, cnn_epochs = scale(smoke=1, full=24), scale(smoke=1, full=12)
    tested = scale(smoke=50, full=None)
    arms: dict[str, list[dict[str, float]]] = {"lie": [], "cnn": []}
    seconds: dict[str, list[float]] = {"lie": [], "cnn": []}
    rows: dict[str, Any] = {}
    with one_thread():
        for seed in seeds:
            train_rows, test_rows = split_rows(seed)
            train_rows, test_rows = train_rows[: scale(smoke=120, full=None)], test_rows[:tested]
            upright = affine_digits(train_rows, 0, DEFORMATIONS["clean"])
            sets = _test_sets(test_rows, seed)
            network = lie_network(seed, num_draws=scale(smoke=2, full=12), channels=scale(smoke=8, full=24))
            builders: dict[str, Callable[[], nn.Module]] = {"lie": lambda net=network: net}
            builders["cnn"] = lambda seed=seed: plain_cnn(seed)
            if seed == seeds[0]:
                builders |= {"cnn, augmented": builders["cnn"], "c8 cnn": lambda seed=seed: c8_cnn(seed)}
                builders["spatial transformer"] = lambda seed=seed: spatial_transformer(seed)
            for name, build in builders.items():
                net = build()
                batches = _augmented(train_rows, seed) if name == "cnn, augmented" else _always(upright)
                length, rate = (cnn_epochs, 3e-3) if name in ("cnn", "spatial transformer") else (epochs, 8e-3)
                spent = train(net, batches, length, seed, learning_rate=rate)
                frozen = net.freeze() if isinstance(net, LieResNet) else net
                found = {key: accuracy(frozen, digits.x, digits.y) for key, digits in sets.items()}
                arms.setdefault(name, []).append(found)
                seconds.setdefault(name, []).append(spent)
                rows.setdefault("parameters", {})[name] = num_parameters(net)
            if seed == seeds[0]:
                rows["equivariance error"] = _reports(network, sets["clean"].x[:200], seed)
    rows |= {"accuracy": {name: _by_set(found) for name, found in arms.items()}, "training, CPU seconds": seconds}
    mean = {name: {key: fmean(one[key] for one in found) for key in found[0]} for name, found in arms.items()}
    rows["mean"] = {name: {key: round(value, 4) for key, value in row.items()} for name, row in mean.items()}
    rows["standard deviation over seeds"] = {
        name: {key: round(stdev(one[key] for one in found), 4) for key in found[0]}
        for name, found in arms.items()
        if len(found) > 1
    }
    lie, cnn = mean["lie"], mean["cnn"]
    frame = max(abs(one["frame"] - one["clean"]) for one in arms["lie"])
    claims: list[tuple[str, float, float, Any]] = [
        ("full: any rotation, ±0.2 shear, 0.8-1.2 scale, ±1.5 px", lie["full"], 0.82, "higher"),
        ("full: points above a CNN of equal size", 100 * (lie["full"] - cnn["full"]), 50.0, "higher"),
        ("±20° affine", lie["affine"], 0.89, "higher"),
        ("±20° affine: points above a CNN of equal size", 100 * (lie["affine"] - cnn["affine"]), -2.0, "higher"),
        ("points lost from clean to ±20° affine", 100 * (lie["clean"] - lie["affine"]), 6.0, "lower"),
        ("points lost from clean to any rotation", 100 * (lie["clean"] - lie["rot180"]), 5.0, "lower"),
        ("points lost from clean to translation", 100 * (lie["clean"] - lie["trans"]), 3.0, "lower"),
        ("points moved by a frame of zeros, worst seed", 100 * frame, 1.0, "lower"),
    ]
    return [
        Claim(name, measured, bar, better, rows if i == 0 else {}, full_only=True)
        for i, (name, measured, bar, better) in enumerate(claims)
    ]


def _test_sets(rows: Tensor, seed: int) -> dict[str, Digits]:
    sets = {name: affine_digits(rows, seed + 1, deformation) for name, deformation in DEFORMATIONS.items()}
    sets["homography"] = homography_digits(rows, seed + 1)
    sets["frame"] = Digits(zero_frame(sets["clean"].x, FRAME), sets["clean"].y)
    return sets


def _always(digits: Digits) -> Callable[[int], tuple[Tensor, Tensor]]:
    return lambda _epoch: (digits.x, digits.y)


def _augmented(rows: Tensor, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """New deformations of the ±20° family in every epoch, none of them the test's."""

    def batches(epoch: int) -> tuple[Tensor, Tensor]:
        digits = affine_digits(rows, (seed + 2) * 1009 + epoch, DEFORMATIONS["affine"])
        return digits.x, digits.y

    return batches


def _by_set(found: list[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [round(one[key], 4) for one in found] for key in found[0]}


def _reports(network: LieResNet, x: Tensor, seed: int) -> dict[str, float]:
    """Changes of the trained network's invariants in units of their spread between digits."""
    turn = math.radians(20)
    eye = torch.eye(2)
    deformations: dict[str, tuple[Tensor, tuple[float, float]]] = {
        "translation of 1.5 px": (eye, (1.5, 0.0)),
        "rotation by 20°": (
            torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]),
            (0.0, 0.0),
        ),
        "rotation by 90°": (torch.tensor([[0.0, -1.0], [1.0, 0.0]]), (0.0, 0.0)),
        "shear by 0.2": (torch.tensor([[1.0, 0.2], [0.0, 1.0]]), (0.0, 0.0)),
        "scale 1.2": (1.2 * eye, (0.0, 0.0)),
    }
    rows = {}
    for name, (g, shift) in deformations.items():
        report = equivariance_report(network, x, g, translation=shift, seed=seed)
        rows[name] = report.deformation
        rows["elements drawn anew"] = report.resampling
    return rows


CLAIMS: list[ClaimFunction] = [
    claim_coordinates,
    claim_haar,
    claim_lifting,
    claim_group_convolution,
    claim_robustness,
]
