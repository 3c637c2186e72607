"""The README's table of methods, from the catalogue and the kept results: checked, or rewritten with ``--write``."""

import json
import sys
from pathlib import Path

from hesse._catalogue import METHODS, Method

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- methods: written by tools/readme_table.py -->", "<!-- end of methods -->"


def measured(method: Method, results: Path = ROOT / "benchmarks" / "results") -> str:
    """How many claims of the kept full-size run hold, with a link to the record."""
    path = results / f"{method.slug}.json"
    if not path.exists():
        return "no full run kept yet"
    claims = json.loads(path.read_text("utf-8"))["claims"]
    held = sum(claim["holds"] is True for claim in claims)
    return f"[{held} of {len(claims)} claims hold](benchmarks/results/{method.slug}.json)"


def papers(method: Method) -> str:
    """The first paper, linked where it is on arXiv."""
    paper = method.papers[0]
    text = f"{paper.authors} {paper.year}"
    return f"[{text}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else text


def table() -> str:
    """The whole block between the two marks."""
    rows = [
        f"| {m.title} (`{m.import_path}`) | {papers(m)} | {m.claim} | {measured(m)} | {m.status} |" for m in METHODS
    ]
    head = ["| Method | After | Held to | Measured | Status |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([BEGIN, *head, *rows, END])


def with_table(readme: str) -> str:
    """The README with the block brought up to date; raises ValueError where the marks are missing."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + table() + after


def main(arguments: list[str]) -> int:
    path = ROOT / "README.md"
    old = path.read_text("utf-8")
    new = with_table(old)
    if "--write" in arguments:
        path.write_text(new, "utf-8")
    elif new != old:
        print("README.md: the table of methods is out of date; run tools/readme_table.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
