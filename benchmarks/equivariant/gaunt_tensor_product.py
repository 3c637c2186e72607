"""Gaunt products: exact, equivariant, faster than Clebsch-Gordan products over the same paths, and blind to mirrors.

Oracles: e3nn's Wigner symbols, invariance under O(3), chains of products. Times: medians of the CPU clock over
interleaved runs of ten calls, one thread in all arms; the first run, which pays for compilation and caches, is left
out. Where e3nn has two modes, plain and TorchScript, the faster one counts.
"""

import itertools
from collections.abc import Callable
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import interleave
from benchmarks.equivariant._gaunt_tensor_product_peers import (
    e3nn_product,
    float64_by_default,
    full_product,
    gaunt_product_of_e3nn,
    harmonics_of_e3nn,
)
from benchmarks.equivariant._gaunt_tensor_product_tetris import (
    MIRROR_PAIR,
    Flavour,
    blocks,
    random_rotations,
    train,
)
from benchmarks.peers import require_peer
from hesse._threads import one_thread
from hesse.equivariant.gaunt import (
    antisymmetric_tensor_product,
    gaunt_convolution,
    gaunt_many_body,
    gaunt_tensor_product,
    rotate,
    spherical_harmonics,
)

F64 = torch.float64
BACKENDS: tuple[Literal["dense", "grid", "fourier", "cg"], ...] = ("dense", "grid", "fourier", "cg")
CALLS = 10


def _draw(*shape: int, generator: torch.Generator, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _milliseconds(arms: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Of one call, in runs of ten: a call right after another arm's finds none of its memory at hand."""

    def run(arm: Callable[[], Any]) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(CALLS):
                arm()

        return calls

    with one_thread():
        seconds = interleave({name: run(arm) for name, arm in arms.items()}, repeats, clock="cpu")
    return {name: 1e3 * median(taken) / CALLS for name, taken in seconds.items()}


def _without_gradient(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return function(*arguments)

    return call


def claim_oracle(scale: Scale) -> list[Claim]:
    """Degrees 0 to 4: the back ends against the dense coefficients, these against e3nn's Wigner symbols, float32."""
    generator = torch.Generator().manual_seed(scale.seed)
    between: dict[str, float] = {}
    narrow: dict[str, float] = {}
    peers: dict[str, float] = {}
    top = scale(smoke=2, full=4)
    for l1, l2 in itertools.product(range(top + 1), repeat=2):
        x, y = (_draw(64, (size + 1) ** 2, generator=generator) for size in (l1, l2))
        for l3 in {l1 + l2, min(l1, l2)}:
            oracle = gaunt_tensor_product(x, y, l1, l2, l3, backend="cg")
            for backend in BACKENDS:
                z = gaunt_tensor_product(x, y, l1, l2, l3, backend=backend)
                between[backend] = max(between.get(backend, 0.0), _relative(z, oracle))
                low = gaunt_tensor_product(x.float(), y.float(), l1, l2, l3, backend=backend)
                narrow[backend] = max(narrow.get(backend, 0.0), _relative(low, oracle))
            if l1 == l2:
                e3nn = gaunt_product_of_e3nn(l1, l2, l3)(x, y)
                peers[f"{l1} x {l2} -> {l3}"] = max(
                    _relative(gaunt_tensor_product(x, y, l1, l2, l3, backend=backend), e3nn) for backend in BACKENDS
                )
    return [
        Claim("back ends agree, float64", max(between.values()), 1e-12, "lower", between),
        Claim("equal to e3nn with Gaunt's constants, float64", max(peers.values()), 1e-12, "lower", peers),
        Claim("float32 against float64", max(narrow.values()), 5e-6, "lower", narrow),
    ]


def claim_equivariance(scale: Scale) -> list[Claim]:
    """Random orthogonal matrices, half of them reflections, degrees 1 to 16: T(R x, R y) against R T(x, y)."""
    generator = torch.Generator().manual_seed(scale.seed)
    rows: dict[str, dict[str, float]] = {name: {} for name in BACKENDS[:-1]}  # all coefficients would not fit
    brackets: dict[str, float] = {}
    for degree in range(1, scale(smoke=5, full=16) + 1):
        x, y = (_draw(8, 2, (degree + 1) ** 2, generator=generator) for _ in range(2))
        signs = torch.tensor([1.0, -1.0], dtype=F64).repeat(4)
        R = random_rotations(8, generator) * signs[:, None, None]
        turned = rotate(x, R), rotate(y, R)
        for backend in BACKENDS[:-1]:
            for l3 in (degree, 2 * degree):
                found = gaunt_tensor_product(*turned, degree, degree, l3, backend=backend)
                wanted = rotate(gaunt_tensor_product(x, y, degree, degree, l3, backend=backend), R)
                rows[backend][f"{degree} -> {l3}"] = _relative(found, wanted)
        l3 = 2 * degree - 1
        found = antisymmetric_tensor_product(*turned, degree, degree, l3)
        wanted = rotate(antisymmetric_tensor_product(x, y, degree, degree, l3), R, parity=-1)
        brackets[f"{degree} -> {l3}"] = _relative(found, wanted)
    worst = max(value for row in rows.values() for value in row.values())
    return [
        Claim("product commutes with O(3)", worst, 1e-12, "lower", rows),
        Claim(
            "antisymmetric product commutes with O(3), opposite parity",
            max(brackets.values()),
            1e-12,
            "lower",
            brackets,
        ),
    ]


def claim_speed(scale: Scale) -> list[Claim]:
    """Full products L x L -> 2 L of 512 pairs in float32, default back end, against e3nn."""
    generator = torch.Generator().manual_seed(scale.seed)
    batch, repeats = 512, scale(smoke=3, full=21)
    degrees = scale(smoke=(2, 4), full=(2, 4, 5, 6))
    table: dict[Any, dict[str, float]] = {}
    for degree in degrees:
        x, y = (_draw(batch, (degree + 1) ** 2, generator=generator, dtype=torch.float32) for _ in range(2))
        arms = {
            name: _without_gradient(lambda a, b, name=name, degree=degree: _full(a, b, degree, name), x, y)
            for name in ("auto", "dense", "grid", "fourier")
        }
        arms |= {
            "e3nn": _without_gradient(e3nn_product(degree, degree, 2 * degree), x, y),
            "e3nn, TorchScript": _without_gradient(_scripted(degree), x, y),
            "e3nn FullTensorProduct": _without_gradient(full_product(degree), x, y),
        }
        table[degree] = _milliseconds(arms, repeats)
    wide = scale(smoke=(4, 6), full=(6, 8, 12, 16))
    ours: dict[Any, float] = {}
    for degree in wide:
        x, y = (_draw(batch, (degree + 1) ** 2, generator=generator, dtype=torch.float32) for _ in range(2))
        arm = {"grid": _without_gradient(lambda a, b, degree=degree: _full(a, b, degree, "grid"), x, y)}
        ours[degree] = _milliseconds(arm, scale(smoke=3, full=15))["grid"]
    peer: dict[Any, float] = {degree: min(row["e3nn"], row["e3nn, TorchScript"]) for degree, row in table.items()}
    low, top = (4, 6) if scale.name == "full" else (2, 4)
    rows = {"milliseconds": table, "batch": batch, "grid, milliseconds": ours}
    steep = _slope({degree: peer[degree] for degree in degrees if degree >= low})
    return [
        Claim("e3nn over hesse, same paths, L=4", peer[4] / table[4]["auto"], 8.0, "higher", rows, full_only=True),
        Claim("e3nn over hesse, same paths, L=6", peer[top] / table[top]["auto"], 20.0, "higher", {}, full_only=True),
        Claim(
            "e3nn's FullTensorProduct over hesse, L=6",
            table[top]["e3nn FullTensorProduct"] / table[top]["auto"],
            50.0,
            "higher",
            {},
            full_only=True,
        ),
        Claim("e3nn: exponent of time in L, 4 to 6", steep, 4.0, "higher", peer, full_only=True),
        Claim("hesse grid: exponent of time in L, 6 to 16", _slope(ours), 3.5, "lower", ours, full_only=True),
        _backward_claim(scale, generator),
    ]


def _full(x: Tensor, y: Tensor, degree: int, backend: Any) -> Tensor:
    return gaunt_tensor_product(x, y, degree, degree, 2 * degree, backend=backend)


def _scripted(degree: int) -> Any:
    """e3nn's product compiled by TorchScript, which its default no longer does."""
    e3nn = require_peer("e3nn")
    before = e3nn.get_optimization_defaults()["jit_mode"]
    e3nn.set_optimization_defaults(jit_mode="script")
    try:
        return e3nn_product(degree, degree, 2 * degree)
    finally:
        e3nn.set_optimization_defaults(jit_mode=before)


def _backward_claim(scale: Scale, generator: torch.Generator) -> Claim:
    degree = 4
    x, y = (_draw(512, (degree + 1) ** 2, generator=generator, dtype=torch.float32).requires_grad_() for _ in range(2))
    ones = torch.ones(512, (2 * degree + 1) ** 2)

    def both_ways(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(product(x, y), (x, y), ones)

    arms = {
        "hesse": both_ways(lambda a, b: _full(a, b, degree, "auto")),
        "e3nn": both_ways(e3nn_product(degree, degree, 2 * degree)),
        "e3nn, TorchScript": both_ways(_scripted(degree)),
    }
    row = _milliseconds(arms, scale(smoke=3, full=21))
    ratio = min(row["e3nn"], row["e3nn, TorchScript"]) / row["hesse"]
    return Claim("e3nn over hesse, forward and backward, L=4", ratio, 8.0, "higher", row, full_only=True)


def _slope(times: dict[Any, float]) -> float:
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def claim_convolution(scale: Scale) -> list[Claim]:
    """Messages of 2,000 edges at L=6: the same numbers as a product with harmonics; and times, all steps included."""
    generator = torch.Generator().manual_seed(scale.seed)
    degree, edges = scale(smoke=3, full=6), scale(smoke=200, full=2000)
    degrees = [size for size in range(degree + 1) for _ in range(2 * size + 1)]
    vectors = _draw(edges, 3, generator=generator)
    vectors[:2] = torch.tensor([[0.0, 1.0, 0.0], [0.0, -2.0, 0.0]])
    exact, times = {}, {}
    for channels in (1, 4):
        x = _draw(edges, channels, (degree + 1) ** 2, generator=generator)
        h = _draw(edges, channels, degree + 1, generator=generator)
        filters = spherical_harmonics(degree, vectors).unsqueeze(1) * h[..., degrees]
        for l3 in (degree, 2 * degree):
            exact[f"{channels} channels -> {l3}"] = _relative(
                gaunt_convolution(x, vectors, h, degree, degree, l3),
                gaunt_tensor_product(x, filters, degree, degree, l3),
            )
        narrow = [tensor.float() for tensor in (x, vectors, h)]
        # e3nn takes a channel as a row here, its fastest layout for products of a channel with a channel
        peer = e3nn_product(degree, degree, degree)

        def of_e3nn(x: Tensor, r: Tensor, h: Tensor, peer: Any = peer) -> Tensor:
            return peer(x, harmonics_of_e3nn(degree, r).unsqueeze(1) * h[..., degrees])

        arms = {
            "hesse": _without_gradient(lambda x, r, h: gaunt_convolution(x, r, h, degree, degree, degree), *narrow),
            "hesse, product on the sphere": _without_gradient(
                lambda x, r, h: gaunt_tensor_product(
                    x, spherical_harmonics(degree, r).unsqueeze(1) * h[..., degrees], degree, degree, degree
                ),
                *narrow,
            ),
            "e3nn": _without_gradient(of_e3nn, *narrow),
        }
        times[f"{channels} channels"] = _milliseconds(arms, scale(smoke=2, full=11))
    ratio = min(row["e3nn"] / row["hesse"] for row in times.values())
    return [
        Claim("message equals the product with harmonics of the edge", max(exact.values()), 1e-11, "lower", exact),
        Claim("e3nn over hesse, messages at L=6", ratio, 5.0, "higher", times, full_only=True),
    ]


def claim_many_body(scale: Scale) -> list[Claim]:
    """Third powers of 128 channels, degree 2 to 2, against two products in a chain."""
    generator = torch.Generator().manual_seed(scale.seed)
    nodes, channels = scale(smoke=4, full=64), 128
    x = _draw(nodes, channels, 9, generator=generator)
    square = gaunt_tensor_product(x, x, 2, 2, 4)
    error = _relative(gaunt_many_body(x, 2, 2, 3), gaunt_tensor_product(square, x, 4, 2, 2))
    first, second = e3nn_product(2, 2, 4), e3nn_product(4, 2, 2)
    arms = {
        "hesse": _without_gradient(lambda a: gaunt_many_body(a, 2, 2, 3), x.float()),
        "hesse, chained": _without_gradient(
            lambda a: gaunt_tensor_product(gaunt_tensor_product(a, a, 2, 2, 4), a, 4, 2, 2), x.float()
        ),
        "e3nn, chained": _without_gradient(lambda a: second(first(a, a), a), x.float()),
    }
    row = _milliseconds(arms, scale(smoke=3, full=21))
    rows = {"milliseconds": row, "nodes": nodes, "channels": channels}
    return [
        Claim("third power equals two chained products", error, 1e-11, "lower", {"float64": error}),
        Claim(
            "chained e3nn over hesse, third power",
            row["e3nn, chained"] / row["hesse"],
            3.0,
            "higher",
            rows,
            full_only=True,
        ),
    ]


def claim_tetris(scale: Scale) -> list[Claim]:
    """Trained on one orientation, tested on random ones; the worst of the seeds counts."""
    seeds, orientations = scale(smoke=1, full=10), scale(smoke=10, full=200)
    flavours: tuple[Flavour, ...] = ("gaunt", "gaunt and antisymmetric", "e3nn")
    accuracies: dict[str, list[Tensor]] = {flavour: [] for flavour in flavours}
    parameters: dict[str, int] = {}
    with float64_by_default():
        for index in range(seeds):
            R = random_rotations(orientations, torch.Generator().manual_seed(scale.seed + index))
            turned = torch.einsum("rij,snj->srni", R, blocks()).flatten(0, 1)
            for flavour in flavours:
                net = train(flavour, scale.seed + index)
                with torch.no_grad():
                    guesses = net(turned).argmax(-1).unflatten(0, (8, orientations))
                accuracies[flavour].append((guesses == torch.arange(8)[:, None]).double().mean(1))
                parameters[flavour] = sum(parameter.numel() for parameter in net.parameters())
    pair = {name: [float(row[list(MIRROR_PAIR)].mean()) for row in found] for name, found in accuracies.items()}
    rest = {name: [float(row[2:].min()) for row in found] for name, found in accuracies.items()}
    rows = {"mirror pair": pair, "worst of the other six shapes": rest, "parameters": parameters}
    off = max(pair["gaunt"], key=lambda value: abs(value - 0.5))
    both = min(*pair["gaunt and antisymmetric"], *rest["gaunt and antisymmetric"])
    return [
        Claim(
            "Gaunt products alone: the six shapes that equal their mirror image",
            min(rest["gaunt"]),
            1.0,
            "higher",
            rows,
        ),
        Claim(
            "Gaunt products alone: the mirror pair",
            off,
            (0.5, 0.5),
            "inside",
            pair,
            note="blind to it, by its symmetry",
        ),
        Claim(
            "with antisymmetric products: all eight shapes",
            both,
            1.0,
            "higher",
            {"e3nn": min(*pair["e3nn"], *rest["e3nn"])},
        ),
    ]


CLAIMS: list[ClaimFunction] = [
    claim_oracle,
    claim_equivariance,
    claim_speed,
    claim_convolution,
    claim_many_body,
    claim_tetris,
]
