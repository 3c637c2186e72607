"""The picture and the table of ``docs/architecture.md``, from the imports themselves: checked, or rewritten with
``--write``.

Storeys come from the import contract in ``pyproject.toml``, pipes from the ``import`` statements of every file, those
inside functions included. An import that points up is an error here too.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape

from hesse._catalogue import METHODS

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "hesse"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- storeys: written by tools/architecture.py -->", "<!-- end of storeys -->"

WIDTH, MARGIN, LABEL = 1300, 20, 330
HEIGHT_OF_ROOM, HEIGHT_OF_FLOOR, GAP = 96, 46, 14
COLOURS = ("#9e2a2b", "#bc6c25", "#e09f3e", "#5aa469", "#2a6f97", "#6d597a", "#7d8597", "#495057", "#212529")


def storeys() -> list[list[str]]:
    """Top to bottom, the units of each storey, as the import contract has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (contract,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [[name.strip(" ()").removeprefix("hesse.") for name in layer.split("|")] for layer in contract["layers"]]


def files_of(unit: str) -> list[Path]:
    """The Python files of a subpackage, or the one file of a module."""
    folder = SOURCE / unit
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(path: Path) -> Iterator[str]:
    """Names below ``hesse`` that a file imports, each with the module it comes from."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("hesse"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hesse"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def uses() -> dict[str, frozenset[str]]:
    """Unit -> the other units it imports from; raises ValueError where one points up or sideways."""
    floors = {unit: number for number, storey in enumerate(storeys()) for unit in storey}
    found = {}
    for unit in floors:
        names = {name.split(".")[1] for path in files_of(unit) for name in imported(path) if "." in name}
        found[unit] = frozenset((names & set(floors)) - {unit})
        if wrong := sorted(other for other in found[unit] if floors[other] <= floors[unit]):
            raise ValueError(f"hesse.{unit} imports {', '.join(wrong)}, which is not below it")
    return found


def first_sentence(unit: str) -> str:
    """What the unit says of itself, up to the first full stop or colon."""
    folder = SOURCE / unit
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split())
    return re.split(r"(?<=[.])\s|: ", text, maxsplit=1)[0].rstrip(".")


def table() -> str:
    """One row a unit, top to bottom, between the two marks."""
    lines = [BEGIN, "| Unit | What it is | Stands on |", "| --- | --- | --- |"]
    order = [unit for storey in storeys() for unit in storey]
    for unit in order:
        below = ", ".join(f"`{other}`" for other in order if other in uses()[unit])
        lines.append(f"| `hesse.{unit}` | {first_sentence(unit)} | {below or 'nothing'} |")
    return "\n".join([*lines, END])


class Drawing:
    """SVG, line by line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"'
        self.lines.append(
            f'<rect {place} fill="{colour}" fill-opacity="0.14" stroke="{colour}" stroke-opacity="0.75"/>'
        )

    def pipe(self, x: float, start: float, end: float, colour: str) -> None:
        ends = f'x1="{x:g}" y1="{start:g}" x2="{x:g}" y2="{end:g}"'
        self.lines.append(f'<line {ends} stroke="{colour}" stroke-width="2"/>')
        self.lines.append(f'<circle cx="{x:g}" cy="{start:g}" r="2.5" fill="{colour}"/>')
        self.lines.append(f'<circle cx="{x:g}" cy="{end:g}" r="4.5" fill="{colour}" stroke="#ffffff"/>')

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int,
        anchor: str = "start",
        colour: str = "#212529",
        weight: str = "normal",
    ) -> None:
        font = f'font-size="{size}" font-weight="{weight}" fill="{colour}"'
        self.lines.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {font}>{escape(text)}</text>')


def picture() -> str:
    """Draw the house: a room a family, a floor a lower storey, a pipe from each unit down to every floor it uses."""
    house, methods = storeys(), [method.family for method in METHODS]
    colours = dict(zip(range(len(house)), COLOURS, strict=False))
    tops, y = [], MARGIN + 34
    for storey in house:
        tops.append(y)
        y += height_of(storey) + GAP
    left, right = MARGIN + LABEL, WIDTH - MARGIN
    drawing, free = Drawing(), MARGIN + 150  # free: where the next pipe of a whole floor goes
    for number, (storey, top) in enumerate(zip(house, tops, strict=True)):
        if not is_rooms(storey):
            drawing.box(MARGIN, top, right - MARGIN, height_of(storey), colours[number])
    for number, (storey, top) in enumerate(zip(house, tops, strict=True)):
        if is_rooms(storey):
            step = (right - left) / len(storey)
            for place, unit in enumerate(storey):
                middle = left + (place + 0.5) * step
                drawing.box(middle - step / 2 + 2, top, step - 4, HEIGHT_OF_ROOM, colours[number])
                below = floors_below([unit], house)
                for k, floor in enumerate(below):
                    x = middle + (k - (len(below) - 1) / 2) * step / 8
                    drawing.pipe(x, top + 58, tops[floor] + 7, colours[floor])
                drawing.write(middle, top + 24, unit, size=12, anchor="middle", weight="bold")
                if count := methods.count(unit):
                    drawing.write(middle, top + 42, f"{count} method{'s' * (count > 1)}", size=11, anchor="middle")
        else:
            for floor in floors_below(storey, house):
                drawing.pipe(free, top + HEIGHT_OF_FLOOR / 2, tops[floor] + 7, colours[floor])
                free += 9
    for number, (storey, top) in enumerate(zip(house, tops, strict=True)):
        if is_rooms(storey):
            drawing.write(MARGIN, top + 44, "families", size=17, colour=colours[number])
            drawing.write(MARGIN, top + 62, "none imports another", size=12)
            continue
        rows = [" · ".join(storey[k : k + 2]) for k in range(0, len(storey), 2)]
        for k, row in enumerate(rows):
            y_of_row = top + HEIGHT_OF_FLOOR / 2 + 5 + 16 * (k - (len(rows) - 1) / 2)
            drawing.write(MARGIN + 10, y_of_row, row, size=14 if len(storey) == 1 else 12, weight="bold")
    caption = "A pipe leads from what imports down to what is imported, in the colour of the storey that it ends in."
    drawing.write(MARGIN, MARGIN + 12, caption, size=13, colour="#495057")
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 8}" font-family="sans-serif" role="img">',
        "<title>The storeys of hesse: who imports whom</title>",
        f'<rect width="{WIDTH}" height="{y + 8}" fill="#ffffff"/>',
    ]
    return "\n".join([*head, *drawing.lines, "</svg>"]) + "\n"


def is_rooms(storey: list[str]) -> bool:
    """Whether the units of a storey stand side by side as rooms; a few small ones share one floor."""
    return len(storey) > 4


def height_of(storey: list[str]) -> int:
    return HEIGHT_OF_ROOM if is_rooms(storey) else HEIGHT_OF_FLOOR


def floors_below(units: list[str], house: list[list[str]]) -> list[int]:
    """Numbers of the storeys that the units import from."""
    used = frozenset().union(*(uses()[unit] for unit in units))
    return [number for number, storey in enumerate(house) if used & set(storey)]


def with_table(page: str) -> str:
    """The page with its block brought up to date; raises ValueError where the marks are missing."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + table() + after


def main(arguments: list[str]) -> int:
    expected = {PICTURE: picture(), PAGE: with_table(PAGE.read_text("utf-8"))}
    stale = [path for path, text in expected.items() if not path.exists() or path.read_text("utf-8") != text]
    if "--write" in arguments:
        for path in stale:
            path.write_text(expected[path], "utf-8")
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)}: not what the imports are; run tools/architecture.py --write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
