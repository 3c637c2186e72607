"""How fast records are encoded and found, by the CPU clock of one thread."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._claims import Claim, PeerMissing, Scale
from benchmarks.data import interleave_clocks
from benchmarks.vsa._mbat_vsa_data import real_records
from hesse._threads import one_thread
from hesse.vsa import JSONEncoder, JSONIndex, OrthogonalBinding

__all__ = ["claim_throughput"]

DIM = 1024


def _naive(binding: OrthogonalBinding, encoder: JSONEncoder, value: Any) -> Tensor:
    # the definition, one bound vector at a time; leaves come from the same cache
    if isinstance(value, dict) and value:
        total = sum(binding.bind(f"key {key}", _naive(binding, encoder, below)) for key, below in value.items())
        return binding.bind("object", total / torch.linalg.vector_norm(total))
    if isinstance(value, list) and value:
        items = [_naive(binding, encoder, below) for below in value]
        state = torch.zeros(DIM)
        for item in reversed(items):
            state = binding.bind("next", state) + item
        bag = torch.stack(items).sum(0)
        both = binding.bind("array", state / state.norm()) + binding.bind("bag", bag / bag.norm())
        return both / both.norm()
    return encoder.encode(value)


@one_thread()
def claim_throughput(scale: Scale) -> list[Claim]:
    """Records a second with warm caches, against the recursion one vector at a time; milliseconds a search."""
    claims: list[Claim] = []
    rounds = scale(smoke=1, full=5)
    for name, bar in (("cars", 3000.0), ("countries", 400.0)):
        try:
            documents = real_records(name, scale)
        except PeerMissing as error:
            claims.append(
                Claim(f"{name}: records a second", None, bar, "higher", {"missing": str(error)}, full_only=True)
            )
            continue
        encoder = JSONEncoder()
        part = documents[:20]
        arms: dict[str, Callable[[], Any]] = {
            "batched": lambda documents=documents, encoder=encoder: list(encoder.encode_many(documents)),
            "one by one": lambda part=part, encoder=encoder: [encoder.encode(document) for document in part],
            "recursion": lambda part=part, encoder=encoder: [
                _naive(encoder.binding, encoder, document) for document in part
            ],
            "cold caches": lambda documents=documents: list(JSONEncoder().encode_many(documents)),
        }
        timing = interleave_clocks(arms, rounds)
        counts = {"batched": len(documents), "cold caches": len(documents)}
        rates = {arm: counts.get(arm, len(part)) / min(timing[arm].cpu) for arm in arms}
        wall = {f"{arm}, wall": counts.get(arm, len(part)) / min(timing[arm].wall) for arm in arms}
        rows = rates | wall | {"over the recursion": rates["batched"] / rates["recursion"]}
        claims.append(Claim(f"{name}: records a second", rates["batched"], bar, "higher", rows, full_only=True))
    count = scale(smoke=2000, full=100_000)
    rows_: dict[str, float] = {}
    query = JSONEncoder().encode({"a": 1})
    vectors = np.random.default_rng(scale.seed).standard_normal((count, DIM), dtype=np.float32) / np.float32(DIM**0.5)
    for precision in ("float32", "int8", "sign"):
        index = JSONIndex(JSONEncoder(), precision)
        index.add_vectors(torch.from_numpy(vectors))
        arms = {precision: lambda index=index: index.search_vector(query, 10)}
        if precision == "int8":
            arms["sign, then int8 of 400"] = lambda index=index: index.search_vector(query, 10, shortlist=400)
        timing = interleave_clocks(arms, scale(smoke=2, full=20))
        for arm, times in timing.items():
            rows_[arm] = 1000 * float(np.median(times.cpu))
            rows_[f"{arm}, wall"] = 1000 * float(np.median(times.wall))
    claims.append(Claim("ms a search of 100,000", rows_["float32"], 50.0, "lower", rows_, full_only=True))
    return claims
