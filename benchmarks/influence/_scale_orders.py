"""The order of a contraction that is chosen from shapes, against the clock of all orders over a grid of shapes."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks._claims import Claim, Scale
from hesse.curvature.capture import Captured
from hesse.curvature.layers import select_layers
from hesse.curvature.scratch import Scratch
from hesse.influence.contraction import (
    DenseQueries,
    LowRankQueries,
    Order,
    QueryMatrices,
    cheapest_order,
    contract,
    order_costs,
)

__all__ = ["CLAIMS"]

# none of them among those that the cost model was fitted on
SHAPES = ((192, 768), (768, 192), (320, 320), (96, 160))
POSITIONS = (1, 16, 96, 384)
QUERIES = (1, 6, 24)
RANKS = (8, 32, None)
TOKENS, MOST = 1536, 64  # of a batch, and its sequences
HOPELESS = 4.0  # an order estimated or measured at so many times the best is not timed again


def chosen_order_is_cheapest(scale: Scale) -> list[Claim]:
    """Every order is timed in turn; where the chosen one is not the fastest, all of that shape again, longer."""
    torch.set_num_threads(1)
    claims = []
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(scale.seed)
        ratios: dict[str, float] = {}
        chosen: list[str] = []
        for name, rows, queries in _cells(scale, dtype, generator):
            order, scratch = cheapest_order(rows, queries, dtype), Scratch()
            costs = order_costs(rows, queries, dtype)
            hopeful: list[Order] = [other for other in costs if costs[other] <= 8 * min(costs.values())]
            arms: dict[Order, Callable[[], object]] = {
                other: partial(contract, rows, queries, dtype, scratch, other) for other in hopeful
            }
            seconds = _least_seconds(arms, 3)
            if seconds[order] > 1.03 * min(seconds.values()):
                again = _least_seconds(arms, 9)
                seconds = {other: min(seconds[other], again[other]) for other in arms}
            ratios[name] = seconds[order] / min(seconds.values())
            chosen.append(order)
        worst = sorted(ratios, key=lambda name: -ratios[name])[:5]
        rows_out = {
            "shapes": len(ratios),
            "share within 10 %": sum(ratio <= 1.1 for ratio in ratios.values()) / len(ratios),
            "chosen": {order: chosen.count(order) for order in sorted(set(chosen))},
            "worst": {name: ratios[name] for name in worst},
        }
        kind = str(dtype).removeprefix("torch.")
        claims.append(
            Claim(
                f"chosen contraction over the fastest, worst shape, {kind}",
                max(ratios.values()),
                1.1,
                "lower",
                rows_out,
                full_only=True,
            )
        )
    return claims


def _cells(
    scale: Scale, dtype: torch.dtype, generator: torch.Generator
) -> Iterator[tuple[str, Captured, QueryMatrices]]:
    shapes = scale(smoke=SHAPES[-1:], full=SHAPES)
    for (m, p), positions, count, rank in itertools.product(shapes, POSITIONS, QUERIES, RANKS):
        (layer,) = select_layers(nn.Sequential(nn.Linear(m, p, bias=False))).values()
        batch = max(1, min(MOST, TOKENS // positions))

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        rows = Captured(layer, draw(batch, positions, m), draw(batch, positions, p), None, layer.name)
        if rank is None:
            queries: QueryMatrices = DenseQueries(draw(count, p, m), None)
        else:
            queries = LowRankQueries(draw(count, p, rank), draw(count, m, rank), torch.ones(count))
        yield f"m={m} p={p} T={positions} Q={count} r={rank}", rows, queries


def _least_seconds(arms: dict[Order, Callable[[], object]], rounds: int) -> dict[Order, float]:
    # CPU seconds of the best of several turns; an order that is out of the race is left out of the later ones
    best = dict.fromkeys(arms, float("inf"))
    for turn in range(rounds + 1):
        for order, run in arms.items():
            if turn > 1 and best[order] > HOPELESS * min(best.values()):
                continue
            start = time.process_time()
            run()
            if turn:  # the first one warms up
                best[order] = min(best[order], time.process_time() - start)
    return best


CLAIMS = [chosen_order_is_cheapest]
