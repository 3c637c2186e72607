"""`hesse rl train`: what it writes, and that it resumes."""

import json

import pytest

from tests.cli.conftest import invoke


def test_train_writes_curves_and_resumes(tmp_path):
    """Oracle: counting episodes; a second call with a larger budget keeps what the first did."""
    words = ["rl", "train", "cartpole", "--out", tmp_path / "run", "--horizon", 20, "--batch", 5, "--seeds", 2]
    first = invoke(*words, "--episodes", 10, "--json")
    assert first.exit_code == 0, first.output
    curves = json.loads(first.stdout)["curves"]
    assert {seed: curve["episodes"] for seed, curve in curves.items()} == {"0": [5, 10], "1": [5, 10]}
    second = json.loads(invoke(*words, "--episodes", 20, "--json").stdout)["curves"]
    assert second["1"]["mean_return"][:2] == curves["1"]["mean_return"]
    assert len(second["1"]["episodes"]) == 4
    assert json.loads((tmp_path / "run" / "curves.json").read_text())["curves"] == second


def test_other_settings_are_another_run(tmp_path):
    """Oracle: exit code 3, the checkpoint is of another run."""
    words = ["rl", "train", "cartpole", "--out", tmp_path, "--horizon", 10, "--batch", 2, "--episodes", 4]
    shown = invoke(*words, "--method", "nmpg")
    assert shown.exit_code == 0
    assert "Return of the batch" in shown.stdout
    assert invoke(*words, "--method", "nharpg").exit_code == 3


def test_an_environment_that_cannot_be_made(tmp_path):
    """Oracle: an error of ours that names it, in place of a trace."""
    pytest.importorskip("gymnasium")
    shown = invoke("rl", "train", "Foo-v9", "--out", tmp_path / "run")
    assert shown.exit_code == 1, shown.output
    assert "gymnasium cannot make 'Foo-v9'" in shown.stderr


def test_another_environment_is_another_run(tmp_path):
    """Oracle: exit code 3 for the same spaces under another name, which is what a checkpoint remembers."""
    pytest.importorskip("gymnasium")
    words = ["--out", tmp_path, "--horizon", 5, "--batch", 2, "--episodes", 2]
    assert invoke("rl", "train", "cartpole", *words).exit_code == 0
    assert invoke("rl", "train", "CartPole-v1", *words).exit_code == 3
