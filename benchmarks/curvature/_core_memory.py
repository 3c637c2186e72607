"""Peak memory of one product, in backward passes: ours, and the peers' on the same model and batch.

In every arm glibc hands each block of 128 KiB and more back to the system as soon as it is freed. With its moving
threshold the same arm differs by a third from run to run, by what its heap happens to keep; so fixed, by less than 1 %.
Shapes: P parameters.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.curvature._core_arms import (
    OPERATORS,
    Problem,
    as_pyhessian_expects,
    curvlinops_operator,
    eigenthings_operator,
    loss_fn,
    ours,
    peer_product,
)
from benchmarks.data import peak_rss_growth

__all__ = ["MEMORY_CLAIMS"]

Prepared = tuple[str, Problem, Tensor]


def prepare(arm: str, width: int, depth: int, num_examples: int, seed: int) -> Prepared:
    """Model, batch and vector in float32, and a first small product so that torch's own buffers do not count."""
    generator = torch.Generator().manual_seed(abs(seed))
    torch.manual_seed(abs(seed))
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i == 0 else width, width), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 10)).eval()
    x = torch.randn(num_examples, 64, generator=generator)
    y = torch.randint(10, (num_examples,), generator=generator)
    vector = torch.randn(sum(p.numel() for p in model.parameters()), generator=generator)
    small = Problem(model, [(x[:4].clone(), y[:4].clone())])
    measured((arm, small, vector))
    model.zero_grad(set_to_none=True)
    return arm, Problem(model, [(x, y)]), vector


def measured(state: Prepared) -> Any:
    """One product, or one backward pass; what it returns stays alive."""
    arm, problem, vector = state
    if arm == "backward":
        return torch.autograd.grad(loss_fn(problem.model, problem.batches[0]), problem.parameters)
    library, kind = arm.split()
    if library in ("hesse", "hesse-default"):
        block = {"hesse": 1, "hesse-default": 16}[library]  # 1 is the lean setting, 16 the default
        with torch.no_grad():
            return ours(problem, kind, block_size=block) @ vector
    if library == "hesse-kept":
        operator = ours(problem, kind, keep_graph=True)
        return operator @ vector, operator
    if library == "pyhessian":
        with as_pyhessian_expects(torch.float32):
            operator = OPERATORS[library](problem)
            return peer_product(library, operator, vector), operator
    make: dict[str, Callable[[Problem, str], Any]] = {
        "curvlinops": curvlinops_operator,
        "eigenthings": eigenthings_operator,
    }
    return peer_product(library, make[library](problem, kind), vector)


@contextmanager
def freed_blocks_returned() -> Iterator[None]:
    """Set glibc's threshold for the processes started inside."""
    name = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(name)
    os.environ[name] = str(1 << 17)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def claim_memory(scale: Scale) -> list[Claim]:
    """Growth of the resident set over one product, less the vector returned, over that of one backward pass."""
    sizes = (scale(smoke=64, full=512), 6, scale(smoke=256, full=8192))
    repeats = scale(smoke=1, full=3)

    def peak(arm: str) -> int:
        with freed_blocks_returned():
            return peak_rss_growth(measured, prepare, arm, *sizes, scale.seed, repeats=repeats)

    backward = peak("backward")
    claims = []
    for kind, bar, peers in (
        ("ggn", 2.5, ("curvlinops", "eigenthings")),
        ("hessian", 3.5, ("curvlinops", "eigenthings", "pyhessian")),
    ):
        peaks = {library: peak(f"{library} {kind}") for library in ("hesse", "hesse-default", "hesse-kept", *peers)}
        order = prepare("backward", sizes[0], sizes[1], 4, scale.seed)[1].order
        in_passes = {library: (value - 4 * order) / backward for library, value in peaks.items()}
        rows = {"MiB": {name: value / 2**20 for name, value in {"backward": backward, **peaks}.items()}}
        rows |= {"order": order, "in backward passes": in_passes}
        title = f"peak memory of a {kind} product in backward passes"
        claims.append(Claim(title, in_passes["hesse"], bar, "lower", rows, full_only=True))
        leanest = min(peaks[peer] for peer in peers)
        title = f"peak memory of a {kind} product against the leanest peer"
        claims.append(Claim(title, peaks["hesse"] / leanest, 1.0, "lower", rows, full_only=True))
    return claims


MEMORY_CLAIMS: list[ClaimFunction] = [claim_memory]
