"""The reliability programme: run its tests, count what they tried, and write the figures into ``docs/reliability.md``.

    python -m tools.reliability [--minutes 55] [--seed 1] [--only R5 R8] [--write]

Every item is a promise with a bar. An item whose tests fail, or that has none yet, is written down as such.
"""

import argparse
import ast
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks._record import machine, versions
from tools._test_runs import ROOT, Counts, OutOfTime, environment, files_with, node_ids, pytest

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: written by tools/reliability.py -->", "<!-- end of figures -->"
MET, PARTLY, NOT_MET, NOT_THERE, NOT_RUN = "met", "partly", "not met", "not there", "not run"


@dataclass
class Finding:
    """What became of one item."""

    verdict: str
    figures: str
    missing: str = ""
    details: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Budget:
    """Seconds left for the whole programme, and the seed of everything drawn."""

    ends: float
    seed: int
    mutation_minutes: float

    def left(self) -> float:
        return max(1.0, self.ends - time.monotonic())


@dataclass(frozen=True)
class Item:
    """One line of the programme."""

    number: str
    title: str
    bar: str
    run: Callable[[Budget], Finding]


def judged(counts: Counts, figures: str = "", missing: str = "") -> Finding:
    """Met if all pass and nothing is missing; known gaps and missing parts make it partly."""
    verdict = NOT_MET if counts.failed or not counts.passed else PARTLY if counts.excused or missing else MET
    return Finding(
        verdict, f"{figures}{'; ' if figures else ''}{counts}", missing, [f"failed: {f}" for f in counts.failed]
    )


def kept_claims(slug: str, words: str) -> Finding:
    """Claims of the kept full run whose name matches, with what they measured."""
    path = ROOT / "benchmarks" / "results" / f"{slug}.json"
    if not path.exists():
        return Finding(NOT_THERE, f"no full run of {slug} kept")
    claims = [c for c in json.loads(path.read_text("utf-8"))["claims"] if re.search(words, c["name"])]
    if not claims:
        return Finding(NOT_THERE, f"no such claim in the kept run of {slug}")
    held = sum(c["holds"] is True for c in claims)
    figures = "; ".join(f"{c['name']}: {_number(c['measured'])} (bar {_number(c['bar'])})" for c in claims)
    return Finding(MET if held == len(claims) else NOT_MET, f"kept full run: {figures}")


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) else str(value)


def oracles(_budget: Budget) -> Finding:
    """R1, counted from the source: the tests themselves are those of ``make test``."""
    unnamed, total, gradchecks = [], 0, 0
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        gradchecks += len(re.findall(r"\bgradg?g?check\(", text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                total += 1
                if not re.search("oracle|invariance|identity", (ast.get_docstring(node) or "").lower()):
                    unnamed.append(f"names no oracle: {path.relative_to(ROOT).as_posix()}::{node.name}")
    return Finding(
        NOT_MET if unnamed else MET,
        f"{total - len(unnamed)} of {total} test functions name an oracle, an identity or an invariance; "
        f"gradcheck is called in {gradchecks} places",
        "which tolerance holds for which function is in the tests alone; `make test` runs them",
        unnamed,
    )


def laws(budget: Budget) -> Finding:
    """R2: the laws once as in every run, then in shuffled order with new examples."""
    counts = pytest(budget.left(), *files_with(r"^@given|^    @given"), "-m", "not nightly", "-k", LAWS)
    names = node_ids("tests/linalg/test_laws.py", "-m", "not nightly")
    rng, runs, flakes = random.Random(budget.seed), 0, []  # noqa: S311  an order, no secret
    while runs < 20 and budget.left() > 60:
        rng.shuffle(names)
        seed = f"--hypothesis-seed={rng.randrange(2**31)}"
        flakes += pytest(budget.left(), *names, seed, HESSE_NEW_EXAMPLES="1").failed
        runs += 1
    counts.failed += flakes
    shuffled = (
        f"{len(names)} laws on 50 trees of operators each; {runs} shuffled runs on new trees, {len(flakes)} flakes"
    )
    return judged(counts, shuffled, "" if runs == 20 else f"{20 - runs} of the 20 shuffled runs, for want of time")


LAWS = "law or random or partition or round_trip or packing or codes or tiling or shift or alpha or question or thinned"


def invariances(budget: Budget) -> Finding:
    words = "padding or company or add_up or order or batch_size or shared or blocks_change or checkpointed or fused"
    counts = pytest(budget.left(), "tests/influence", "tests/crash", "-k", words, "-m", "not slow")
    two = files_with(r"world_size|torchrun|init_process_group|gloo", "tests/influence")
    return judged(counts, "", "" if two else "1 against 2 processes: influence does not run on several yet")


def conformance(budget: Budget) -> Finding:
    pattern = r"parametrize_with_checks|check_optimizer\(|check_layer\(|check_linear_operator\("
    files = [name for name in files_with(pattern) if not name.startswith("tests/testing")]
    calls = sum(len(re.findall(pattern, (ROOT / name).read_text("utf-8"))) for name in files)
    words = "conform or promise or suite or check or checks or operator"
    return judged(
        pytest(budget.left(), *files, "-k", words, "-m", "not slow"),
        f"suites called in {calls} places of {len(files)} files",
    )


def bad_input(budget: Budget) -> Finding:
    table = pytest(budget.left(), "tests/conformance/test_bad_input.py", "-k", "test_bad_input")
    own = pytest(budget.left(), "tests/influence/test_bad_input.py")
    rows = table.passed + table.excused + len(table.failed)
    figures = f"{rows} rows of the table over methods ({table}), influence's own table ({own})"
    both = Counts(table.passed + own.passed, table.failed + own.failed, table.excused + own.excused, own.skipped)
    return judged(both, figures, f"{both.excused} rows keep the rule in part only; each has its reason in the table")


def run_claim(function: str, budget: Budget, scale: str = "full") -> tuple[dict, str]:
    """One claim of the influence benchmark's reliability file, in a process of its own: its row, or the error."""
    code = (
        "import json, torch; torch.set_num_threads(1)\n"
        "from benchmarks._claims import Scale\n"
        f"from benchmarks.influence._reliability import {function} as claim\n"
        f"print(json.dumps(claim(Scale({scale!r}, {budget.seed})).as_dict()))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        child = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=budget.left(), check=False
        )
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    return (json.loads(child.stdout.splitlines()[-1]), "") if child.returncode == 0 else ({}, child.stderr[-300:])


def kills(budget: Budget) -> Finding:
    row, error = run_claim("kills_resume_bit_identical", budget)
    crash = pytest(budget.left(), "tests/crash")
    if not row:
        return Finding(NOT_MET, f"the claim did not run; tests/crash: {crash}", details=[error])
    cases = [value for value in row["rows"].values() if isinstance(value, dict)]
    done, same, harmed = (sum(case[key] for case in cases) for key in ("completed", "identical", "damaged_states"))
    figures = (
        f"{row['rows']['kills']} kills at random moments, {same} of {done} completed runs bit-identical, "
        f"{harmed} damaged states seen after a kill, {row['rows']['seconds']:.0f} s; tests/crash"
    )
    if not row["holds"]:
        crash.failed.append("kills_resume_bit_identical")
    return judged(crash, figures)


def faults(budget: Budget) -> Finding:
    words = "fault or short_writes or order or disk or limit"
    counts = pytest(budget.left(), "tests/io/test_calls.py", "tests/crash", "-k", words)
    figures = "every file call in turn fails; a model, a data set and the memory fail in the middle"
    return judged(counts, figures)


def damage(budget: Budget) -> Finding:
    counts = pytest(budget.left(), "tests/io/test_damage.py")
    row, error = run_claim("damage_is_refused", budget)
    artifacts = "4 kinds of file x (300 truncations + 500 flips in the head + 300 in the data), every bit of a manifest"
    if not row:
        return Finding(NOT_MET, f"{artifacts}: {counts}", details=[error])
    if not row["holds"]:
        counts.failed.append("damage_is_refused")
    plain = {key: value for key, value in row["rows"].items() if isinstance(value, int | float)}
    return judged(counts, f"{artifacts}; a whole influence run: {plain}, share refused {_number(row['measured'])}")


def writers(budget: Budget) -> Finding:
    counts = pytest(
        budget.left(),
        "tests/io/test_lock.py",
        "tests/crash",
        "tests/cli",
        "-k",
        "lock or writer or read_only or interrupt or holder",
    )
    return judged(counts)


def hostile(budget: Budget) -> Finding:
    files = len(node_ids("tests/security/test_hostile_files.py", "-k", "test_hostile_file"))
    return judged(pytest(budget.left(), "tests/security"), f"{files} hostile files")


def determinism(budget: Budget) -> Finding:
    counts = pytest(budget.left(), "tests/conformance/test_determinism.py")
    return judged(counts, "every method twice in one process and in two, bit by bit")


def memory(budget: Budget) -> Finding:
    finding = kept_claims("influence_ekfac", r"(?i)memory|rss|plan|estimate")
    counts = pytest(budget.left(), "tests/influence", "-k", "plan and (memory or peak or within)")
    finding.figures += f"; tests of the plan: {counts}"
    if counts.failed:
        finding.verdict, finding.details = NOT_MET, [f"failed: {name}" for name in counts.failed]
    return finding


def processes(budget: Budget) -> Finding:
    files = files_with(r"world_size|torchrun|init_process_group|gloo")
    if not files:
        return Finding(NOT_THERE, "no test", "two processes")
    missing = "" if any("influence" in name for name in files) else "influence itself on two processes"
    return judged(pytest(budget.left(), *files), ", ".join(files), missing)


def traps(budget: Budget) -> Finding:
    words = "singular or deficient or tied or frozen or underflow or duplicate or zero_gradient or one_example"
    return judged(
        pytest(budget.left(), "tests/linalg", "tests/curvature", "tests/influence", "-k", words, "-m", "not slow")
    )


def viewer(budget: Budget) -> Finding:
    finding = kept_claims("influence_viewer", ".")
    counts = pytest(budget.left(), "tests/web/test_app.py")
    finding.figures += f"; tests/web/test_app.py: {counts}"
    finding.verdict = NOT_MET if counts.failed else finding.verdict
    return finding


def mutation(budget: Budget) -> Finding:
    minutes = min(budget.mutation_minutes, budget.left() / 60 - 0.5)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "mutants.json"
        command = [sys.executable, "-m", "tools.mutation", "--seed", str(budget.seed), "--minutes", f"{minutes:.2f}"]
        child = subprocess.run(
            [*command, "--json", str(report)], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )
        if not report.exists():
            return Finding(NOT_MET, "did not run", details=[child.stderr[-300:]])
        found = json.loads(report.read_text("utf-8"))
    share = found["killed"] / max(1, found["tried"])
    units = ", ".join(f"{unit} {killed} of {tried}" for unit, (killed, tried) in sorted(found["by_unit"].items()))
    details = [f"survived: `{m['path']}:{m['line']}` {m['change']}" for m in found["survivors"]]
    details += [f"left out: `{path}`: {reason}" for path, reason in sorted(found["left_out"].items())]
    whole = found["tried"] >= 300
    missing = "" if whole else f"{found['tried']} of 300 mutants in {minutes:.0f} minutes; all of io is `make nightly`"
    verdict = NOT_MET if share < 0.8 else MET if whole else PARTLY
    figures = f"{found['killed']} of {found['tried']} mutants killed, {share:.0%} ({units})"
    return Finding(verdict, figures, missing, details)


def upgrades(budget: Budget) -> Finding:
    versions_kept = sorted(path.name for path in (ROOT / "tests" / "formats").iterdir() if (path / "bit-plan").is_dir())
    kinds = sum(path.is_dir() for version in versions_kept for path in (ROOT / "tests" / "formats" / version).iterdir())
    figures = f"{kinds} kinds of file, as versions {', '.join(versions_kept)} wrote them, give the numbers they gave"
    return judged(pytest(budget.left(), "tests/formats"), figures)


def suite(budget: Budget) -> Finding:
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    blocked = "--disable-socket" in settings and '"error"' in settings
    counts = pytest(
        budget.left(),
        "tests/test_bare_core.py",
        "tests/test_packages.py",
        "tests/test_exported_members.py",
        "tests/test_catalogue.py",
    )
    if not blocked:
        counts.failed.append("pyproject.toml: warnings are no errors, or sockets are open")
    figures = (
        "warnings are errors, sockets are blocked; every module imports on the bare core, from the source and from the "
        "wheel, whose files are those of the source"
    )
    return judged(counts, figures, "times of the whole suite are those of `make test`")


PROGRAMME = (  # what is quick first, so that a short run tells much
    Item("R1", "Oracle for every numerical function", "every test names one", oracles),
    Item("R17", "Upgrades", "old artifacts are read, or the version is named", upgrades),
    Item("R15", "Viewer soak", "no 5xx, no growth, p95 below 100 ms", viewer),
    Item("R13", "Two processes", "equal to one", processes),
    Item("R5", "Bad input", "8 rows a method, 300 in all: an error that names it, or NaN", bad_input),
    Item("R11", "Determinism", "bit-equal", determinism),
    Item("R8", "Damaged files", "all refused", damage),
    Item("R10", "Hostile files", "20 kept, none runs or swells", hostile),
    Item("R9", "Two writers, read-only folders, interrupts", "the second is refused", writers),
    Item("R18", "The suite itself", "warnings are errors, no sockets, bare core", suite),
    Item("R7", "Faults of the file system", "the old state or the new one", faults),
    Item("R6", "kill -9 at random", "300 kills, files bit-identical", kills),
    Item("R4", "Conformance suites", "every class", conformance),
    Item("R12", "Memory ceiling", "1.1x at ten times the data; the plan within its bounds", memory),
    Item("R3", "Scores do not depend on batching", "1e-10 in float64, 1e-5 in float32", invariances),
    Item("R14", "Numerical traps", "each a test and an answer", traps),
    Item("R2", "Laws on made-up operators", "50 examples each, no flake in 20 shuffled runs", laws),
    Item("R16", "Mutation testing", "80 % of 300 killed", mutation),
)


def where() -> str:
    """Machine, commit and date in one line."""
    here, what = machine(), versions()
    source = f"commit {what['commit']}" if what["commit"] else "a source archive"
    software = f"{source}, Python {what['python']}, torch {what['torch']}"
    return f"{datetime.now(UTC).date().isoformat()}, {software}, {here['cpu']}, {here['cores']} cores"


def block(findings: dict[str, Finding], head: str, minutes: float) -> str:
    """The generated part of the page."""
    order = sorted(findings, key=lambda number: int(number[1:]))
    titles = {item.number: item for item in PROGRAMME}
    lines = [
        BEGIN,
        f"{head}; {minutes:.0f} minutes.",
        "",
        "| | What | Bar | Found | Verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for number in order:
        finding, item = findings[number], titles[number]
        lines.append(f"| {number} | {item.title} | {item.bar} | {_cell(finding.figures)} | {finding.verdict} |")
    gaps = [f"- **{number}**: {_cell(findings[number].missing)}" for number in order if findings[number].missing]
    lines += ["", "## What is missing", "", *(gaps or ["Nothing known."])]
    details = [f"- **{number}** {_cell(text)}" for number in order for text in findings[number].details]
    lines += ["", "## What failed, and which mutants survived", "", *(details or ["Nothing."]), END]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def with_block(page: str, text: str) -> str:
    """The page with the generated part replaced; raises ValueError where the marks are missing."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + text + after


def run(items: Iterable[Item], budget: Budget) -> dict[str, Finding]:
    """Every item in turn; one that breaks is not met, and the others still run."""
    findings = {}
    for item in items:
        start = time.monotonic()
        try:
            finding = item.run(budget)
        except OutOfTime:
            finding = Finding(NOT_RUN, "the time was up", "all of it, for want of time")
        except Exception as error:
            finding = Finding(NOT_MET, f"broke: {type(error).__name__}: {error}")
        finding.seconds = time.monotonic() - start
        findings[item.number] = finding
        print(
            f"{item.number:<4} {finding.verdict:<10} {finding.seconds:6.0f} s  {item.title}: {finding.figures}",
            flush=True,
        )
    return findings


def main(arguments: list[str]) -> int:
    it = argparse.ArgumentParser("python -m tools.reliability", description=__doc__.split("\n")[0])
    it.add_argument("--minutes", type=float, default=55.0, help="for everything; default 55")
    it.add_argument("--mutation-minutes", type=float, default=25.0, help="of them for mutants; default 25")
    it.add_argument("--seed", type=int, default=1)
    it.add_argument("--only", nargs="+", metavar="R", help="only these items")
    it.add_argument("--write", action="store_true", help="write docs/reliability.md")
    options = it.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would tests
    begun = time.monotonic()
    budget = Budget(begun + 60 * options.minutes, options.seed, options.mutation_minutes)
    findings = run([item for item in PROGRAMME if not options.only or item.number in options.only], budget)
    minutes = (time.monotonic() - begun) / 60
    if options.write:
        PAGE.write_text(with_block(PAGE.read_text("utf-8"), block(findings, where(), minutes)), "utf-8")
    print(f"{sum(f.verdict == MET for f in findings.values())} of {len(findings)} met, {minutes:.1f} minutes")
    return 1 if any(finding.verdict == NOT_MET for finding in findings.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
