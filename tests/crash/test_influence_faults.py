"""The user's own code fails in the middle: the model, the data set, the memory. The run holds its last complete state.

As for `tests/crash/test_influence_crash.py` the oracle is the run that nothing disturbed, bit by bit.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.influence._reliability import (
    CASES,
    TRACKED,
    TinyLanguageModel,
    content,
    memory_folder,
    tiny_model,
    tiny_sequences,
    work,
)
from hesse.curvature import BatchStream, ggn, hessian
from hesse.errors import ArgumentError, HesseError, MemoryLimitError
from hesse.influence.engine import Influence
from hesse.influence.examples import TokenExamples
from hesse.influence.run import open_folder
from hesse.influence.streams import StreamExamples
from hesse.io import MANIFEST_NAME, check_file, file_path, manifest_exists, verify_run
from hesse.io.atomic import is_temporary

CASE = CASES[1]
STEPS = {"batch_tokens": 24, "unit_size": 4, "checkpoint_seconds": 0.0, "progress": False}
PASSES = (0, 1, 5, 11, 17, 23, 29)  # of a fit and a question: in the covariances, the eigenvalues, and the scores


class UserError(Exception):
    """Not hesse's: it must come out as it is."""


@pytest.fixture
def tmp_path():
    """A folder in memory where there is one: to wait for a disk at each sync takes long and shows nothing."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def uninterrupted() -> Iterator[dict[str, bytes]]:
    with memory_folder() as folder:
        work(folder / "run", CASE)
        yield content(folder / "run")


class Failing:
    """Counts the calls and raises in the n-th."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.count = at, error, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at + 1:
            raise self.error


def in_forward(fault: Failing, model: TinyLanguageModel) -> TinyLanguageModel:
    model.blocks[1].register_forward_pre_hook(lambda _module, _inputs: fault())
    return model


def in_backward(fault: Failing, model: TinyLanguageModel) -> TinyLanguageModel:
    def hook(_module: object, _inputs: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _gradient: fault())

    model.blocks[0][2].register_forward_hook(hook)
    return model


def ask(folder: Path, model: TinyLanguageModel, data: object = None, **blocking: object) -> None:
    data = tiny_sequences(CASE.sequences) if data is None else data
    engine, settings = Influence(model, modules=TRACKED, **CASE.options), STEPS | blocking
    engine.fit(data, folder, **settings)
    engine.score(tiny_sequences(3, 1, prompt=2), data, folder, **CASE.question, **settings)


def holds_what_it_names(folder: Path) -> None:
    """No temporary file, nothing that the manifest does not name, and every file it names is whole."""
    if not folder.exists():
        return
    assert [path for path in folder.rglob("*") if is_temporary(path.name)] == []
    if manifest_exists(folder):
        assert verify_run(folder) == []
        for name, entry in open_folder(folder).manifest.files.items():
            check_file(file_path(folder, name), entry)
    else:
        assert [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")] == []


@pytest.mark.parametrize("where", [in_forward, in_backward])
def test_a_model_that_raises(where, uninterrupted, tmp_path):
    """Oracle: the error itself, the manifest, and the uninterrupted run once the model works again."""
    stages = set()
    for index in PASSES:
        folder, model = tmp_path / str(index), tiny_model()
        with pytest.raises(UserError, match="in the middle"):
            ask(folder, where(Failing(index, UserError("in the middle")), model))
        holds_what_it_names(folder)
        stages.add(str(open_folder(folder).stage("fit").get("stage")) if manifest_exists(folder) else "none")
        assert all(parameter.requires_grad for parameter in model.parameters())
        work(folder, CASE)
        assert content(folder) == uninterrupted, index
    assert len(stages) >= 3, stages


def test_a_model_that_raised_is_as_before(tmp_path):
    """Oracle: the model's own output and hooks; a second call on the same object works."""
    fault = Failing(3, UserError("once"))
    model = in_forward(fault, tiny_model())
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(UserError, match="once"):
        ask(tmp_path / "run", model)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    ask(tmp_path / "run", model)
    assert verify_run(tmp_path / "run") == []


class Loader(TokenExamples):
    """A data set whose n-th batch does not come, or comes short."""

    def fails(self, fault: Failing) -> "Loader":
        object.__setattr__(self, "fault", fault)
        return self

    def batch(self, indices):
        try:
            self.fault()
        except IndexError:
            return {key: value[:-1] for key, value in super().batch(indices).items()}
        return super().batch(indices)


@pytest.mark.parametrize("index", PASSES)
def test_a_loader_that_raises(index, uninterrupted, tmp_path):
    """Oracle: as above; the batches are read ahead in another thread, whose error arrives here."""
    data = Loader(tiny_sequences(CASE.sequences)).fails(Failing(index, UserError("no such file")))
    with pytest.raises(UserError, match="no such file"):
        ask(tmp_path / "run", tiny_model(), data)
    holds_what_it_names(tmp_path / "run")
    work(tmp_path / "run", CASE)
    assert content(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("index", PASSES[:6])
def test_a_batch_that_comes_short(index, uninterrupted, tmp_path):
    """Oracle: as above. It must not go on, as later sequences would have another's name; the data set is named."""
    data = Loader(tiny_sequences(CASE.sequences)).fails(Failing(index, IndexError()))
    with pytest.raises(HesseError, match=r"dataset: its batch of \d+ sequences, .* holds \d+; batch\(\) must collate"):
        ask(tmp_path / "run", tiny_model(), data)
    holds_what_it_names(tmp_path / "run")
    work(tmp_path / "run", CASE)
    assert content(tmp_path / "run") == uninterrupted


def test_a_stream_that_ends_early(uninterrupted, tmp_path):
    """Oracle: as above; the first pass counts the sequences, a later one is shorter."""
    rows, begun = tiny_sequences(CASE.sequences), 0

    def read():
        nonlocal begun
        begun += 1
        return iter(rows if begun <= good else rows[:13])

    for good in (1, 2, 3):
        begun, folder = 0, tmp_path / str(good)
        with pytest.raises(HesseError, match="ended after 13 sequences"):
            ask(folder, tiny_model(), StreamExamples(read))
        holds_what_it_names(folder)
        work(folder, CASE)
        assert content(folder) == uninterrupted, good


OUT_OF_MEMORY = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "host": MemoryError(),
    "torch on the host": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
@pytest.mark.parametrize("where", [in_forward, in_backward])
def test_out_of_memory(where, kind, uninterrupted, tmp_path):
    """Oracle: the argument that helps, the folder and the cause are in the message; with smaller batches it goes on."""
    for index in PASSES[1::2]:
        folder = tmp_path / str(index)
        with pytest.raises(MemoryLimitError, match=r"batch_tokens: .*smaller batch_tokens") as caught:
            ask(folder, where(Failing(index, OUT_OF_MEMORY[kind]), tiny_model()))
        assert str(folder) in str(caught.value)
        assert caught.value.__cause__ is OUT_OF_MEMORY[kind]
        holds_what_it_names(folder)
        ask(folder, tiny_model(), batch_tokens=10)
        assert verify_run(folder) == []
        assert content(folder).keys() == uninterrupted.keys()


def test_other_runtime_errors_are_not_taken_for_it(tmp_path):
    """Oracle: the error of the model, unchanged."""
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        ask(tmp_path / "run", in_forward(Failing(4, RuntimeError("mat1 and mat2 shapes")), tiny_model()))
    assert type(caught.value) is RuntimeError
    assert not (tmp_path / "run" / MANIFEST_NAME).exists() or verify_run(tmp_path / "run") == []


class Shrinking:
    """A loader with fewer batches in its second pass, or one that raises there."""

    def __init__(self, batches: list, then: BaseException | None = None) -> None:
        self.batches, self.then, self.passes = batches, then, 0

    def __iter__(self):
        self.passes += 1
        if self.passes == 1:
            yield from self.batches
            return
        yield self.batches[0]
        if self.then is not None:
            raise self.then


@pytest.mark.parametrize("matrix", [hessian, ggn])
def test_a_matrix_over_a_failing_loader(matrix):
    """Oracle: the loader's own error, or one that names what it lacks; never the sum over what came."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    batches = [(torch.randn(4, 3).double(), torch.randint(2, (4,))) for _ in range(3)]

    def product(loader: Shrinking) -> Tensor:
        held = BatchStream(loader)
        if matrix is ggn:
            operator = ggn(lambda net, batch: net(batch[0]), model, held)
        else:
            operator = hessian(lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1]), model, held)
        vector = torch.ones(operator.shape[1], dtype=torch.float64)
        first = operator @ vector
        torch.testing.assert_close(operator @ vector, first)
        return first

    with pytest.raises(ArgumentError, match="gave 1 batches, 3 in an earlier pass"):
        product(Shrinking(batches))
    with pytest.raises(UserError, match="disk"):
        product(Shrinking(batches, UserError("disk")))
