"""The table at the end of ``python -m benchmarks --all``, and what a run has lost against the kept results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Comparison", "compare", "summary_table"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run of a benchmark beside the kept full-size one.

    Parameters
    ----------
    lost : tuple of str
        Claims that held in the kept result and do not hold now, by name. A claim that this size does not judge is
        not lost.
    gone : tuple of str
        Claims that held in the kept result and that a run of the same size no longer has.
    gained : tuple of str
        Claims that did not hold in the kept result and hold now.
    kept : (int, int) or None
        How many claims of the kept result hold, and how many it has; None where nothing is kept.
    """

    lost: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    gained: tuple[str, ...] = ()
    kept: tuple[int, int] | None = None


def compare(record: Mapping[str, Any], results: Path) -> Comparison:
    """Set a run beside ``results/<slug>.json``, which must still be the older one."""
    path = results / f"{record['slug']}.json"
    if not path.exists():
        return Comparison()
    old = json.loads(path.read_text("utf-8"))
    before = {claim["name"]: claim["holds"] for claim in old["claims"]}
    now = {claim["name"]: claim["holds"] for claim in record["claims"]}
    held = [name for name, holds in before.items() if holds is True]
    return Comparison(
        lost=tuple(name for name in held if now.get(name) is False),
        gone=tuple(name for name in held if name not in now) if record["scale"] == old["scale"] else (),
        gained=tuple(name for name, holds in before.items() if holds is False and now.get(name) is True),
        kept=(len(held), len(before)),
    )


def summary_table(records: Sequence[Mapping[str, Any]], comparisons: Sequence[Comparison]) -> str:
    """One row a benchmark, slowest first, then the sums and the names of what was lost."""
    head = ("benchmark", "hold", "fail", "not judged", "seconds", "kept: hold of all", "lost")
    rows = []
    for record, comparison in sorted(zip(records, comparisons, strict=True), key=lambda pair: -pair[0]["seconds"]):
        kept = "nothing kept" if comparison.kept is None else "{} of {}".format(*comparison.kept)
        rows.append((record["slug"], *_verdicts(record), record["seconds"], kept, len(comparison.lost)))
    sums = [sum(row[column] for row in rows) for column in (1, 2, 3, 4)]
    rows.append(("all", *sums, "", sum(len(comparison.lost) for comparison in comparisons)))
    cells = [head, *(tuple(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        row[0].ljust(widths[0]) + "".join(f"  {c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in cells
    ]
    lines[1:1] = lines[-1:-1] = ["-" * len(lines[0])]
    for record, comparison in zip(records, comparisons, strict=True):
        lines += [f"lost: {record['slug']}: {name} (held in the kept result)" for name in comparison.lost]
        lines += [f"gone: {record['slug']}: {name} (held in the kept result)" for name in comparison.gone]
        lines += [f"gained: {record['slug']}: {name}" for name in comparison.gained]
    return "\n".join(lines)


def _verdicts(record: Mapping[str, Any]) -> tuple[int, int, int]:
    held, failed, unjudged = (sum(claim["holds"] is v for claim in record["claims"]) for v in (True, False, None))
    return held, failed, unjudged
