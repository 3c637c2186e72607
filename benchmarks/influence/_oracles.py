"""B1: the numbers are exact where theory says so. B4: queries kept at rank 32 answer like whole ones.

Oracles, all computed in the run: dense matrices from Jacobians and their solves, sums, one sequence at a time, full
rank.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import pydoc_rows
from hesse.curvature.layers import select_layers
from hesse.influence import ClassificationLoss, Influence, RegressionLoss, Scores, Sequence, TokenExamples
from hesse.influence.contraction import DenseQueries, LowRankQueries, empty_queries

__all__ = ["CLAIMS", "Trained", "train_language_model"]

F64 = torch.float64
RANK = 32


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def relative(found: Any, wanted: Any) -> float:
    """Largest deviation over the largest entry."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


# ------------------------------------------------------------------------------------ B1


def dense_linear_oracle(scale: Scale) -> Claim:
    """One linear layer with squared loss: the Gauss-Newton matrix is I ⊗ A, so EK-FAC is the dense damped solve."""
    generator = torch.Generator().manual_seed(scale.seed)
    inputs, outputs, count = scale(smoke=(8, 3, 40), full=(20, 8, 200))
    x = torch.randn(count, inputs, generator=generator, dtype=F64)
    y = torch.randn(count, outputs, generator=generator, dtype=F64)
    torch.manual_seed(scale.seed)
    net = nn.Sequential(nn.Linear(inputs, outputs)).to(F64).eval()
    influence = Influence(net, loss=RegressionLoss(), fisher="exact")
    with folder() as run:
        influence.fit((x, y), run / "run", progress=False)
        found = np.array(influence.score((x, y), (x, y), run / "run", rank=None, progress=False).values)
    rows = torch.cat([x, torch.ones(count, 1, dtype=F64)], 1)
    gauss_newton = torch.kron(torch.eye(outputs, dtype=F64), rows.T @ rows / count)
    damped = gauss_newton + 0.1 * gauss_newton.diagonal().mean() * torch.eye(len(gauss_newton), dtype=F64)
    grads = ((net(x) - y).detach()[:, :, None] * rows[:, None, :]).flatten(1)
    wanted = grads @ torch.linalg.solve(damped, grads.T) / count
    sizes = {"order of the matrix": len(gauss_newton), "sequences": count}
    return Claim("B1 scores equal the dense damped solve, float64", relative(found, wanted), 1e-8, "lower", sizes)


def eigenvalue_diagonal(scale: Scale) -> Claim:
    """Λ is the diagonal of (Q_S ⊗ Q_A)ᵀ G (Q_S ⊗ Q_A), with G = JᵀHJ from the Jacobian of every logit."""
    generator = torch.Generator().manual_seed(scale.seed)
    inputs, hidden, classes, count = scale(smoke=(5, 4, 3, 8), full=(10, 8, 5, 20))
    torch.manual_seed(scale.seed)
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, classes)).to(F64).eval()
    x = torch.randn(count, inputs, generator=generator, dtype=F64)
    y = torch.randint(classes, (count,), generator=generator)
    influence = Influence(net, loss=ClassificationLoss(), fisher="exact")
    with folder() as run:
        factors = influence.fit((x, y), run / "run", progress=False)
    worst = {}
    for name, layer in influence.layers.items():
        left, right = factors[name].left, factors[name].right
        if left is None or right is None:
            raise RuntimeError(f"layer {name} was fitted without a basis")
        order = layer.out_features * layer.columns
        dense = torch.zeros(order, order, dtype=F64)
        for n in range(count):
            logits = net(x[n : n + 1])[0]
            p = logits.detach().softmax(0)
            jacobian = torch.stack([_gradient(net, layer, logit) for logit in logits])
            dense += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / count
        basis = torch.kron(left, right)
        diagonal = (basis.T @ dense @ basis).diagonal().view(layer.out_features, layer.columns)
        worst[f"layer {name}"] = relative(factors.eigenvalues(name), diagonal)
    name = "B1 eigenvalues are the diagonal of the rotated Gauss-Newton block, float64"
    return Claim(name, max(worst.values()), 1e-8, "lower", worst)


def _gradient(net: nn.Module, layer: Any, value: Tensor) -> Tensor:
    names, parameters = zip(*net.named_parameters(), strict=True)
    grads = torch.autograd.grad(value, parameters, retain_graph=True)
    return layer.matrix_from_grads(dict(zip(names, grads, strict=True))).flatten()


def sums_and_invariance(scale: Scale) -> list[Claim]:
    """In float32: terms of tokens and of layers add up, and padding, packing and batching change nothing."""
    count, ask = scale(smoke=(12, 3), full=(64, 8))
    model = _random_language_model(scale.seed)
    train, queries = _ragged_rows(count, scale.seed, "t"), _ragged_rows(ask, scale.seed + 1, "q")
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "alone": ({}, {"batch_size": 1}),
        "batches of 3": ({}, {"batch_size": 3}),
        "batches of 8, padded on the left": ({"side": "left"}, {"batch_size": 8}),
        "packed": ({"pack": True}, {"batch_tokens": 100}),
    }
    scores: dict[str, np.ndarray] = {}
    tokens = layers = 0.0
    with folder() as run:
        for way, (collation, batching) in ways.items():
            influence = Influence(model, fisher="empirical")
            data, asked = (TokenExamples(rows, **collation) for rows in (train, queries))
            influence.fit(data, run / way, progress=False, **batching)
            parts = influence.score(
                asked, data, run / way, rank=None, per_layer=True, per_token=True, progress=False, **batching
            )
            plain = influence.score(asked, data, run / way, rank=None, progress=False, **batching)
            scores[way] = np.array(plain.values)
            by_token = [[np.asarray(parts.tokens(q, row.id)).sum() for row in train] for q in range(ask)]
            tokens = max(tokens, relative(by_token, plain.values))
            layers = max(layers, relative(np.asarray(parts.layers).sum(-1), plain.values))
    apart = {way: relative(values, scores["alone"]) for way, values in scores.items()}
    return [
        Claim("B1 terms of tokens sum to the score, float32", tokens, 1e-5, "lower"),
        Claim("B1 terms of layers sum to the score, float32", layers, 1e-5, "lower"),
        Claim("B1 padding, packing and batching change no score, float32", max(apart.values()), 1e-5, "lower", apart),
    ]


def _random_language_model(seed: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def _ragged_rows(count: int, seed: int, prefix: str) -> list[Sequence]:
    rng = np.random.default_rng(abs(seed))
    rows = []
    for i in range(count):
        tokens = rng.integers(0, 32, int(rng.integers(6, 25)))
        labels = tokens.copy()
        labels[0] = -100
        rows.append(Sequence(f"{prefix}{i}", f"{prefix}{i}", tokens, labels))
    return rows


# ------------------------------------------------------------------------------------ B4


@dataclass(frozen=True)
class Trained:
    """A language model of bytes, what it was trained on, and queries: a prompt and its true continuation, held out."""

    model: nn.Module
    train: list[Sequence]
    queries: list[Sequence]
    losses: list[float]  # nats a byte, every fiftieth step


def train_language_model(
    *, width: int = 128, blocks: int = 2, length: int = 64, sequences: int, queries: int, steps: int, seed: int
) -> Trained:
    """Train a GPT-2 of that width on stretches of CPython's help texts.

    Parameters
    ----------
    width, blocks, length : int
        Of the model; its MLPs are four times as wide.
    sequences, queries : int
        Rows to train on, rows held out: of these the second half is the completion.
    steps : int
        Adam steps on 32 rows each.
    seed : int
        Of weights, rows and their order.

    Returns
    -------
    Trained
        In eval mode.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    texts = pydoc_rows(length, sequences + queries, seed=seed)
    rows = torch.tensor([list(text.encode("ascii", "replace")) for text in texts])
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=128,
        n_embd=width,
        n_layer=blocks,
        n_head=4,
        n_positions=length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        batch = rows[torch.randint(sequences, (32,), generator=generator)]
        logits = model(input_ids=batch, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            losses.append(float(loss.detach()))

    def sequence(i: int, name: str, start: int) -> Sequence:
        tokens = rows[i].numpy()
        labels = tokens.copy()
        labels[:start] = -100
        return Sequence(name, name, tokens, labels)

    train = [sequence(i, f"t{i}", 1) for i in range(sequences)]
    asked = [sequence(sequences + i, f"q{i}", length // 2) for i in range(queries)]
    return Trained(model.eval(), train, asked, losses)


def query_batching(scale: Scale) -> list[Claim]:
    """Rank 32 against full rank on a trained model of width 128: correlation, top-10, and what refinement repairs."""
    sequences, queries, steps = scale(smoke=(64, 4, 60), full=(512, 16, 500))
    trained = train_language_model(sequences=sequences, queries=queries, steps=steps, seed=abs(scale.seed))
    influence = Influence(trained.model, seed=abs(scale.seed))
    refine_topk = scale(smoke=15, full=50)
    with folder() as run:
        influence.fit(trained.train, run / "run", progress=False)

        def ask(**options: Any) -> Scores:
            return influence.score(trained.queries, trained.train, run / "run", progress=False, **options)

        full, low, refined = (
            np.array(ask(**options).values)
            for options in (
                {"rank": None},
                {"rank": RANK, "refine_topk": 0},
                {"rank": RANK, "refine_topk": refine_topk},
            )
        )
        captured = ask(rank=RANK, refine_topk=0).state["captured"]
    correlation = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(low, full, strict=True)]
    overlap, repaired = ([_overlap(a, b) for a, b in zip(scores, full, strict=True)] for scores in (low, refined))
    rows = {
        "training loss, nats a byte": trained.losses,
        "sequences": sequences,
        "least captured share of a layer": captured,
    }
    return [
        Claim(
            "B4 rank 32 correlates with full rank, mean over queries",
            float(np.mean(correlation)),
            0.98,
            "higher",
            rows | {"worst": min(correlation), "by query": correlation},
            full_only=True,
        ),
        Claim(
            "B4 rank 32 correlates with full rank, worst query",
            min(correlation),
            0.98,
            "higher",
            rows | {"by query": correlation},
            full_only=True,
        ),
        Claim(
            "B4 rank 32 finds the top 10 of full rank, mean overlap",
            float(np.mean(overlap)),
            0.8,
            "higher",
            rows | {"by query": overlap},
            full_only=True,
        ),
        Claim(
            "B4 after refinement the top 10 are those of full rank, worst query",
            min(repaired),
            1.0,
            "higher",
            {"refined each side": refine_topk, "by query": repaired},
        ),
    ]


def _overlap(a: np.ndarray, b: np.ndarray, k: int = 10) -> float:
    top = [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in (a, b)]
    return len(top[0] & top[1]) / k


def query_bytes(_scale: Scale) -> list[Claim]:
    """Bytes that a preconditioned query takes at rank 32 and in full, counted on the tensors that would hold them."""
    claims = []
    for width, bar in ((128, 3.0), (512, 10.0)):
        net = nn.Sequential(nn.Linear(width, 4 * width, device="meta"), nn.Linear(4 * width, width, device="meta"))
        stored, whole = (_bytes(net, rank, torch.float32) for rank in (RANK, None))
        rows = {"equal dtype": whole / stored, "bytes a query and block in float32": stored}
        name = f"B4 bytes of a query, full rank over rank 32, equal dtype, width {width}"
        claims.append(Claim(name, rows["equal dtype"], bar, "higher", rows))
    return claims


def _bytes(net: nn.Module, rank: int | None, dtype: torch.dtype) -> int:
    total = 0
    for layer in select_layers(net).values():
        kept: DenseQueries | LowRankQueries = empty_queries(layer, 1, rank, dtype, torch.device("meta"))
        tensors = (kept.left, kept.right) if isinstance(kept, LowRankQueries) else (kept.weight, kept.bias)
        total += sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return total


CLAIMS: list[ClaimFunction] = [
    dense_linear_oracle,
    eigenvalue_diagonal,
    sums_and_invariance,
    query_batching,
    query_bytes,
]
