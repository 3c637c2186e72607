"""Fail if a gallery page took longer than it may: ``tools/gallery_times.py docs/_build/html/gallery.xml 60``.

Pages that did not change since the last build were not run again and are not in the file.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree


def too_long(report: str, limit: float) -> list[str]:
    """One line for each page of the JUnit report above the limit, in seconds."""
    cases = ElementTree.fromstring(report).iter("testcase")  # noqa: S314 - written by our own build
    times = [(case.get("file") or case.get("name"), float(case.get("time", "0"))) for case in cases]
    return [f"{name}: {seconds:.1f} s, at most {limit:g} allowed" for name, seconds in times if seconds > limit]


def main(path: str, limit: str) -> int:
    report = Path(path)
    if not report.exists():
        print(f"{path}: no report; did the gallery run?")
        return 1
    lines = too_long(report.read_text("utf-8"), float(limit))
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
