"""Fingerprints of losses: one for the same code and settings, another for anything else."""

import functools
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.influence._reliability import TRACKED, tiny_model, tiny_sequences
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.influence.engine import Influence
from hesse.influence.identity import loss_identity
from hesse.influence.objective import CausalLMLoss, ClassificationLoss, RegressionLoss

QUIET = {"progress": False, "checkpoint_seconds": 0.0, "unit_size": 4}


def compiled(source: str, **names: Any) -> dict[str, Any]:
    """Names that a piece of source defines, in a module of its own called like this one."""
    space = {"__name__": __name__, **names}
    exec(compile(textwrap.dedent(source), "loss.py", "exec"), space)  # noqa: S102
    return space


BASE = """
import torch
SCALE = 2.0
def helper(x):
    "Says something."
    return x * SCALE
class Inner:
    factor = 1
class Mine:
    limit = 3
    def __init__(self, weight=1.0): self.weight = weight
    def __call__(self, model, batch, labels=None): return helper(model) + self.weight + self.limit
    def cotangents(self, logits, valid): yield [c for c in (lambda: Inner.factor,)]
"""


def test_the_losses_of_hesse_are_their_names():
    """Oracle: the names, which runs of earlier versions hold."""
    for kind in (CausalLMLoss, ClassificationLoss, RegressionLoss):
        assert loss_identity(kind(), "x") == kind.__name__


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("return x * SCALE", "return x / SCALE"),
        ("factor = 1", "factor = 2"),
        ("limit = 3", "limit = 4"),
        ("+ self.weight", "- self.weight"),
        ("weight=1.0", "weight=2.0"),
        ("lambda: Inner", "lambda: 2 * Inner"),
        ("def cotangents", "def cotangent"),
    ],
)
def test_other_code_is_another_loss(old, new):
    """Oracle: source that differs in one place: a method, a helper, a constant, a class attribute, a default."""
    assert old in BASE
    one, again = (loss_identity(compiled(BASE)["Mine"](), "x") for _ in range(2))
    assert one == again
    assert loss_identity(compiled(BASE.replace(old, new))["Mine"](), "x") != one


@pytest.mark.parametrize(
    ("old", "new"), [("import torch", "import torch\n\n\n# a comment"), ("class Inner", "\n\nclass Inner")]
)
def test_what_does_not_run_does_not_count(old, new):
    """Oracle: the same code lines further down, and a comment."""
    assert loss_identity(compiled(BASE)["Mine"](), "x") == loss_identity(
        compiled(BASE.replace(old, new))["Mine"](), "x"
    )


class Held:
    """Whatever it is given."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, model: Any, batch: Any, labels: Any = None) -> Any:
        return self.value


@dataclass(frozen=True, slots=True)
class Frozen:
    value: Any
    inner: CausalLMLoss = field(default_factory=CausalLMLoss)


class Tuned(Held):
    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.itself = self


def scaled(factor: float) -> Any:
    def inner(x: float) -> float:
        return factor * x

    return inner


@functools.cache
def remembered(x: float) -> float:
    return x


@pytest.mark.parametrize("kind", [Held, Frozen, Tuned])
@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: 0.1, lambda: 0.2),
        (lambda: 1, lambda: 1.0),
        (lambda: True, lambda: 1),
        (lambda: [1, (2, {"a": "b"})], lambda: [1, (2, {"a": "c"})]),
        (lambda: {"a", "b", "c"}, lambda: {"a", "b"}),
        (lambda: torch.arange(3.0), lambda: torch.arange(3.0) + 1e-6),
        (lambda: torch.arange(3), lambda: torch.arange(3.0)),
        (lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 2)),
        (lambda: np.ones(2), lambda: np.ones(2, dtype=np.float32)),
        (lambda: np.float64(1), lambda: np.float64(2)),
        (lambda: torch.float32, lambda: torch.float64),
        (lambda: scaled(2.0), lambda: scaled(3.0)),
        (lambda: functools.partial(scaled, 2.0), lambda: functools.partial(scaled, 3.0)),
        (lambda: remembered, lambda: functools.cache(scaled)),
        (lambda: Held(1).__call__, lambda: Held(2).__call__),
        (lambda: Held(Held(1)), lambda: Held(Held(2))),
        (lambda: torch.exp, lambda: torch.log),
        (lambda: [].append, lambda: [1].append),
        (
            lambda: torch.nn.CrossEntropyLoss(label_smoothing=0.1),
            lambda: torch.nn.CrossEntropyLoss(label_smoothing=0.2),
        ),
    ],
)
def test_other_settings_are_another_loss(kind, make, other):
    """Oracle: two objects made alike agree, and a third of other settings does not."""
    one, again, third = (loss_identity(kind(value()), "x") for value in (make, make, other))
    assert one == again != third
    assert "Influence object" not in one


def test_it_is_the_same_in_every_process(tmp_path):
    """Oracle: processes of other hash seeds, the module compiled anew in one and read from its cache in the other."""
    (tmp_path / "mine.py").write_text(
        BASE + "class Full(Mine):\n    names = {'a', 'b', 'c'}\n    def known(self, x): return x in {'d', 'e', 'f'}\n"
    )
    code = "import mine; from hesse.influence.identity import loss_identity; print(loss_identity(mine.Full(), 'x'))"
    found = set()
    for seed in "12":
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": f"src:{tmp_path}", "PATH": ""}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    (one,) = found
    assert one.startswith("mine.Full, ")


def test_a_declared_fingerprint_is_taken_at_its_word():
    """Oracle: written by hand; not that of an inner loss to which a wrapper hands on what it lacks."""

    class Declared(Held):
        @property
        def fingerprint(self) -> str:
            return "v1"

    class Method(Held):
        def fingerprint(self) -> str:
            return f"v{self.value}"

    class Wrapper(Held):
        def __getattr__(self, name: str) -> Any:
            return getattr(self.value, name)

    assert loss_identity(Declared(1), "x") == loss_identity(Declared(sys.stdout), "x")
    assert loss_identity(Declared(1), "x").endswith("Declared, declared v1")
    assert loss_identity(Method(3), "x").endswith("Method, declared v3")
    assert "declared v3" not in loss_identity(Wrapper(Method(3)), "x")
    wrong = Held(1)
    wrong.fingerprint = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ArgumentTypeError, match=r"loss: .*fingerprint.*int"):
        loss_identity(wrong, "x")


@pytest.mark.parametrize(
    "value", [torch.Generator, lambda: iter([1]), lambda: sys.stdout], ids=["rng", "iterator", "file"]
)
def test_what_cannot_be_seen_is_a_stranger(value):
    """Oracle: the caller's mark is in the name, with the reason and the remedy."""
    one, other = (loss_identity(Held([value()]), mark) for mark in ("ab12", "cd34"))
    assert one.replace("ab12", "cd34") == other != one
    assert "loss.value is a" in one
    assert "`fingerprint`" in one


class Weighted(CausalLMLoss):
    """The loss itself, with something that no fingerprint covers or with a number."""

    __slots__ = ("extra",)

    def __init__(self, extra: Any) -> None:
        object.__setattr__(self, "extra", extra)


def run(folder, extra, *, engine=None, **more):
    engine = engine or Influence(tiny_model(), modules=TRACKED, loss=Weighted(extra))
    engine.fit(tiny_sequences(8), folder, **QUIET, **more)
    return engine


def test_a_run_is_resumed_by_the_loss_that_began_it(tmp_path):
    """Oracle: the run refused to other settings of one class, in fit and in score, and taken up by the same ones."""
    run(tmp_path, 1.0)
    same = run(tmp_path, 1.0)
    assert same.score(tiny_sequences(2, 1, prompt=2), tiny_sequences(8), tmp_path, **QUIET).values.shape == (2, 8)
    with pytest.raises(ArgumentError, match="differs in loss"):
        run(tmp_path, 2.0)
    other = Influence(tiny_model(), modules=TRACKED, loss=Weighted(2.0))
    with pytest.raises(ArgumentError, match="other settings: loss"):
        other.score(tiny_sequences(2, 1, prompt=2), tiny_sequences(8), tmp_path, **QUIET)
    run(tmp_path, 2.0, overwrite=True)


def test_a_loss_without_a_fingerprint_works_until_it_is_resumed(tmp_path):
    """Oracle: one object fits and scores; another, which may hold another loss, is refused with reason and remedy."""
    engine = run(tmp_path, torch.Generator())
    run(tmp_path, None, engine=engine)
    assert engine.score(tiny_sequences(2, 1, prompt=2), tiny_sequences(8), tmp_path, **QUIET).values.shape == (2, 8)
    with pytest.raises(ArgumentError, match=r"loss\.extra is a torch\._C\.Generator.*`fingerprint`"):
        run(tmp_path, torch.Generator())
