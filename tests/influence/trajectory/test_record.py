"""Tests of hesse.influence.trajectory.record."""

import pytest
import torch

from hesse.errors import ArgumentError, ArtifactError
from hesse.influence import ClassificationLoss, as_examples
from hesse.influence.trajectory import SGD, AdamW, Recorder, open_record, optimizer_of, record_replay, replay
from hesse.io import verify_run
from tests.influence._tiny import classifier, points

LOSS = ClassificationLoss()


def build(name: str, model) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), 0.2, momentum=0.9, weight_decay=0.01, nesterov=True)
    if name == "adam":
        return torch.optim.Adam(model.parameters(), 0.02, betas=(0.8, 0.99), eps=1e-6)
    groups = [{"params": matrices}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, 0.02, weight_decay=0.3)


def loop(folder, optimizer, *, steps=9, stop=None, start=0, model=None, scheduler=None, **options):
    """A plain training loop that clips, with a schedule of rates, recorded; returns model, optimizer and recorder."""
    x, y = points(10)
    recorder = Recorder(folder, model, optimizer, clip_norm=0.3, every=4, dataset=(x, y), **options)
    for t in range(start, steps if stop is None else stop):
        batch = [(3 * t + k) % 10 for k in range(4)]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        recorder.step(batch)
        scheduler.step()
    return recorder


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_replay_arrives_where_torch_did(name, tmp_path):
    """Oracle: torch.optim itself: the replayed run of a recorded loop ends in the same weights, float64, 1e-10."""
    model = classifier()
    optimizer = build(name, model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    record = loop(tmp_path / "r", optimizer, model=model, scheduler=scheduler).finish()
    assert (len(record), record.checkpoints) == (9, (0, 4, 8, 9))
    assert verify_run(tmp_path / "r") == []
    again = open_record(tmp_path / "r")
    ended = replay(classifier(seed=7), points(10), again.schedule(), initial=again.weights(0), loss=LOSS)
    for key, value in model.named_parameters():
        torch.testing.assert_close(ended[key], value.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(again.weights(9)[key], value.detach(), rtol=0, atol=0)
    assert again.optimizer == optimizer_of(optimizer, model, clip_norm=0.3)[0]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_replay_records_itself(name, tmp_path):
    """Oracle: the record that a loop of torch left: the same weights, running means and order."""
    model = classifier()
    optimizer = build(name, model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    record = loop(tmp_path / "r", optimizer, model=model, scheduler=scheduler).finish()
    options = {"initial": record.weights(0), "loss": LOSS, "every": 4}
    again = record_replay(tmp_path / "again", classifier(), points(10), record.schedule(), **options)
    assert again.schedule() == record.schedule()
    assert again.checkpoints == record.checkpoints
    assert again.manifest.parents == record.manifest.parents
    for step in record.checkpoints:
        for key, value in record.weights(step).items():
            torch.testing.assert_close(again.weights(step)[key], value, rtol=1e-9, atol=1e-11)
    if name == "adamw":
        for key, value in record.moments(8).items():
            torch.testing.assert_close(again.moments(8)[key], value, rtol=1e-8, atol=1e-14)


def test_interrupted_run_is_taken_up(tmp_path):
    """Oracle: the uninterrupted run. A loop stopped after 5 steps and taken up from there leaves the same record."""
    results = []
    for name, cut in (("whole", False), ("cut", True)):
        model = classifier()
        optimizer = build("sgd", model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        if not cut:
            recorder = loop(tmp_path / name, optimizer, model=model, scheduler=scheduler)
        else:
            loop(tmp_path / name, optimizer, model=model, scheduler=scheduler, stop=5).flush()
            (tmp_path / name / "step-000000008.safetensors").write_bytes(b"of a killed process")
            recorder = loop(tmp_path / name, optimizer, model=model, scheduler=scheduler, start=5, resume_at=5)
        results.append(recorder.finish())
    whole, cut = results
    assert cut.learning_rates == whole.learning_rates
    assert cut.batches == whole.batches
    assert cut.checkpoints == whole.checkpoints
    assert all(torch.equal(cut.weights(9)[key], value) for key, value in whole.weights(9).items())
    assert verify_run(tmp_path / "cut") == []
    with pytest.raises(ArgumentError, match="ends after 9 steps"):
        Recorder(tmp_path / "cut", model, optimizer, clip_norm=0.3, dataset=points(10), resume_at=10)
    with pytest.raises(ArgumentError, match="another optimizer or other data"):
        Recorder(tmp_path / "cut", model, optimizer, clip_norm=0.5, dataset=points(10), resume_at=4)


def test_refuses(tmp_path):
    """Oracle: the documented errors."""
    model = classifier()
    recorder = Recorder(tmp_path / "a", model, SGD())
    with pytest.raises(ArgumentError, match="without an optimizer of torch"):
        recorder.step([0])
    recorder.step([0], learning_rate=0.1)
    with pytest.raises(ArgumentError, match="in every step or in none"):
        recorder.step(learning_rate=0.1)
    record = recorder.finish()
    with pytest.raises(ArgumentError, match="not at 7"):
        record.weights(7)
    with pytest.raises(ArgumentError, match="overwrite"):
        Recorder(tmp_path / "a", model, SGD())
    assert len(Recorder(tmp_path / "a", model, SGD(), overwrite=True).finish()) == 0
    blind = Recorder(tmp_path / "b", model, AdamW())
    blind.step(learning_rate=0.1)
    with pytest.raises(ArgumentError, match="no order"):
        blind.finish().schedule()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="holds no record"):
        Recorder(tmp_path / "c", model, SGD())
    with pytest.raises(ArtifactError, match="no manifest"):
        open_record(tmp_path / "c")
    path = next((tmp_path / "b").glob("step-*"))
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    with pytest.raises(ArtifactError, match="damaged"):
        open_record(tmp_path / "b").weights(int(path.stem[5:]))
    with pytest.raises(ArgumentError, match="RMSprop"):
        Recorder(tmp_path / "d", model, torch.optim.RMSprop(model.parameters()))
    with pytest.raises(ArgumentError, match="use AdamW"):
        Recorder(tmp_path / "d", model, torch.optim.Adam(model.parameters(), weight_decay=0.1))
    with pytest.raises(ArgumentError, match="amsgrad"):
        Recorder(tmp_path / "d", model, torch.optim.AdamW(model.parameters(), amsgrad=True))
    two = [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[2].weight], "lr": 0.2}]
    with pytest.raises(ArgumentError, match="one lr"):
        Recorder(tmp_path / "d", model, torch.optim.SGD(two, 0.1))
    other = Recorder(tmp_path / "e", model, SGD(), dataset=points(4)).finish()
    with pytest.raises(ArtifactError, match="other data"):
        other.check_data(as_examples(points(5)))


def test_of_two_recorders_the_first_gives_way(tmp_path):
    """Oracle: the record as the second one left it: the first is refused, and not a byte of it changes."""
    model = classifier()
    first = Recorder(tmp_path / "r", model, SGD(), every=1)
    first.step([0], learning_rate=0.1)
    second = Recorder(tmp_path / "r", model, SGD(), every=1, overwrite=True)
    second.step([1], learning_rate=0.2)
    second.step([1], learning_rate=0.2)  # as far as the first will be, and so in files of the same names
    left = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    with pytest.raises(ArtifactError, match="another recorder"):
        first.step([2], learning_rate=0.1)
    named = set(open_record(tmp_path / "r").manifest.files) | {"manifest.json"}
    assert {name: (tmp_path / "r" / name).read_bytes() for name in named} == {name: left[name] for name in named}
    assert tuple(second.finish().learning_rates) == (0.2, 0.2)
