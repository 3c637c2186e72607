"""Ask a model about planted facts, trace its answers, and measure how often the tracing finds the supporting texts.

Three methods see the same model and the same texts: EK-FAC influence, the gradient dot product, and BM25 over tokens.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesse.curvature.layers import Picker
from hesse.errors import ArgumentError
from hesse.influence.corpus import keep_corpus
from hesse.influence.demo import Stage, recalled
from hesse.influence.engine import Influence
from hesse.influence.lexical import bm25_scores
from hesse.influence.report import Column, ReportData, ReportEntry, ReportQuery, collect, write_report
from hesse.influence.retrieval import recall_at_k, support_mask
from hesse.influence.sequences import Sequence

__all__ = ["Asking", "DemoResult", "answer_questions"]

_COLUMNS = [
    Column("supports", "states it", "Whether the text was written to state this fact."),
    Column("dot", "dot product", "Rank of the text by the dot product of gradients."),
    Column("bm25", "BM25", "Rank of the text by the words it shares with the question."),
]


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked and how it is traced."""

    num_shown: int = 10  # questions a reader sees, a random choice
    num_measured: int = 100  # questions that enter the recall, the shown ones among them
    modules: Picker = "all-linear"
    rank: int | None = None  # full: the model is small
    list_length: int = 10
    batch_tokens: int = 4096


@dataclass(frozen=True, slots=True)
class DemoResult:
    """How the demo went. Recall is measured over the questions that the model answers right."""

    recall_at_3: dict[str, float]  # "ekfac", "dot", "bm25"
    facts_recalled: int  # of the shown questions
    num_shown: int
    num_measured: int
    num_right: int  # of the measured questions
    seconds: float
    report: Path
    data: ReportData


def answer_questions(
    prepare: Callable[[], Stage], asking: Asking, out: Path, *, seed: int = 0, show_progress: bool | None = None
) -> DemoResult:
    """Prepare a model, ask it, trace the answers by three methods, and write the report.

    Parameters
    ----------
    prepare : callable
        Returns the stage; its time counts.
    asking : Asking
        Numbers of questions, and what is tracked.
    out : Path
        The HTML file; replaced if it exists.
    seed : int, default 0
        Of the choice of questions and of the sampled labels.
    show_progress : bool, optional
        Default: if stderr is a terminal.

    Returns
    -------
    DemoResult
        The shown questions are the first ``num_shown`` of a random order, whether the model knows them or not.

    Raises
    ------
    ArgumentError
        If fewer than one question is to be shown or measured, or the model answers none of the measured ones.
    """
    if asking.num_shown < 1 or asking.num_measured < asking.num_shown:
        raise ArgumentError(
            f"asking: expected 1 <= num_shown <= num_measured, got {asking.num_shown} and {asking.num_measured}"
        )
    start = time.perf_counter()
    stage = prepare()
    order = np.random.default_rng([seed, 4]).permutation(len(stage.questions))[: asking.num_measured]
    questions = [stage.questions[i] for i in order]
    right = recalled(stage.model, questions)
    if not right.any():
        raise ArgumentError(f"the model answers none of {len(questions)} questions: it was trained too little")
    scores = {
        "ekfac": _influence(stage, "ekfac", questions, asking, seed, show_progress),
        "dot": _influence(stage, "identity", questions, asking, seed, show_progress),
        "bm25": bm25_scores([q.input_ids for q in questions], [s.input_ids for s in stage.sequences]),
    }
    mask = support_mask(stage.world.supports, [q.id for q in questions], [s.id for s in stage.sequences])
    recall = {name: float(recall_at_k(values, mask)[right].mean()) for name, values in scores.items()}
    shown = questions[: asking.num_shown]
    data = _shown(stage, shown, scores, mask, right, asking, seed, show_progress)
    data = replace(data, settings=_method_card(data, recall, right))
    write_report(data, out)
    return DemoResult(
        recall_at_3=recall,
        facts_recalled=int(right[: len(shown)].sum()),
        num_shown=len(shown),
        num_measured=len(questions),
        num_right=int(right.sum()),
        seconds=time.perf_counter() - start,
        report=out,
        data=data,
    )


def _engine(stage: Stage, strategy: str, asking: Asking, seed: int) -> tuple[Influence, Path]:
    engine = Influence(
        stage.model, strategy="ekfac" if strategy == "ekfac" else "identity", modules=asking.modules, seed=seed
    )
    return engine, stage.folder / f"run-{strategy}-{seed}"


def _influence(
    stage: Stage, strategy: str, questions: list[Sequence], asking: Asking, seed: int, show_progress: bool | None
) -> NDArray[np.float32]:
    engine, run = _engine(stage, strategy, asking, seed)
    engine.fit(
        stage.sequences,
        run,
        batch_tokens=asking.batch_tokens,
        progress=show_progress,
        info={"model": stage.name, "modules": str(asking.modules)},
    )
    scores = engine.score(
        questions,
        stage.sequences,
        run,
        rank=asking.rank,
        refine_topk=0,
        batch_tokens=asking.batch_tokens,
        progress=show_progress,
    )
    return np.array(scores.values)


def _shown(
    stage: Stage,
    questions: list[Sequence],
    scores: dict[str, NDArray[np.float32]],
    mask: NDArray[np.bool_],
    right: NDArray[np.bool_],
    asking: Asking,
    seed: int,
    show_progress: bool | None,
) -> ReportData:
    # scored again with token and layer terms, which would be too many for all questions and all texts
    engine, run = _engine(stage, "ekfac", asking, seed)
    listed = _listed(scores["ekfac"][: len(questions)], [s.text or s.id for s in stage.sequences], asking.list_length)
    candidates = [stage.sequences[j] for j in listed]
    keep_corpus(run, "train", candidates)
    keep_corpus(run, "queries", questions)
    engine.score(
        questions,
        candidates,
        run,
        rank=asking.rank,
        refine_topk=0,
        per_token=True,
        per_layer=True,
        batch_tokens=asking.batch_tokens,
        progress=show_progress,
    )
    data = collect(run, k=asking.list_length)
    place = {sequence.id: j for j, sequence in enumerate(stage.sequences)}
    ranks = {name: _ranks(scores[name][: len(questions)]) for name in ("dot", "bm25")}
    queries = []
    for i, query in enumerate(data.queries):

        def marked(entries: Items[ReportEntry], i: int = i) -> list[ReportEntry]:
            return [
                replace(
                    entry,
                    extra={
                        "supports": bool(mask[i, place[entry.id]]),
                        **{name: int(rank[i, place[entry.id]]) for name, rank in ranks.items()},
                    },
                )
                for entry in entries
            ]

        note = "The model answers this question." if right[i] else "The model does not answer this question."
        queries.append(
            ReportQuery(
                query.id, query.prompt, query.completion, marked(query.proponents), marked(query.opponents), note
            )
        )
    return replace(
        data,
        title="Which texts made the model say that?",
        queries=queries,
        columns=_COLUMNS,
        num_rows=len(stage.sequences),
    )


def _listed(values: NDArray[np.float32], texts: Items[str], length: int) -> list[int]:
    # the texts that a list can hold, with their copies, which it counts: at either end of a question's scores
    plain = [" ".join(text.split()) for text in texts]
    found: set[str] = set()
    for own in (*values, *-values):
        strongest: set[str] = set()
        for place in np.argsort(-own, kind="stable").tolist():
            strongest.add(plain[place])
            if len(strongest) == length:
                break
        found |= strongest
    return [place for place, text in enumerate(plain) if text in found]


def _ranks(values: NDArray[np.float32]) -> NDArray[np.int64]:
    # 1 is best; equal scores share the better rank
    ordered = -np.sort(-values, axis=1)
    return np.stack([np.searchsorted(-row, -own, side="left") + 1 for row, own in zip(ordered, values, strict=True)])


def _method_card(data: ReportData, recall: dict[str, float], right: NDArray[np.bool_]) -> dict[str, object]:
    found = ", ".join(f"{name} {value:.2f}" for name, value in recall.items())
    return {**data.settings, "recall at 3": f"{found}, over {int(right.sum())} facts that the model knows"}
