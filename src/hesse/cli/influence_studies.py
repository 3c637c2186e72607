"""`hesse influence tail|layers|wordorder|crosslingual|scale|coverage|memorisation|browse`: the studies as commands."""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Annotated, Any

import typer

from hesse.cli._report import console, emit_json, say, visible

__all__ = ["STUDIES", "browse", "coverage", "crosslingual", "layers", "memorisation", "scale", "tail", "wordorder"]

_Run = Annotated[Path, typer.Argument(help="A scored run.")]
_Runs = Annotated[list[Path], typer.Argument(help="Scored runs.")]
_Query = Annotated[list[str] | None, typer.Option("--query", help="Id of a query; may be repeated. Default: all.")]
_Opponents = Annotated[bool, typer.Option("--opponents", help="Rows that lower the completion's probability.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def _picture(path: Path | None) -> Path | None:
    # before any work; raised here it ends the command like every error of hesse
    from hesse.errors import ArgumentError

    if path is not None and path.suffix not in (".svg", ".png", ".pdf"):
        raise ArgumentError(f"plot: expected a file ending in .svg, .png or .pdf, got {path}")
    if path is not None and not path.parent.is_dir():
        raise ArgumentError(f"plot: there is no folder {path.parent}")
    return path


_Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE", callback=_picture, help="Draw it: .svg, .png or .pdf; replaced if it exists."
    ),
]
_Cell = str | int | float | None


def tail(
    run: _Run,
    query: _Query = None,
    num_tail: Annotated[
        int | None, typer.Option(min=10, help="Scores in the tail. Default: 500, or a tenth of the proponents.")
    ] = None,
    top_percent: Annotated[float, typer.Option(help="Share of the proponents whose weight is told.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    plot: _Plot = None,
    as_json: _Json = False,
) -> None:
    """Say how thinly influence is spread: what the top carries, and the power law of the tail.

    Example: hesse influence tail runs/demo --plot tail.svg
    """
    from hesse.influence.scores import open_scores
    from hesse.influence.studies import study_tail

    study = study_tail(open_scores(run), queries=query or None, num_tail=num_tail, top_percent=top_percent, seed=seed)
    headers = ("query", "proponents", f"top {top_percent:g} % carry", "rows for half", "exponent", "95 %", "tail")
    rows = []
    for q in study.queries:
        fit = (
            ("-", "-", "-")
            if q.fit is None
            else (q.fit.exponent, f"{q.fit.low:.2f} to {q.fit.high:.2f}", q.fit.num_tail)
        )
        rows.append((q.query, len(q.proponents), f"{100 * q.share_of_top:.1f} %", q.num_for_half, *fit))
    _show([study], headers, rows, {"run": str(run)}, plot, as_json=as_json)


def layers(
    run: Annotated[Path, typer.Argument(help="A run scored with --per-layer.")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Rows a query.")] = 50,
    opponents: _Opponents = False,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="KEY", help="Compare kinds of queries by this key of theirs.")
    ] = None,
    plot: _Plot = None,
    as_json: _Json = False,
) -> None:
    """Say in which layers the influence on each query sits, averaged over its strongest rows.

    "centre" is the mean depth: 0 the first block, 1 the last.

    Example: hesse influence layers runs/demo --tag kind --plot layers.svg
    """
    from hesse.influence.opened import open_run
    from hesse.influence.studies import study_layers
    from hesse.influence.studies.texts import query_tags

    opened = open_run(run)
    tags = None if tag is None else query_tags(opened, tag)
    study = study_layers(opened.scores, k=count, sign=-1 if opponents else 1, tags=tags)
    names, shares = study.blocks()
    centre = study.centre()
    rows = []
    for i, query in enumerate(study.query_ids):
        strongest = "-" if not study.num_rows[i] else names[abs(shares[i]).argmax()]
        kind = "" if study.tags is None else study.tags[i]
        middle = None if not study.num_rows[i] else float(centre[i])
        rows.append((query, kind, int(study.num_rows[i]), middle, strongest))
    headers = ("query", "tag", "rows", "centre", "strongest block")
    _show([study], headers, rows, {"run": str(run)}, plot, as_json=as_json)


def wordorder(
    run: Annotated[Path, typer.Argument(help="A fitted run.")],
    facts: Annotated[Path, typer.Option("--facts", help="JSON lines: the fields of the templates, a fact a line.")],
    same: Annotated[str, typer.Option("--same", help='The wording, such as "The {role} of {place} is {name}."')],
    completion: Annotated[str, typer.Option("--completion", metavar="FIELD", help="The field that is asked for.")],
    paraphrase: Annotated[
        list[str] | None, typer.Option("--paraphrase", help="Another wording in the same order; may be repeated.")
    ] = None,
    flipped: Annotated[
        list[str] | None, typer.Option("--flipped", help="A wording in the other order; may be repeated.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank at which each query's gradient is kept.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of other facts.")] = 0,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens a batch.")] = 4096,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code, at the commit of the fit.")
    ] = False,
    plot: _Plot = None,
    as_json: _Json = False,
) -> None:
    """Score ways to say a fact against a question about it: the same, in other words, the other way round, of others.

    Ask about facts that the model has not memorised: the losses of the variants are compared, and a warning says when
    the ratios mean nothing.

    Example: hesse influence wordorder runs/demo --facts facts.jsonl --same "The mayor of {town} is {name}."
    --completion name --flipped "{name} is the mayor of {town}."
    """
    from hesse.cli._model import build
    from hesse.cli._scoring import load_of
    from hesse.influence.query import tokenize_query
    from hesse.influence.sequences import read_json_lines, tokenize_rows
    from hesse.influence.studies import Wording, study_word_order, word_order_texts

    wording = Wording(same, completion, tuple(paraphrase or ()), tuple(flipped or ()))
    listed = [{key: str(value) for key, value in line.items()} for _where, line in read_json_lines(facts)]
    texts, asked = word_order_texts(listed, wording, seed=seed)
    folder, network, tokenizer = load_of(run, needs_texts=False, trust_remote_code=trust_remote_code)
    config, info = folder.manifest.config, folder.manifest.config["info"]
    written = tokenize_rows(texts, tokenizer, info["max_length"])
    queries = [tokenize_query(query, tokenizer, info["max_length"]) for query in asked]
    engine = build(network, config, info["modules"])
    study = study_word_order(engine, written, queries, run, rank=rank, batch_tokens=batch_tokens, seed=seed)
    found = study.to_dict()
    rows = [
        (kind["kind"], kind["ratio"], f"{kind['low']:.2f} to {kind['high']:.2f}", kind["score"], kind["loss"])
        for kind in found["kinds"]
    ]
    headers = ("text", "score over same", "95 %", "median nats a copy", "median loss, nats")
    _show([study], headers, rows, {"run": str(run)}, plot, as_json=as_json, caution=study.caution)


def crosslingual(
    runs: _Runs,
    concept: Annotated[str, typer.Option("--concept", metavar="KEY", help="Key of a query: what it asks.")] = "concept",
    language: Annotated[str, typer.Option("--language", metavar="KEY", help="Key of a query.")] = "language",
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Rows a version.")] = 10,
    plot: _Plot = None,
    as_json: _Json = False,
) -> None:
    """Say how far the rows that move a question in one language move it in another; several runs: several sizes.

    Example: hesse influence crosslingual runs/small runs/large --language lang
    """
    from hesse.influence.opened import open_run
    from hesse.influence.studies import study_languages
    from hesse.influence.studies.texts import query_tags

    studies, rows = [], []
    for run in runs:
        opened = open_run(run)
        tags = [query_tags(opened, key) for key in (concept, language)]
        study = study_languages(opened.scores, tags[0], tags[1], k=count)
        studies.append(study)
        found = study.to_dict()
        for name, shares in zip(study.languages, found["transfer"], strict=True):
            pairs = zip(study.languages, shares, strict=True)
            rows.append((run.name, name, ", ".join(f"{o} {'-' if s is None else f'{s:.2f}'}" for o, s in pairs)))
    _show(
        studies, ("run", "rows of", "influence on"), rows, {"runs": [str(run) for run in runs]}, plot, as_json=as_json
    )


def scale(
    runs: _Runs,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Rows a query.")] = 50,
    plot: _Plot = None,
    as_json: _Json = False,
) -> None:
    """Compare runs of several sizes or checkpoints on the same rows and queries: shared rows, and lexical overlap.

    Example: hesse influence scale runs/small runs/medium runs/large
    """  # noqa: DOC501 - it is the help text
    from hesse.errors import ArgumentError
    from hesse.influence.opened import open_run
    from hesse.influence.studies import study_scale

    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise ArgumentError("runs: one is named twice")
    study = study_scale({name: open_run(run) for name, run in zip(names, runs, strict=True)}, k=count)
    found = study.to_dict()
    rows = [
        (name, found["lexical"][i], ", ".join(f"{value:.2f}" for value in found["jaccard"][i]))
        for i, name in enumerate(names)
    ]
    headers = ("run", "lexical overlap", "rows shared with each")
    _show([study], headers, rows, {}, plot, as_json=as_json)


def coverage(
    run: _Run,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Most influential rows a query.")] = 100,
    size: Annotated[
        list[int] | None, typer.Option("--size", min=1, help="Rows that a filter keeps; may be repeated.")
    ] = None,
    plot: _Plot = None,
    as_json: _Json = False,
) -> None:
    """Say how many of the most influential rows a lexical filter would have kept; on scores of all rows.

    Example: hesse influence coverage runs/demo --size 1000 --size 10000
    """
    from hesse.influence.opened import open_run
    from hesse.influence.studies import study_coverage

    study = study_coverage(open_run(run), k=count, sizes=size or None)
    means = study.mean()
    rows = [(int(m), *(float(shares[i]) for shares in means.values())) for i, m in enumerate(study.sizes)]
    _show([study], ("rows kept", *means), rows, {"run": str(run)}, plot, as_json=as_json)


def memorisation(
    run: _Run,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Proponents a query.")] = 100,
    min_words: Annotated[int, typer.Option(min=1, help="Words in a row that are no accident.")] = 8,
    plot: _Plot = None,
    as_json: _Json = False,
) -> None:
    """Flag completions of which a long run of words stands, letter by letter, in their strongest proponents.

    Example: hesse influence memorisation runs/demo --min-words 12
    """
    from hesse.influence.opened import open_run
    from hesse.influence.studies import study_memorisation

    study = study_memorisation(open_run(run), k=count, min_words=min_words)
    rows = []
    for query in study.queries:
        best = query.copies[0] if query.copies else None
        longest = ("", "", "") if best is None else (best.words, best.row, best.text[:120])
        rows.append((query.query, "yes" if query.flagged else "", f"{query.covered:.2f}", *longest))
    headers = ("query", "flagged", "covered", "words", "row", "longest run")
    _show([study], headers, rows, {"run": str(run)}, plot, as_json=as_json)


def browse(
    run: _Run,
    query: Annotated[str | None, typer.Option("--query", help="Id of one query. Default: the first.")] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Rows, before copies are collapsed.")] = 50,
    opponents: _Opponents = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the random sample.")] = 0,
    plot: _Plot = None,
    as_json: _Json = False,
) -> None:
    """List the strongest rows without near-copies, and what sets them apart: metadata, and words.

    Example: hesse influence browse runs/demo --query q1 -k 100
    """
    from hesse.influence.opened import open_run
    from hesse.influence.studies import browse as look

    study = look(open_run(run), 0 if query is None else query, k=count, sign=-1 if opponents else 1, seed=seed)
    rows = [(item.rank, item.score, len(item.copies), item.row, item.text[:240]) for item in study.listed]
    _show([study], ("#", "nats", "copies", "row", "text"), rows, {"run": str(run)}, plot, as_json=as_json)
    if not as_json:
        for key, values in study.metadata.items():
            told = ", ".join(f"{value} {top} (of {everywhere:,})" for value, top, everywhere in values if top)
            say(f"{key}: {told or 'none'}")
        say("words: " + ", ".join(f"{word.word} {word.z:+.1f}" for word in study.words))


STUDIES = {
    "tail": tail,
    "layers": layers,
    "wordorder": wordorder,
    "crosslingual": crosslingual,
    "scale": scale,
    "coverage": coverage,
    "memorisation": memorisation,
    "browse": browse,
}


def _show(
    studies: Items[Any],
    headers: Items[str],
    rows: Iterable[Items[_Cell]],
    head: dict[str, Any],
    plot: Path | None,
    *,
    as_json: bool,
    caution: str | None = None,
) -> None:
    # data on stdout, talk on stderr; several studies are one object with a list of them
    if plot is not None:
        _draw(studies, plot)
    if caution is not None:
        say(f"warning: {caution}")
    if as_json:
        found = [study.to_dict() for study in studies]
        emit_json(head | (found[0] if len(found) == 1 else {"studies": found}))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console().print(table)


def _cell(value: _Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else visible(str(value))


def _draw(studies: Items[Any], path: Path) -> None:
    from hesse._optional import require

    figures = require("matplotlib.figure", extra="plot", feature="--plot")
    figure = figures.Figure(figsize=(7 * len(studies), 4.5), layout="constrained")
    axes = figure.subplots(1, len(studies), squeeze=False)[0]
    for study, own in zip(studies, axes, strict=True):
        study.plot(own)
    figure.savefig(path, dpi=150)
    say(f"wrote {path}")
