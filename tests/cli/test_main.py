"""The table of commands: start-up without torch, exit codes, and one clear line an error."""

import json
import os
import re
import subprocess
import sys
import types
from typing import Annotated

import pytest
import typer

from hesse.cli.main import app
from hesse.errors import ArgumentError, ArtifactError, MissingDependencyError
from tests.cli.conftest import invoke

HEAVY = {"torch", "transformers", "scipy", "datasets", "pyarrow"}


def test_help_loads_nothing_heavy():
    """Oracle: sys.modules of a fresh process after ``hesse --help`` and the help of every command."""
    code = (
        "import sys\nfrom hesse.cli.main import app\n"
        "for words in [[], ['influence'], ['influence', 'fit'], ['influence', 'score'], ['methods'], ['verify']]:\n"
        "    try: app([*words, '--help'], prog_name='hesse')\n"
        "    except SystemExit as stop: assert stop.code == 0, words\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(re.search(r"LOADED (.*)", done.stdout)[1].split())
    assert not HEAVY & loaded
    assert "typer" in loaded


def test_help_is_quick():
    """Oracle: a clock: the best of three fresh processes takes less than 0.4 s of CPU more than a bare Python."""

    def seconds(code):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        after = os.times()
        return (after.children_user - before.children_user) + (after.children_system - before.children_system)

    start = "from hesse.cli.main import main; import sys; sys.argv = ['hesse', '--help']; main()"
    assert min(seconds(start) for _ in range(3)) - min(seconds("pass") for _ in range(3)) < 0.4


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ArgumentError("rank: too\x1b[31m\nbig"), 1, "hesse: rank: too␛[31m↵big"),
        (ArtifactError("run: damaged"), 3, "hesse: run: damaged"),
        (MissingDependencyError("needs x"), 4, "hesse: needs x"),
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written is left, and the same command begins anew"),
    ],
)
def test_errors_end_in_one_line_and_their_code(monkeypatch, error, code, line):
    """Oracle: the table of exit codes; nothing on stdout, one line without control characters on stderr."""

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("hesse.io.verify_run", fail)
    done = invoke("verify", "somewhere")
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", line + "\n")


def test_our_own_faults_are_not_hidden(monkeypatch):
    """Oracle: an error that is not hesse's keeps its type and traceback."""

    def fail(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("hesse.io.verify_run", fail)
    assert isinstance(invoke("verify", "somewhere").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["influence", "fit"],
        ["influence", "fit", "m", "--data", "d", "--run", "r", "--strategy", "magic"],
        ["influence", "fit", "m", "--data", "d", "--run", "r", "--dtype", "float16"],
        ["influence", "fit", "m", "--data", "d", "--run", "r", "--max-length", "1"],
        ["influence", "score", "r", "--queries", "q", "--rank", "0"],
        ["influence", "score", "r", "--queries", "q", "--rank", "half"],
        ["influence", "top", "r", "-k", "0"],
        ["influence", "export", "r", "--out", "scores.csv"],
        ["methods", "--family", "nonsense"],
    ],
)
def test_wrong_usage_ends_in_2(words):
    """Oracle: the exit code of wrong usage, with nothing on stdout."""
    done = invoke(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr


def test_the_contract_of_options():
    """Oracle: the options others script against, written out here: taking one away must be noticed."""
    group = typer.main.get_command(app)
    expected = {
        "fit": "--data --run --modules --strategy --fisher --damping --positions --max-sequences --dtype --seed "
        "--overwrite --max-length --batch-tokens --revision --trust-remote-code --json",
        "score": "--queries --data --rank --refine-topk --per-token --per-layer --json",
        "top": "--query -k --opponents --json",
        "report": "--out --redact --max-chars -k --json",
        "export": "--out --json",
    }
    for name, options in expected.items():
        command = group.commands["influence"].commands[name]
        found = {option for parameter in command.params for option in parameter.opts}
        assert set(options.split()) <= found, name
    for name, options in {"methods": "--json --family", "verify": "--json --sha256"}.items():
        found = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert set(options.split()) <= found


def test_the_demo_is_loaded_when_asked_for(monkeypatch):
    """Oracle: a stand-in module: its options, its help, its errors and exit codes are the command's own."""

    def demo(model: str = "tiny", as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        """Stand in for the demonstration."""
        if model == "bad":
            raise ArgumentError("model: unknown")
        if model == "slow":
            raise KeyboardInterrupt
        typer.echo(json.dumps([model, as_json]))

    module = types.ModuleType("hesse.cli.demo")
    module.__dict__["demo"] = demo
    monkeypatch.setitem(sys.modules, "hesse.cli.demo", module)
    assert json.loads(invoke("demo", "--model", "smollm2", "--json").stdout) == ["smollm2", True]
    assert json.loads(invoke("demo").stdout) == ["tiny", False]
    assert "Stand in for the demonstration" in invoke("demo", "--help").stdout
    assert "demo" in invoke("--help").stdout
    codes = {"--model=bad": 1, "--model=slow": 130, "--nonsense": 2}
    assert {option: invoke("demo", option).exit_code for option in codes} == codes


def test_the_version_is_printed():
    """Oracle: the package's own."""
    from hesse import __version__

    done = invoke("--version")
    assert (done.exit_code, done.stdout) == (0, f"{__version__}\n")


def test_methods_come_from_the_catalogue():
    """Oracle: the catalogue itself."""
    from hesse._catalogue import METHODS

    listed = json.loads(invoke("methods", "--json").stdout)["methods"]
    assert [method["slug"] for method in listed] == [method.slug for method in METHODS]
    only = json.loads(invoke("methods", "--json", "--family", METHODS[0].family).stdout)["methods"]
    assert {method["family"] for method in only} == {METHODS[0].family}
    table = invoke("methods")
    assert table.exit_code == 0
    assert METHODS[0].family in table.stdout
