"""Every kind of file that hesse writes and reads back: how a small one is made, and the numbers read from it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.influence._reliability import TRACKED, tiny_model, tiny_sequences
from hesse.bilevel import SOBA, Budget, problems
from hesse.compress import BitPlan
from hesse.curvature import hessian
from hesse.curvature.laplace import laplace, load_laplace
from hesse.curvature.spectrum import eigenvalue_density, sampled_diagonal, sampled_trace, top_eigenpairs
from hesse.influence import Factors, Influence, as_examples, open_corpus, open_scores
from hesse.influence.corpus import keep_corpus
from hesse.influence.prefilter import build_index, index_scores, open_index
from hesse.influence.trajectory import Recorder, open_record
from hesse.rl import HARPG, CategoricalPolicy, TabularMDP, train
from hesse.vsa import JSONEncoder, JSONIndex

F64 = torch.float64
STEPS = {"batch_tokens": 24, "unit_size": 8, "checkpoint_seconds": 1e9, "progress": False}
Numbers = dict[str, list[float]]


@dataclass(frozen=True)
class Kind:
    """Writes into a folder, and reads it as a user would: a few numbers by name."""

    write: Callable[[Path], object]
    read: Callable[[Path], Numbers]


def numbers(value: Tensor | np.ndarray) -> list[float]:
    return torch.as_tensor(value.tolist(), dtype=F64).reshape(-1)[:40].tolist()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(seed: int = 0) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(10 * seed + number), dtype=F64))
    return model.eval()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 3, generator=seeded(1), dtype=F64), torch.randint(2, (12,), generator=seeded(2))


def write_run(folder: Path) -> None:
    data, queries = tiny_sequences(20), tiny_sequences(3, 1, prompt=2)
    engine = Influence(tiny_model(), modules=TRACKED)
    engine.fit(data, folder, **STEPS)
    engine.score(queries, data, folder, rank=4, refine_topk=3, per_layer=True, per_token=True, **STEPS)
    keep_corpus(folder, "train", data)
    keep_corpus(folder, "queries", queries)
    engine.index(data, folder, k_in=4, k_out=4, progress=False)


def read_run(folder: Path) -> Numbers:
    """Old scores, old texts, the index, and a new question to the old factors; the fit finds nothing left to do."""
    data, queries = tiny_sequences(20), tiny_sequences(2, 5, prompt=2)
    before = (folder / "manifest.json").read_bytes()
    engine = Influence(tiny_model(), modules=TRACKED)
    factors = engine.fit(data, folder, **STEPS)
    if (folder / "manifest.json").read_bytes() != before:
        raise RuntimeError("the fit was done again")
    kept = open_scores(folder)
    layers, tokens = kept.layers, kept.tokens(0, kept.topk(0, 1)[0].id)
    found = {
        "eigenvalues": numbers(factors.eigenvalues(next(iter(engine.layers)))),
        "scores": numbers(kept.values),
        "layers": [] if layers is None else numbers(layers),
        "tokens": [] if tokens is None else numbers(tokens),
        "texts": numbers(open_corpus(folder, "train").sequence("s3").input_ids),
        "index": numbers(engine.ask(queries, folder).values),
    }
    return found | {"new question": numbers(engine.score(queries, data, folder, rank=None, **STEPS).values)}


def write_factors(folder: Path) -> None:
    factors = Influence(tiny_model(), modules=TRACKED, blocks=2).fit(tiny_sequences(20), folder / "fit", **STEPS)
    factors.save_pretrained(folder / "factors", max_shard_bytes=8000)
    for path in sorted((folder / "fit").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "fit").rmdir()


def read_factors(folder: Path) -> Numbers:
    factors = Factors.from_pretrained(folder / "factors")
    gradient = {name: torch.ones_like(p) for name, p in tiny_model().named_parameters()}
    solved = Influence(tiny_model(), modules=TRACKED, blocks=2).ihvp(gradient, factors)
    return {name: numbers(value) for name, value in solved.items()} | {"tokens": [factors.mean_tokens]}


def write_record(folder: Path) -> None:
    model, (x, y) = weights(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.1)
    recorder = Recorder(folder, model, optimizer, every=2, dataset=(x, y))
    for step in range(4):
        chosen = [(3 * step + k) % 12 for k in range(4)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        recorder.step(chosen)
    recorder.finish()


def read_record(folder: Path) -> Numbers:
    record = open_record(folder)
    record.check_data(as_examples(batch()))
    last = {name: numbers(value) for name, value in record.weights(4).items()}
    moments = {f"moments {name}": numbers(value) for name, value in record.moments(2).items()}
    order = [float(i) for step in record.batches or () for i in step]
    return last | moments | {"rates": list(record.learning_rates), "order": order}


DOCUMENTS = [{"name": word, "size": float(i), "parts": [{"n": i}] * (i % 3)} for i, word in enumerate("abcdef")]


def write_json_index(folder: Path) -> None:
    for precision in ("float32", "int8", "sign"):
        index = JSONIndex(JSONEncoder(256), precision)
        index.add(DOCUMENTS)
        index.save(folder / precision)


def read_json_index(folder: Path) -> Numbers:
    found: Numbers = {}
    for precision in ("float32", "int8", "sign"):
        hits = JSONIndex.load(folder / precision).search(DOCUMENTS[2], 3)
        found[precision] = [value for hit in hits for value in (float(hit.id), hit.score)]
    return found


DOCUMENTS_OF_TOKENS = [np.arange(1, 4 + i) % 7 for i in range(9)]


def write_token_index(folder: Path) -> None:
    build_index(as_examples(DOCUMENTS_OF_TOKENS), folder, part_size=4)


def read_token_index(folder: Path) -> Numbers:
    parts = index_scores(open_index(folder), np.array([2, 5]), method="bm25")
    return {"bm25": numbers(np.concatenate([values for _first, values in parts]))}


def spectra(folder: Path) -> Numbers:
    """The same call starts a run and takes it up; of a finished one it only reads."""
    model, data = weights(), batch()
    operator = hessian(lambda net, held: nn.functional.cross_entropy(net(held[0]), held[1]), model, data)
    density = eigenvalue_density(operator, num_probes=3, num_steps=5, generator=seeded(5), run=folder / "density")
    return {
        "eigenvalues": numbers(
            top_eigenpairs(operator, 2, basis_size=8, generator=seeded(5), run=folder / "eigenpairs").eigenvalues
        ),
        "trace": numbers(sampled_trace(operator, 8, generator=seeded(5), run=folder / "trace").value),
        "diagonal": numbers(sampled_diagonal(operator, 8, generator=seeded(5), run=folder / "diagonal").value),
        "nodes": numbers(density.nodes),
    }


def read_spectra(folder: Path) -> Numbers:
    manifests = {path: path.read_bytes() for path in folder.rglob("manifest.json")}
    found = spectra(folder)
    if len(manifests) != 4 or any(path.read_bytes() != data for path, data in manifests.items()):
        raise RuntimeError("a finished run was done again")
    return found


def write_laplace(folder: Path) -> None:
    laplace(weights(), [batch()], "categorical", structure="kron").save(folder / "posterior.safetensors")


def read_laplace(folder: Path) -> Numbers:
    posterior = load_laplace(folder / "posterior.safetensors", weights())
    return {"evidence": numbers(posterior.log_marginal_likelihood().detach())}


def bilevel_solver() -> SOBA:
    return SOBA(problems.quadratic(3, 4, seed=5, condition=1.5).problem, lr=0.1, lr_lower=0.9)


def write_bilevel(folder: Path) -> None:
    solver = bilevel_solver()
    solver.run(Budget(iterations=4))
    solver.save(folder / "solver.safetensors")


def read_bilevel(folder: Path) -> Numbers:
    solver = bilevel_solver()
    solver.load(folder / "solver.safetensors")
    return {"x": numbers(solver.x), "x later": numbers(solver.run(Budget(iterations=6)).x)}


def policy(folder: Path, episodes: int) -> Tensor:
    transitions = torch.full((4, 3, 4), 0.25, dtype=F64)
    rewards = torch.randn(4, 3, generator=seeded(), dtype=F64)
    world = TabularMDP(transitions, rewards, torch.full((4,), 0.25, dtype=F64))
    actor = CategoricalPolicy(4, 3, (), bias=False, generator=seeded()).double()
    optimizer = HARPG(actor, 0.1)
    train(world, actor, optimizer, horizon=4, episodes=episodes, batch=5, checkpoint=folder / "policy")
    return optimizer.parameters


def write_plan(folder: Path) -> None:
    BitPlan({"a": 4, "b": 8}, {"a": 8}, {"a": 100, "b": 50}, 0.25).save(folder / "plan.json")


def read_plan(folder: Path) -> Numbers:
    plan = BitPlan.load(folder / "plan.json")
    return {
        "weights": [float(plan.weights[name]) for name in "ab"],
        "size": [float(plan.size_bits)],
        "omega": [plan.omega],
    }


KINDS = {
    "influence-run": Kind(write_run, read_run),
    "factors": Kind(write_factors, read_factors),
    "training-record": Kind(write_record, read_record),
    "json-index": Kind(write_json_index, read_json_index),
    "token-index": Kind(write_token_index, read_token_index),
    "spectra": Kind(spectra, read_spectra),
    "laplace": Kind(write_laplace, read_laplace),
    "bilevel-solver": Kind(write_bilevel, read_bilevel),
    "policy": Kind(lambda folder: policy(folder, 15), lambda folder: {"parameters": numbers(policy(folder, 25))}),
    "bit-plan": Kind(write_plan, read_plan),
}


def written_numbers(folder: Path, kind: str) -> Numbers:
    return json.loads((folder / f"{kind}.json").read_text("utf-8"))
