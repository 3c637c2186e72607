"""The table of claims that do not hold in ``docs/limits.md``, from the kept results: checked, or rewritten with
``--write``. The reasons below it are written by hand; a test asks for one a method.
"""

import json
import sys
from pathlib import Path

from hesse._catalogue import METHODS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "limits.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- claims: written by tools/failed_claims.py -->", "<!-- end of claims -->"
SIGNS = {"higher": "at least", "lower": "at most", "inside": "within"}


def failed(results: Path = RESULTS) -> dict[str, list[dict]]:
    """Slug -> the claims of its kept full run that do not hold, in the order of the catalogue."""
    found = {}
    for method in METHODS:
        path = results / f"{method.slug}.json"
        if path.exists():
            claims = json.loads(path.read_text("utf-8"))["claims"]
            if lost := [claim for claim in claims if claim["holds"] is False]:
                found[method.slug] = lost
    return found


def totals(results: Path = RESULTS) -> tuple[int, int]:
    """How many claims of all kept runs hold, and how many there are."""
    claims = [c for path in results.glob("*.json") for c in json.loads(path.read_text("utf-8"))["claims"]]
    return sum(claim["holds"] is True for claim in claims), len(claims)


def table() -> str:
    """The whole block between the two marks."""
    held, count = totals()
    lost = failed()
    lines = [
        BEGIN,
        f"{held} of {count} claims of the kept full runs hold. These {sum(map(len, lost.values()))} do not:",
        "",
        "| Method | Claim | Measured | Bar |",
        "| --- | --- | --- | --- |",
    ]
    for slug, claims in lost.items():
        for claim in claims:
            name = claim["name"].replace("|", "\\|").replace("*", "\\*")
            bar = f"{SIGNS[claim['better']]} {number(claim['bar'])}"
            lines.append(f"| `{slug}` | {name} | {number(claim['measured'])} | {bar} |")
    return "\n".join([*lines, END])


def number(value: float | list[float] | None) -> str:
    if value is None:
        return "nothing"
    return " to ".join(map(number, value)) if isinstance(value, list) else f"{value:.4g}"


def with_table(page: str) -> str:
    """The page with its block brought up to date; raises ValueError where the marks are missing."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + table() + after


def main(arguments: list[str]) -> int:
    old = PAGE.read_text("utf-8")
    new = with_table(old)
    if "--write" in arguments:
        PAGE.write_text(new, "utf-8")
    elif new != old:
        print("docs/limits.md: the table of claims is out of date; run tools/failed_claims.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
