"""What MBAT with orthogonal matrices promises: stable depth, structure that counts, records found and read back.

Oracles: identities in float64, the documents themselves. Peers: i.i.d. matrices, scikit-learn's hashed fields and text
trigrams, torchhd's HRR and MAP. Rates are by the CPU clock of one thread, the best of several rounds.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, PeerMissing, Scale
from benchmarks.vsa._mbat_vsa_data import cars, disturbed, real_records, swapped, transaction, transposable, transposed
from benchmarks.vsa._mbat_vsa_peers import (
    Vectors,
    commutative_soft,
    exact_tokens,
    hashed_fields,
    ours,
    text_trigrams,
    torchhd_records,
)
from benchmarks.vsa._mbat_vsa_speed import claim_throughput
from hesse.vsa import JSONEncoder, JSONIndex, OrthogonalBinding

__all__ = ["CLAIMS"]

FAMILIES = ("signed_permutation", "hadamard", "haar")
DEPTHS = (1, 5, 20)
DIM = 1024


def _cosine(pair: Tensor) -> float:
    wide = pair.double()
    return float(wide[0] @ wide[1] / (wide[0].norm() * wide[1].norm()))


def _pair(seed: int) -> Tensor:
    # two vectors of length 1 with cosine 0.8 or so
    x = torch.randn(2, DIM, generator=torch.Generator().manual_seed(seed))
    x[1] = 0.8 * x[0] + 0.6 * x[1]
    return x / x.norm(dim=1, keepdim=True)


def claim_stability(scale: Scale) -> list[Claim]:
    """Bind 1, 5 and 20 times in float32: lengths, cosines, and what unbinding leaves."""
    draws = scale(smoke=1, full=20)
    dim_depths = scale(smoke=(1, 5), full=DEPTHS)
    lengths: dict[str, dict[int, list[float]]] = {}
    cosines: dict[str, dict[int, list[float]]] = {}
    unbinding: dict[str, dict[int, list[float]]] = {}
    conditions: list[float] = []

    def note(name: str, depth: int, start: Tensor, bound: Tensor, back: Tensor) -> None:
        lengths.setdefault(name, {}).setdefault(depth, []).append(float((bound.double().norm(dim=1) - 1).abs().max()))
        cosines.setdefault(name, {}).setdefault(depth, []).append(abs(_cosine(bound) - _cosine(start)))
        unbinding.setdefault(name, {}).setdefault(depth, []).append(float((back - start).norm() / start.norm()))

    for draw in range(draws):
        start = _pair(scale.seed + 1000 * draw)
        for family in FAMILIES:
            binding = OrthogonalBinding(DIM, family)
            for depth in dim_depths if family != "haar" or draw < 2 else ():  # Haar's matrices take a second each
                roles = [f"{scale.seed} {draw} {i}" for i in range(depth)]
                bound = binding.bind(roles, start)
                note(family, depth, start, bound, binding.unbind(roles, bound))
        generator = torch.Generator().manual_seed(scale.seed + draw)
        matrices = [torch.randn(DIM, DIM, generator=generator) / DIM**0.5 for _ in range(max(dim_depths))]
        inverses = [torch.linalg.inv(matrix) for matrix in matrices]
        if draw == 0:
            conditions = [float(torch.linalg.cond(matrix)) for matrix in matrices[:5]]
        for depth in dim_depths:
            bound = start
            for matrix in matrices[:depth]:
                bound = bound @ matrix.T
            back = bound
            for inverse in reversed(inverses[:depth]):
                back = back @ inverse.T
            note("iid", depth, start, bound, back)
    deepest = max(dim_depths)

    def table(found: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
        return {name: {str(d): float(np.mean(x)) for d, x in row.items()} for name, row in found.items()}

    def worst(found: dict[str, dict[int, list[float]]]) -> float:
        return max(max(x) for name in FAMILIES for x in found[name].values())

    exact = {d: max(float(np.median(unbinding[name][d])) for name in FAMILIES) for d in dim_depths}
    ratios = {str(d): float(np.median(unbinding["iid"][d])) / exact[d] for d in dim_depths}
    return [
        Claim("lengths stay under orthogonal binding", worst(lengths), 1e-6, "lower", table(lengths)),
        Claim("cosines stay under orthogonal binding", worst(cosines), 1e-6, "lower", table(cosines)),
        Claim(
            "cosines drift under i.i.d. matrices",
            float(np.mean(cosines["iid"][deepest])),
            0.03,
            "higher",
            {"draws": draws, "depth": deepest, "condition": conditions},
            full_only=True,
        ),
        Claim(
            "unbinding: error of i.i.d. inverses over the worst family's",
            min(ratios.values()),
            100.0,
            "higher",
            {"ratio by depth": ratios} | table(unbinding),
            full_only=True,
        ),
    ]


def claim_oracles(scale: Scale) -> list[Claim]:
    """Identities of the matrices, sameness of vectors, and nesting that commutative binding cannot see."""
    dim = scale(smoke=256, full=DIM)
    gram: dict[str, float] = {}
    identity: dict[str, float] = {}
    x = torch.randn(50, dim, generator=torch.Generator().manual_seed(scale.seed))
    x = x / x.norm(dim=1, keepdim=True)
    for family in FAMILIES:
        binding = OrthogonalBinding(dim, family)
        role = f"role {scale.seed}"
        dense = binding.operator(role).to_dense().double()
        gram[family] = float((dense.T @ dense - torch.eye(dim, dtype=torch.float64)).abs().max())
        identity[family] = float((binding.unbind(role, binding.bind(role, x)) - x).abs().max())
    sale = transaction(np.random.default_rng(scale.seed))
    code = (
        "import sys, json; from hesse.vsa import JSONEncoder;"
        "print(JSONEncoder().encode(json.loads(sys.stdin.read())).numpy().tobytes().hex())"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            input=json.dumps(document),
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": "src"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, document in (("0", sale), ("1", dict(reversed(list(sale.items())))), ("4711", sale))
    }
    a, b = {"a": {"b": 1}}, {"b": {"a": 1}}
    nested = {"ours": float((lambda v, w: v[0] @ w[0])(*ours([a], [b])))}
    for vsa in ("HRR", "MAP"):
        v, w = torchhd_records(vsa, scale.seed)([a], [b])
        nested[f"torchhd {vsa}"] = float(v[0] @ w[0])
    return [
        Claim("matrices are orthogonal", max(gram.values()), 1e-6, "lower", gram),
        Claim("unbinding undoes binding", max(identity.values()), 1e-6, "lower", identity),
        Claim("different vectors from three processes", len(texts), 1, "lower", {"hash seeds": ["0", "1", "4711"]}),
        Claim("cosine of a/b and b/a", abs(nested["ours"]), 0.3, "lower", nested),
        Claim(
            "cosine of a/b and b/a under commutative binding",
            min(nested["torchhd HRR"], nested["torchhd MAP"]),
            0.99,
            "higher",
            nested,
        ),
    ]


def _recall(documents: Tensor, queries: Tensor, k: int = 1) -> float:
    best = (queries @ documents.T).topk(k, dim=1).indices
    return float((best == torch.arange(len(queries)).unsqueeze(1)).any(1).float().mean())


def _noise(documents: Sequence[Any], scale: Scale, round_: int, drop: Any) -> list[Any]:
    rng = np.random.default_rng([scale.seed, round_, drop == "share"])
    return [disturbed(document, rng, drop) for document in documents]


def claim_retrieval(scale: Scale) -> list[Claim]:
    """Recall of records of which every leaf is disturbed, the keys shuffled and an eighth of them gone."""
    claims: list[Claim] = []
    rounds = scale(smoke=1, full=5)
    for name, bar in (("cars", 0.90), ("countries", 0.98)):
        try:
            documents = real_records(name, scale)
        except PeerMissing as error:
            claims.append(Claim(f"{name}: recall", None, bar, "higher", {"missing": str(error)}, full_only=True))
            continue
        peers: dict[str, Vectors] = {
            "hashed fields": hashed_fields,
            "text trigrams": text_trigrams,
            "torchhd HRR": torchhd_records("HRR", scale.seed),
            "torchhd MAP": torchhd_records("MAP", scale.seed),
        }
        others: dict[str, Vectors] = {"ours, exact tokens": exact_tokens}
        if name == "cars":
            others["our leaves, commutative keys"] = commutative_soft
        for drop, word in (("share", "an eighth of the keys gone"), ("chance", "each key gone by 1/8")):
            recalls: dict[str, list[float]] = {}
            at_five: list[float] = []
            for round_ in range(rounds):
                queries = _noise(documents, scale, round_, drop)
                for arm, vectors in {"ours": ours, **peers, **others}.items():
                    recalls.setdefault(arm, []).append(_recall(*vectors(documents, queries)))
                at_five.append(_recall(*ours(documents, queries), k=5))
            means = {arm: float(np.mean(found)) for arm, found in recalls.items()}
            best = max(means[arm] for arm in peers)
            rows = {"records": len(documents), "by seed": recalls["ours"], "at 5": float(np.mean(at_five))} | means
            claims.append(Claim(f"{name}: recall, {word}", means["ours"], bar, "higher", rows, full_only=True))
            if name == "cars":
                claims.append(
                    Claim(
                        f"{name}: ahead of the best peer, {word}",
                        means["ours"] - best,
                        0.10,
                        "higher",
                        means,
                        full_only=True,
                    )
                )
    return claims


def claim_quantised(scale: Scale) -> list[Claim]:
    """Recall that int8 and sign vectors lose against float32, all 406 cars, each loss in points."""
    documents = cars(scale(smoke=60, full=None))
    rounds = scale(smoke=1, full=5)
    queries = [_noise(documents, scale, round_, "share") for round_ in range(rounds)]
    recalls: dict[str, float] = {}
    for name, precision, shortlist in (
        ("float32", "float32", None),
        ("int8", "int8", None),
        ("sign", "sign", None),
        ("sign, then int8 of 40", "int8", 40),
    ):
        index = JSONIndex(JSONEncoder(), precision)
        index.add(documents)
        found = [
            index.search(query, 1, shortlist=shortlist)[0].id == str(i)
            for round_ in queries
            for i, query in enumerate(round_)
        ]
        recalls[name] = float(np.mean(found))
    return [
        Claim(
            f"{name}: points of recall lost", 100 * (recalls["float32"] - found), 2.0, "lower", recalls, full_only=True
        )
        for name, found in recalls.items()
        if name != "float32"
    ]


def _preferred(vectors: Vectors, queries: list[Any], right: list[Any], wrong: list[Any]) -> float:
    # share of queries nearer to their right than to their wrong copy; a tie counts half
    documents, asked = vectors([*right, *wrong], queries)
    good = (documents[: len(right)] * asked).sum(1)
    bad = (documents[len(right) :] * asked).sum(1)
    ties = (good - bad).abs() < 1e-6
    return float(torch.where(ties, 0.5, (good > bad).float()).mean())


def claim_structure(scale: Scale) -> list[Claim]:
    """A disturbed record must be nearer to its original than to the original with two roles exchanged."""
    count = scale(smoke=20, full=500)
    rng = np.random.default_rng([scale.seed, 1])
    arms: dict[str, Vectors] = {
        "ours": ours,
        "text trigrams": text_trigrams,
        "torchhd HRR": torchhd_records("HRR", scale.seed),
        "torchhd MAP": torchhd_records("MAP", scale.seed),
    }
    found: dict[str, dict[str, float]] = {}
    for what, make, exchange in (("swap", transaction, swapped), ("transpose", transposable, transposed)):
        right = [make(rng) for _ in range(count)]
        wrong = [exchange(record) for record in right]
        # values stay as they are, for torchhd knows no similar ones; keys are shuffled, and items left out
        queries = [{key: record[key] for key in rng.permutation(list(record)).tolist()} for record in right]
        if what == "swap":
            queries = [record | {"items": record["items"][:1]} for record in queries]
        found[what] = {arm: _preferred(vectors, queries, right, wrong) for arm, vectors in arms.items()}
    swap, transpose = found["swap"], found["transpose"]
    commutative = max(abs(swap[arm] - 0.5) for arm in ("torchhd HRR", "torchhd MAP"))
    return [
        Claim("buyer and seller: the right copy preferred", swap["ours"], 1.0, "higher", swap),
        Claim("buyer and seller: text trigrams", swap["text trigrams"], (0.4, 0.6), "inside", swap, full_only=True),
        Claim(
            "buyer and seller: commutative binding, distance from one half",
            commutative,
            0.1,
            "lower",
            swap,
            full_only=True,
            note="buyer * name and seller * name differ under any binding; only exchanged levels look alike",
        ),
        Claim("outer and inner keys: the right copy preferred", transpose["ours"], 1.0, "higher", transpose),
        Claim(
            "outer and inner keys: commutative binding, distance from one half",
            max(abs(transpose[arm] - 0.5) for arm in ("torchhd HRR", "torchhd MAP")),
            0.1,
            "lower",
            transpose,
        ),
    ]


def claim_decoding(scale: Scale) -> list[Claim]:
    """Texts read back from vectors: of all fields of the cars, and of records of 8 to 128 made-up fields."""
    documents = cars(scale(smoke=40, full=None))
    encoder = JSONEncoder()
    texts = sorted({value for record in documents for value in record.values() if isinstance(value, str)})
    codebook = encoder.codebook(texts)
    right = [
        encoder.get(v, [key], codebook).value == value
        for record, v in zip(documents, torch.cat(list(encoder.encode_many(documents))), strict=True)
        for key, value in record.items()
        if isinstance(value, str)
    ]
    accuracy = float(np.mean(right))
    rng = np.random.default_rng([scale.seed, 2])
    exact = JSONEncoder(string="exact")
    words = [f"word {i} of {scale.seed}" for i in range(326)]
    coded = exact.codebook(words)
    bound = math.sqrt(2 * math.log(len(words))) + 2
    curve: dict[str, dict[str, float]] = {}
    for fields in (8, 16, 32, 64, 128):
        hits = []
        for _ in range(scale(smoke=1, full=20)):
            record = {f"field {i}": str(rng.choice(words)) for i in range(fields)}
            v = exact.encode(record)
            hits += [exact.get(v, [key], coded).value == value for key, value in record.items()]
        curve[str(fields)] = {"accuracy": float(np.mean(hits)), "margin": math.sqrt(DIM / fields) - bound}
    reliable = min(row["accuracy"] for row in curve.values() if row["margin"] > 0)
    return [
        Claim("cars: texts read back", accuracy, 1.0, "higher", {"texts": len(texts), "reads": len(right)}),
        Claim("made-up fields: texts read back where the margin is positive", reliable, 0.99, "higher", curve),
    ]


CLAIMS: list[ClaimFunction] = [
    claim_stability,
    claim_oracles,
    claim_retrieval,
    claim_quantised,
    claim_structure,
    claim_decoding,
    claim_throughput,
]
