"""Two studies on real models, whose results stand in docs/studies.md: languages on SmolLM2, and three sizes of model.

    python -m benchmarks.influence._studies crosslingual
    python -m benchmarks.influence._studies scale --seed 0

One JSON object on stdout. Observations, not claims: nothing here has a bar.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.data import pydoc_rows
from benchmarks.influence._sentences import FACTS
from hesse.influence import (
    Influence,
    Query,
    Sequence,
    bm25_scores,
    keep_corpus,
    open_run,
    tokenize_query,
    tokenize_rows,
)
from hesse.influence.demo import TrainingSettings, train_language_model, train_tokenizer
from hesse.influence.demo_smollm2 import gguf_file
from hesse.influence.huggingface import load_model
from hesse.influence.studies import study_languages, study_scale

BLOCKS = r"layers\.(2|8|14|20|26|29)\.mlp\."  # of SmolLM2's thirty, from bottom to top
UPPER_BLOCKS = r"layers\.(20|23|26|29)\.mlp\."
SMALL = {"Llama, 0.2 M": (64, 2), "Llama, 3.7 M": (192, 6)}  # width, blocks


def crosslingual() -> dict[str, Any]:
    """Twelve everyday facts in three languages: do rows in one language move the same fact in another?"""
    model, tokenizer = load_model(gguf_file(), device="cpu")
    rows, queries = [], []
    for concept, languages in FACTS.items():
        for language, (first, second, prompt, completion) in languages.items():
            where = {"concept": concept, "language": language}
            rows += [{"id": f"{concept}-{language}-{i}", "text": t, **where} for i, t in enumerate((first, second))]
            queries.append(Query(f"{concept}-{language}", prompt, completion, where))
    train = tokenize_rows(rows, tokenizer, 64)
    asked = [tokenize_query(query, tokenizer, 64) for query in queries]
    with tempfile.TemporaryDirectory() as folder:
        scores = scored(model, BLOCKS, train, asked, Path(folder)).scores
        values = np.array(scores.values)
        study = study_languages(
            scores,
            {q.id: q.metadata["concept"] for q in queries},
            {q.id: q.metadata["language"] for q in queries},
        )
        names = list(scores.row_places)
    lexical = bm25_scores([s.input_ids for s in asked], [s.input_ids for s in train])
    return {
        "rows": len(rows),
        "queries": len(queries),
        **{key: study.to_dict()[key] for key in ("k", "languages", "transfer", "mean_transfer")},
        "language of the ten strongest": shares_of_languages(values, names, queries, study.languages),
        "AUC of the same fact": same_fact(values, names, queries, study.languages),
        "AUC of the same fact, BM25": same_fact(lexical, names, queries, study.languages),
    }


def scored(model: nn.Module, modules: str, train: list[Sequence], queries: list[Sequence], folder: Path) -> Any:
    """Fit EK-FAC, score everything at full rank, keep the texts, and open the run."""
    influence = Influence(model, modules=modules)
    influence.fit(train, folder, progress=False)
    keep_corpus(folder, "train", train)
    keep_corpus(folder, "queries", queries)
    influence.score(queries, train, folder, rank=None, progress=False)
    return open_run(folder)


def shares_of_languages(
    values: np.ndarray, rows: list[str], queries: list[Query], languages: list[str]
) -> list[list[float]]:
    """Of the ten rows with the highest scores of a question in language a, the share in b, mean over facts: (G, G)."""
    spoken = np.array([row.split("-")[1] for row in rows])
    found = np.zeros((len(languages), len(languages)))
    for query, scores in zip(queries, values, strict=True):
        top = spoken[np.argsort(-scores)[:10]]
        found[languages.index(query.metadata["language"])] += [(top == b).mean() for b in languages]
    return np.round(found / (len(queries) / len(languages)), 3).tolist()


def same_fact(values: np.ndarray, rows: list[str], queries: list[Query], languages: list[str]) -> list[list[float]]:
    """How often a row in b that states the fact asked for in a outscores a row in b that states another: (G, G)."""
    facts, spoken = (np.array([row.split("-")[part] for row in rows]) for part in (0, 1))
    found = np.zeros((len(languages), len(languages)))
    for query, scores in zip(queries, values, strict=True):
        for number, language in enumerate(languages):
            here = spoken == language
            same = scores[here & (facts == query.metadata["concept"])][:, None]
            others = scores[here & (facts != query.metadata["concept"])][None]
            found[languages.index(query.metadata["language"]), number] += (
                (same > others) + (same == others) / 2
            ).mean()
    return np.round(found / (len(queries) / len(languages)), 3).tolist()


def scale(seed: int = 0, *, rows: int = 200, queries: int = 16, read: int = 1500, k: int = 20) -> dict[str, Any]:
    """Two small Llamas that have read the help texts, and SmolLM2: which rows do they call influential?"""
    texts = pydoc_rows(160, read + queries, seed=seed)
    data = [{"id": f"t{i}", "text": text} for i, text in enumerate(texts[:read])]
    asked = [Query(f"q{i}", text[:80], text[80:]) for i, text in enumerate(texts[read:])]
    cutter = train_tokenizer(texts[:read], 1024)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:

        def ask(name: str, model: nn.Module, tokenizer: Any, modules: str) -> dict[str, float]:
            train = tokenize_rows(data[:rows], tokenizer, 160)
            questions = [tokenize_query(query, tokenizer, 160) for query in asked]
            run = scored(model, modules, train, questions, Path(folder) / str(len(found)))
            found[name] = run
            supervised = sum((row.labels != -100).sum() for row in questions)
            return {
                "weights": sum(p.numel() for p in model.parameters()),
                "nats a character of the queries": total_loss(model, questions) / (80 * len(asked)),
                "tokens a query": float(supervised / len(asked)),
            }

        models = {}
        for name, (width, blocks) in SMALL.items():
            model = llama(cutter, width, blocks, seed)
            cut = tokenize_rows(data, cutter, 160)
            settings = TrainingSettings(epochs=4, learning_rate=2e-3, batch_tokens=2048, warm_up=20)
            train_language_model(model, cut, settings, seed=seed, show_progress=False)
            models[name] = ask(name, model.eval(), cutter, "mlp")
        smollm2, tokenizer = load_model(gguf_file(), device="cpu")
        models["SmolLM2-135M"] = ask("SmolLM2-135M", smollm2, tokenizer, UPPER_BLOCKS)
        study = study_scale(found, k=k)
        answer = study.to_dict()
    chance = k / (2 * rows - k)  # of two random choices of k rows
    kept = {key: answer[key] for key in ("k", "runs", "jaccard", "lexical")}
    spread = study.lexical.std(0, ddof=1) / len(asked) ** 0.5
    return {
        "rows": rows, "queries": queries, "models": models, "jaccard of chance": chance, **kept,
        "standard error of lexical": spread.tolist(),
    }  # fmt: skip


def llama(tokenizer: Any, width: int, blocks: int, seed: int) -> nn.Module:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=256,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def total_loss(model: nn.Module, queries: list[Sequence]) -> float:
    """Nats of all completions."""
    from hesse.influence import CausalLMLoss, TokenExamples

    data = TokenExamples(queries)
    with torch.no_grad():
        return float(sum(CausalLMLoss()(model, data.batch([i])).per_token.sum() for i in range(len(data))))


def main(arguments: Items[str] | None = None) -> None:
    it = argparse.ArgumentParser("python -m benchmarks.influence._studies", description=__doc__)
    it.add_argument("study", choices=("crosslingual", "scale"))
    it.add_argument("--seed", type=int, default=0, help="of texts and training; crosslingual draws nothing")
    options = it.parse_args(arguments)
    started = time.perf_counter()
    result = crosslingual() if options.study == "crosslingual" else scale(options.seed)
    print(json.dumps(result | {"seconds": round(time.perf_counter() - started, 1)}, indent=1))


if __name__ == "__main__":
    main()
