"""Run benchmarks: ``python -m benchmarks <slug> [--scale smoke|full] [--seed N] [--json]`` from the project's root.

Default scale: smoke, a minute or so for everything, where claims that need full size are run but not judged.
``--scale full`` judges all of them and keeps the result in ``benchmarks/results/<slug>.json``. A claim that held in the
kept result and does not hold now is named; ``--all`` ends with one table of all benchmarks.
Exit code: 0, 1 if a claim does not hold, 2 for a usage error (an unknown slug lists those there are).
"""

import argparse
import json
import re
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks._claims import Claim, ClaimFunction, PeerMissing, Scale
from benchmarks._record import keep, machine, versions
from benchmarks._summary import compare, summary_table

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
DEFAULT_SCALE = "smoke"
SEEDS = 2**31  # seeds that differ by it are one: claims may multiply a seed, and peers may refuse a large one


def find_slugs(root: Path = ROOT) -> dict[str, str]:
    """Every ``<family>/<slug>.py`` that defines CLAIMS, as slug -> module name; a leading underscore marks a helper."""
    slugs: dict[str, str] = {}
    for path in sorted(root.glob("*/*.py")):
        if not path.name.startswith("_") and re.search(r"^CLAIMS\b", path.read_text("utf-8"), re.MULTILINE):
            slugs[path.stem] = f"{root.name}.{path.parent.name}.{path.stem}"
    return slugs


def run_claim(function: ClaimFunction, scale: Scale) -> list[tuple[Claim, float]]:
    """The claims of one function, each with the seconds the function took. An error becomes a claim that fails."""
    name = function.__name__
    start = time.perf_counter()
    try:
        outcome = function(scale)
    except PeerMissing as error:
        outcome = Claim(name, None, 0.0, "higher", {"peer missing": str(error)}, note="a peer is not installed")
    except Exception as error:  # the other claims of the file must still run
        traceback.print_exc(file=sys.stderr)
        outcome = Claim(
            name, None, 0.0, "higher", {"error": f"{type(error).__name__}: {error}"}, note="raised an error"
        )
    seconds = time.perf_counter() - start
    claims = outcome if isinstance(outcome, list) else [outcome]
    return [(replace(claim, scale=scale.name), seconds) for claim in claims]


def load_claims(module_name: str) -> Sequence[ClaimFunction]:
    """CLAIMS of a module. One that cannot be imported has a single claim, which fails for that reason."""
    try:
        return import_module(module_name).CLAIMS
    except Exception as error:  # the other benchmarks of --all must still run
        reason = error

        def can_be_imported(_scale: Scale) -> Claim:
            raise reason

        return [can_be_imported]


def run_slug(slug: str, module_name: str, scale: Scale, only: str | None = None) -> dict[str, Any]:
    """Run the claims of one benchmark, printing a row for each as it ends; the record that ``--json`` prints."""
    start = time.perf_counter()
    functions = load_claims(module_name)
    chosen = [f for f in functions if only is None or only.lower() in f.__name__.lower()]
    if not chosen:
        raise LookupError(f"{slug}: no claim function named like {only!r}; there are {[f.__name__ for f in functions]}")
    here = machine()
    print(
        f"{slug}  scale {scale.name}  seed {scale.seed}  {here['cpu']}, {here['threads']} of {here['cores']} cores",
        flush=True,
    )
    rows = []
    bounded = replace(scale, seed=scale.seed % SEEDS)
    for function in chosen:
        for claim, seconds in run_claim(function, bounded):
            print(format_row(claim, seconds), flush=True)
            rows.append(claim.as_dict() | {"seconds": round(seconds, 3)})
    names = [row["name"] for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LookupError(f"{slug}: two claims share a name: {twice}")
    seconds = round(time.perf_counter() - start, 3)
    record = {"slug": slug, "seed": scale.seed, "scale": scale.name, "seconds": seconds, "claims": rows}
    return record | {"machine": here, "versions": versions()}


def format_row(claim: Claim, seconds: float) -> str:
    """One line: verdict, name, measured against bar, then what lies behind it."""
    verdict = {True: "holds", False: "FAILS", None: "not judged"}[claim.holds]
    measured = "nothing" if claim.measured is None else f"{float(claim.measured):.4g}"
    if isinstance(claim.bar, Sequence):
        target = f"in [{claim.bar[0]:g}, {claim.bar[1]:g}]"
    else:
        target = f"{'>=' if claim.better == 'higher' else '<='} {claim.bar:g}"
    behind = ", ".join(f"{key}={_short(value)}" for key, value in claim.rows.items())
    note = f"  ({claim.note})" if claim.note else ""
    return f"  {verdict:<10}  {claim.name}: {measured}, bar {target}  [{behind}]  {seconds:.1f} s{note}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    it = argparse.ArgumentParser(
        "python -m benchmarks", description="Measure the claims of a method against their bars."
    )
    it.add_argument("slug", nargs="?", help="which benchmark")
    it.add_argument("--all", action="store_true", help="every benchmark, one after the other")
    it.add_argument("--scale", choices=("smoke", "full"), default=DEFAULT_SCALE, help=f"default: {DEFAULT_SCALE}")
    it.add_argument("--seed", type=int, default=0, help="any integer; default 0")
    it.add_argument("--json", action="store_true", help="one JSON object as the last line")
    it.add_argument("--only", metavar="CLAIM", help="only claim functions whose name contains CLAIM")
    it.add_argument(
        "--keep",
        action=argparse.BooleanOptionalAction,
        help="write benchmarks/results/<slug>.json; default: at full scale, unless --only is given",
    )
    return it


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT, results: Path = RESULTS) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    slugs = find_slugs(root)
    listing = "\n".join(f"  {slug}" for slug in slugs) or "  (none yet)"
    if options.all == (options.slug is not None):
        print(f"name one benchmark, or --all:\n{listing}", file=sys.stderr)
        return 2
    chosen = list(slugs) if options.all else [options.slug]
    if unknown := set(chosen) - set(slugs):
        print(f"no benchmark called {unknown.pop()!r}; there are:\n{listing}", file=sys.stderr)
        return 2
    if options.keep and (options.scale == "smoke" or options.only is not None):
        print("--keep: only whole runs at full scale are kept; add --scale full, leave out --only", file=sys.stderr)
        return 2
    scale = Scale(options.scale, options.seed)
    write = options.keep if options.keep is not None else options.scale == "full" and options.only is None
    records, comparisons = [], []
    for slug in chosen:
        try:
            record = run_slug(slug, slugs[slug], scale, options.only)
        except LookupError as error:
            print(error, file=sys.stderr)
            return 2
        comparisons.append(compare(record, results))
        records.append(record)
        if write:
            keep(record, results / f"{slug}.json")
    if options.all:
        print(summary_table(records, comparisons), flush=True)
    else:
        for name in comparisons[0].lost:
            print(f"lost: {name} (held in the kept result)", flush=True)
    claims = [claim for record in records for claim in record["claims"]]
    held, failed = (sum(claim["holds"] is verdict for claim in claims) for verdict in (True, False))
    print(f"{held} hold, {failed} fail, {len(claims) - held - failed} not judged at {scale.name} scale", flush=True)
    if options.json:
        print(json.dumps({"runs": records} if options.all else records[0]), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
