"""Does a text help whichever way round it says it? Variants of facts, scored as if each were in training once more.

A query asks for the second phrase of a relation after the first. Texts that say the same, that say it in other words,
with the phrases in the other order, or of somebody else, are scored against it, as ratios to the text of the query.

The trap: on facts that the model knows by heart the text of the query has no gradient left, and every ratio to it
blows up. So the losses of the variants are compared too, and where they differ by more than a factor of two the study
says that its ratios mean nothing.   Shapes: F facts, K kinds of variants.
"""

import string
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hesse.errors import ArgumentError, NumericalError
from hesse.influence.engine import Influence
from hesse.influence.examples import as_examples, plan_batches
from hesse.influence.plots import BLUE, ORANGE, axes_or_new
from hesse.influence.query import Query
from hesse.influence.run import keeping_latest
from hesse.influence.sequences import Row, Sequence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["WordOrderStudy", "Wording", "study_word_order", "word_order_texts"]

_SAME = "same"
_FRAGMENTS = ("completion only", "prompt only")  # fewer words, less loss for that reason: shown, but not judged
_FACTOR = 2.0  # losses further apart than this make ratios meaningless
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Wording:
    """Ways to state one relation, as templates over the fields of a fact, such as "the {role} of {place} is {name} .".

    ``completion`` names the field that is asked for: the query is ``same`` up to it. ``swap`` names the fields that are
    exchanged for another fact's, one at a time; default: all of them.
    """

    same: str
    completion: str
    paraphrases: tuple[str, ...] = ()
    flipped: tuple[str, ...] = ()
    swap: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if f"{{{self.completion}}}" not in self.same:
            raise ArgumentError(f"same: expected a template with {{{self.completion}}}, got {self.same!r}")
        if self.same.index(f"{{{self.completion}}}") == 0:
            raise ArgumentError(f"same: {{{self.completion}}} comes first, and there is no prompt: {self.same!r}")
        for template in (self.same, *self.paraphrases, *self.flipped):
            _fields(template)
        for name in self.swap or ():
            if name not in self.fields:
                raise ArgumentError(f"swap: {name!r} is no field of {self.same!r}")

    @property
    def fields(self) -> list[str]:
        """Names of the fields of ``same``."""
        return _fields(self.same)


@dataclass(frozen=True, slots=True)
class WordOrderStudy:
    """Scores and losses of every variant of every fact."""

    facts: list[str]
    kinds: list[str]  # "same" first
    scores: np.ndarray  # (F, K) nats
    losses: np.ndarray  # (F, K) nats, summed over the tokens of a variant
    seed: int

    @property
    def ratios(self) -> np.ndarray:
        """Scores over that of the text of the query, (F, K)."""
        return self.scores / self.scores[:, :1]

    def medians(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take the median ratio of each kind over facts, with a 95 % interval by bootstrap over facts.

        Returns
        -------
        median, low, high : ndarray, shape (K,)
            The first entry, of "same", is 1.
        """
        ratios = self.ratios
        drawn = np.random.default_rng(self.seed).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
        low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975], axis=0)
        return np.median(ratios, axis=0), low, high

    @property
    def loss_ratios(self) -> np.ndarray:
        """Median over facts of the loss of each kind over that of the text of the query, (K,)."""
        return np.median(self.losses / np.maximum(self.losses[:, :1], np.finfo(float).tiny), axis=0)

    @property
    def caution(self) -> str | None:
        """Why the ratios mean little, or None: whole statements whose losses differ by more than a factor of two."""
        ratios = self.loss_ratios
        whole = [i for i, kind in enumerate(self.kinds) if kind not in _FRAGMENTS]
        apart = [i for i in whole if not 1 / _FACTOR <= ratios[i] <= _FACTOR]
        if apart:
            worst = max(apart, key=lambda i: abs(np.log(max(ratios[i], np.finfo(float).tiny))))
            return (
                f"the texts are not alike to the model: {self.kinds[worst]!r} has {ratios[worst]:.3g} times the loss "
                f"of {_SAME!r} ({np.median(self.losses[:, 0]):.3g} nats), more than {_FACTOR:g} times apart. A text "
                "known by heart has hardly a gradient, and ratios to it blow up; a wording foreign to the model has a "
                "large one. Ask about facts that it has not memorised, in words that it knows"
            )
        if negative := int((self.scores[:, 0] <= 0).sum()):
            return f"on {negative} of {len(self.facts)} facts the text of the query is no proponent of it"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python.

        Returns
        -------
        dict
            JSON values.
        """
        median, low, high = self.medians()
        loss = np.median(self.losses, axis=0)
        kinds = [
            {
                "kind": kind,
                "ratio": float(median[i]),
                "low": float(low[i]),
                "high": float(high[i]),
                "score": float(np.median(self.scores[:, i])),
                "loss": float(loss[i]),
                "loss_ratio": float(self.loss_ratios[i]),
            }
            for i, kind in enumerate(self.kinds)
        ]
        return {
            "study": "wordorder",
            "units": "nats",
            "facts": len(self.facts),
            "kinds": kinds,
            "caution": self.caution,
        }

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the median ratio of each kind with its interval, every fact a dot.

        Parameters
        ----------
        ax : Axes, optional
            Default: new ones.

        Returns
        -------
        Axes
            A kind a line; the caution, if there is one, as its title.
        """
        axes = axes_or_new(ax)
        median, low, high = self.medians()
        places = np.arange(len(self.kinds))
        colours = [ORANGE if kind.startswith("flipped") else BLUE for kind in self.kinds]
        for place, ratios, colour in zip(places, self.ratios.T, colours, strict=True):
            axes.plot(ratios, np.full(len(ratios), place), ".", color=colour, alpha=0.25, markeredgewidth=0)
            axes.plot([low[place], high[place]], [place, place], color=colour, linewidth=3)
        axes.scatter(median, places, s=60, c=colours, zorder=3)
        for value in (0, 1):
            axes.axvline(value, color="0.7", linewidth=1, zorder=0)
        reach = max(1.0, float(np.abs([low, high]).max()))
        axes.set(xlim=(-0.4 * reach, 1.3 * reach), xlabel="score, over that of the text of the query")
        axes.set(yticks=places, yticklabels=self.kinds)
        axes.invert_yaxis()
        if self.caution is not None:
            axes.set_title("not to be trusted: losses differ too much", color=ORANGE, fontsize="medium")
        return axes


def word_order_texts(
    facts: Items[Mapping[str, str]], wording: Wording, *, seed: int = 0
) -> tuple[list[Row], list[Query]]:
    """Write the variants of every fact, and its query.

    Kinds: "same", "paraphrase i", "flipped i", "swapped <field>" (that field another fact's), "completion only",
    "prompt only" and "unrelated" (another fact altogether). A kind that the facts do not allow, such as a swap of a
    field in which they do not differ, is left out.

    Parameters
    ----------
    facts : sequence of mapping
        At least two; the fields of the templates, and optionally "id". Facts that the model has not memorised.
    wording : Wording
        The templates.
    seed : int, default 0
        Of the choice of other facts.

    Returns
    -------
    rows : list of dict
        ``{"id", "text", "fact", "kind"}``, K a fact, for `tokenize_rows`.
    queries : list of Query
        One a fact, for `tokenize_query`.

    Raises
    ------
    ArgumentError
        If there are fewer than two facts, a field is missing, or an id repeats.
    """
    if len(facts) < 2:
        raise ArgumentError(f"facts: expected at least two, to swap between, got {len(facts)}")
    templates = (wording.same, *wording.paraphrases, *wording.flipped)
    for number, fact in enumerate(facts):
        for template in templates:
            for name in _fields(template):
                if name not in fact:
                    raise ArgumentError(f"facts: number {number} has no {name!r}, which {template!r} needs")
    ids = [str(fact.get("id", number)) for number, fact in enumerate(facts)]
    if len(set(ids)) < len(ids):
        raise ArgumentError("facts: an id occurs twice")
    rng = np.random.default_rng([seed, 5])
    head = wording.same[: wording.same.index(f"{{{wording.completion}}}")]
    others = {
        name: _others(rng, [{name: fact[name]} for fact in facts])
        for name in (wording.fields if wording.swap is None else wording.swap)
    }
    strangers = _others(rng, [{name: fact[name] for name in wording.fields} for fact in facts])
    rows: list[Row] = []
    queries: list[Query] = []
    for number, (name, fact) in enumerate(zip(ids, facts, strict=True)):
        prompt = head.format_map(fact)
        gap = " " if prompt.endswith(" ") else ""  # the space belongs to the word after it, as tokenizers have it
        queries.append(Query(name, prompt.removesuffix(" "), gap + fact[wording.completion], {"fact": name}))
        texts = {_SAME: wording.same.format_map(fact)}
        texts |= {f"paraphrase {i}": t.format_map(fact) for i, t in enumerate(wording.paraphrases, 1)}
        texts |= {f"flipped {i}": t.format_map(fact) for i, t in enumerate(wording.flipped, 1)}
        for field, chosen in others.items():
            if chosen is not None:
                texts[f"swapped {field}"] = wording.same.format_map({**fact, field: facts[chosen[number]][field]})
        texts |= {_FRAGMENTS[0]: fact[wording.completion], _FRAGMENTS[1]: prompt.strip()}
        if strangers is not None:
            texts["unrelated"] = wording.same.format_map(facts[strangers[number]])
        rows += [{"id": f"{name}/{kind}", "text": t, "fact": name, "kind": kind} for kind, t in texts.items()]
    return rows, queries


def study_word_order(
    influence: Influence,
    rows: Items[Sequence],
    queries: Items[Sequence],
    run_dir: Path | str,
    *,
    rank: int | None = 32,
    batch_tokens: int = 4096,
    seed: int = 0,
    progress: bool | None = None,
) -> WordOrderStudy:
    """Score the variants of every fact against its query, as if each were in the training data once more.

    Parameters
    ----------
    influence : Influence
        As the run was fitted.
    rows, queries : sequence of Sequence
        What `word_order_texts` wrote, tokenised; "fact" and "kind" stand in the metadata of rows.
    run_dir : path
        A finished fit. The scores are kept there as another question; the run's latest scores stay what they were.
    rank, batch_tokens, progress : see `Influence.score`
        As there.
    seed : int, default 0
        Of the bootstrap.

    Returns
    -------
    WordOrderStudy
        See its ``caution`` before its ratios.

    Raises
    ------
    ArgumentError
        If a row does not say its fact and kind, or facts have different kinds.
    NumericalError
        If the text of a query has no effect on it at all, as when nothing in it is predicted.

    Notes
    -----
    F·K sequences are scored against F queries, although only a fact's own are read: a pass over so few costs little.

    References
    ----------
    R. Grosse, J. Bae, C. Anil et al. (2023), arXiv 2308.03296.
    """
    facts = [query.id for query in queries]
    place: dict[tuple[str, str], str] = {}
    for row in rows:
        if not {"fact", "kind"} <= row.metadata.keys():
            raise ArgumentError(f"rows: {row.id!r} does not say which fact and kind it is; see word_order_texts")
        place[str(row.metadata["fact"]), str(row.metadata["kind"])] = row.row
    kinds = list(dict.fromkeys(kind for _fact, kind in place))
    if missing := [(fact, kind) for fact in facts for kind in kinds if (fact, kind) not in place]:
        raise ArgumentError(f"rows: fact {missing[0][0]!r} has no {missing[0][1]!r}")
    if not kinds or kinds[0] != _SAME:
        raise ArgumentError(f"rows: expected kind {_SAME!r} first, got {kinds[:1]}")
    losses = _row_losses(influence, list(rows), batch_tokens)
    with keeping_latest(run_dir):
        scores = influence.score(
            list(queries), list(rows), run_dir, rank=rank, batch_tokens=batch_tokens, progress=progress
        )
    chosen = [[place[fact, kind] for kind in kinds] for fact in facts]
    values = [[scores.values[i, scores.row_places[row]] for row in own] for i, own in enumerate(chosen)]
    if silent := [fact for fact, own in zip(facts, values, strict=True) if own[0] == 0]:
        raise NumericalError(
            f"study_word_order: the text of query {silent[0]!r} scores 0, and nothing is a ratio to it"
        )
    summed = [[losses[row] for row in own] for own in chosen]
    return WordOrderStudy(facts, kinds, np.array(values, dtype=np.float64), np.array(summed), seed)


def _fields(template: str) -> list[str]:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ArgumentError(f"wording: {template!r} is no template: {error}") from error
    if "" in names:
        raise ArgumentError(f"wording: name every field of {template!r}, as in {{town}}")
    return list(dict.fromkeys(names))


def _others(rng: np.random.Generator, parts: list[dict[str, str]]) -> list[int] | None:
    # for each a random other one that differs in every field, or None if there is one without such another
    found = []
    for own in parts:
        able = [i for i, other in enumerate(parts) if all(other[name] != own[name] for name in own)]
        if not able:
            return None
        found.append(able[int(rng.integers(len(able)))])
    return found


@torch.no_grad()
def _row_losses(influence: Influence, rows: list[Sequence], batch_tokens: int) -> dict[str, float]:
    examples = as_examples(rows)
    device = next(influence.model.parameters()).device
    totals = dict.fromkeys(examples.rows, 0.0)
    for indices in plan_batches(examples.lengths, range(len(examples)), batch_tokens):
        batch = {name: tensor.to(device) for name, tensor in examples.batch(indices).items()}
        for i, loss in zip(indices, influence.loss(influence.model, batch).per_token.sum(1).tolist(), strict=True):
            totals[examples.rows[i]] += loss
    return totals
