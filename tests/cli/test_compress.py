"""`hesse compress plan | quantize | prune` on a factory's network and on a tiny language model."""

import json
import math
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from hesse.cli.main import app
from tests.cli.conftest import invoke

FACTORY = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def rows(seed, count):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, :3].sum(1) > 0).long() + (x[:, 3] > 1).long())

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

def make():
    model, data = net(), rows(1, 120)
    x, y = data.tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, nn.CrossEntropyLoss(), DataLoader(data, batch_size=32)

def regression():
    x = rows(1, 40).tensors[0]
    return net(), nn.L1Loss(), DataLoader(TensorDataset(x, x[:, :3]), batch_size=8)

def shuffled():
    return net(), nn.CrossEntropyLoss(), DataLoader(rows(1, 40), batch_size=8, shuffle=True)

def ruined():
    model, loss, loader = make()
    model[0].weight.data[0, 0] = float("nan")
    return model, loss, loader

def words():
    return net(), nn.CrossEntropyLoss(), [{"a": 1}]

def fresh():
    return DataLoader(rows(2, 50), batch_size=20)
"""
LANGUAGE = ["--max-length", "24", "--max-examples", "6"]


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """The module of factories in the working folder; returns it imported."""
    (tmp_path / "nets_of_test.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return vars(import_module("nets_of_test"))


def run(*words):
    done = invoke("compress", *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def measured(model, data):
    x, y = data.tensors
    with torch.no_grad():
        outputs = model(x)
    return float(functional.cross_entropy(outputs, y)), float((outputs.argmax(1) == y).double().mean())


def tokens_loss(model, batch):
    """Nats a token, one sequence at a time."""
    total, count = 0.0, 0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        total += float(functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] != -100).sum())
    return total / count


def test_a_plan_is_made_and_carried_out(factory, tmp_path):
    """Oracle: the library called by hand: the plan within its budget, and the losses of model and rounded model."""
    from hesse.compress import BitPlan, UniformQuantizer, quantize_model

    made = run(
        "plan", "nets_of_test:make", "--held-out", "nets_of_test:fresh", "--bits", "2,4,8", "--budget", "4.5",
        "--probes", "8", "--plot", "p.svg",
    )  # fmt: skip
    plan = BitPlan.load("plan.json")
    assert plan.average_bits == made["average_bits"] <= 4.5
    assert set(plan.weights.values()) <= {2, 4, 8}
    assert {row["plan"] for row in made["frontier"]} >= {"all 2 bits", "all 4 bits", "all 8 bits", "chosen"}
    assert all(row["measured_rise"] is not None for row in made["frontier"])
    assert "<svg" in (tmp_path / "p.svg").read_text()

    held_out = ["--held-out", "nets_of_test:fresh"]
    found = run("quantize", "nets_of_test:make", "--plan", "plan.json", "--out", "small", "--packed", *held_out)
    model, fresh = factory["make"]()[0], factory["rows"](2, 50)
    rounded = quantize_model(model, plan, UniformQuantizer(per_channel=True))
    assert (found["before"]["loss"], found["before"]["accuracy"]) == pytest.approx(measured(model, fresh))
    assert (found["after"]["loss"], found["after"]["accuracy"]) == pytest.approx(measured(rounded, fresh))
    assert found["bytes"]["after"] == rounded.storage_bytes()
    written = factory["net"]()
    written.load_state_dict(load_file("small/model.safetensors"))
    assert measured(written, fresh) == pytest.approx(measured(rounded, fresh))
    packed = quantize_model(factory["net"](), plan, UniformQuantizer(per_channel=True)).freeze()
    packed.load_state_dict(load_file("small/packed.safetensors"))
    assert measured(packed, fresh) == pytest.approx(measured(rounded, fresh))
    assert json.loads((tmp_path / "small" / "compression.json").read_text()) == found


@pytest.mark.parametrize(
    ("bounds", "most_bits", "most_bops"),
    [(["12kBOPs"], 8, 12_000), (["4"], 4, math.inf), (["5", "--limit", "6.5kBOPs"], 5, 6_500)],
)
def test_inputs_get_bits_too(factory, tmp_path, bounds, most_bits, most_bops):
    """Oracle: BOPs counted by hand (each weight of a linear layer once); the rounded model run in the library."""
    from hesse.compress import BitPlan, UniformQuantizer, quantize_model

    words = ["--activations", "4,8", "--bits", "2,4,8", "--probes", "4", "--held-out", "nets_of_test:fresh"]
    made = run("plan", "nets_of_test:make", "--budget", *bounds, *words, "--plot", "p.svg")
    plan = BitPlan.load("plan.json")
    assert set(plan.activations) == {"0", "2", "4"}
    assert set(plan.activations.values()) <= {4, 8}
    sizes = {"0.weight": 96, "2.weight": 128, "4.weight": 24}
    bops = sum(n * plan.weights[name] * plan.activations[name[0]] for name, n in sizes.items())
    assert made["bops"] == bops <= most_bops
    assert made["average_bits"] <= most_bits

    held_out = ["--held-out", "nets_of_test:fresh"]
    found = run("quantize", "nets_of_test:make", "--plan", "plan.json", "--out", "small", "--packed", *held_out)
    model, loss_fn, loader = factory["make"]()
    rounded = quantize_model(model, plan, UniformQuantizer(per_channel=True))
    x, y = loader.dataset.tensors
    rounded.calibrate(lambda m, b: loss_fn(m(b[0]), b[1]), list(zip(x.split(32), y.split(32), strict=True)))
    fresh = factory["rows"](2, 50)
    assert (found["after"]["loss"], found["after"]["accuracy"]) == pytest.approx(measured(rounded, fresh))
    assert found["average_activation_bits"] == plan.average_activation_bits
    ranges = json.loads((tmp_path / "small" / "activations.json").read_text())
    assert ranges == {layer: pytest.approx(kept) for layer, kept in rounded.activation_ranges().items()}
    packed = quantize_model(factory["net"](), plan, UniformQuantizer(per_channel=True)).freeze()
    packed.load_state_dict(load_file("small/packed.safetensors"))
    assert measured(packed, fresh) == pytest.approx(measured(rounded, fresh))


def test_a_language_models_inputs_get_bits_too(tiny, tmp_path):
    """Oracle: the plan itself: bits for inputs of every matrix, out of the two asked for; and quantize keeps them."""
    from hesse.compress import BitPlan

    where = tmp_path / "plan.json"
    words = ["--data", tiny / "train.jsonl", "--activations", "4,8", "--bits", "4,8", "--probes", "2"]
    done = invoke("compress", "plan", tiny / "model", "--budget", "6", *words, "--out", where)
    assert done.exit_code == 0, done.output
    plan = BitPlan.load(where)
    assert plan.activations
    assert set(plan.activations.values()) <= {4, 8}
    done = invoke(
        "compress", "quantize", tiny / "model", "--plan", where, "--data", tiny / "train.jsonl", "--out", tmp_path / "s"
    )
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "s" / "activations.json").read_text("utf-8"))
    assert {name: entry["bits"] for name, entry in kept.items()} == dict(plan.activations)


@pytest.mark.parametrize("sensitivity", ["trace", "fisher", "quadratic"])
def test_every_sensitivity_fills_a_size(factory, sensitivity):
    """Oracle: the budget in bytes, and that no plan of the table in it is predicted to be better (candidates off)."""
    found = run(
        "plan", "nets_of_test:make", "--budget", "0.11kB", "--sensitivity", sensitivity, "--probes", "4",
        "--candidates", "0",
    )  # fmt: skip
    chosen = next(row for row in found["frontier"] if row["plan"] == "chosen")
    assert found["bytes"] == chosen["bytes"] <= 110
    fitting = [row["predicted_rise"] for row in found["frontier"] if row["bytes"] <= 110]
    assert chosen["predicted_rise"] == min(fitting)
    assert found["sensitivity"] == sensitivity


def test_single_weights_are_pruned(factory):
    """Oracle: counts of zeros and the loss of the written model; the surgeon beside magnitude, both measured here."""
    held_out = ["--held-out", "nets_of_test:fresh"]
    options = ["--gradients", "60", "--rounds", "4"]
    found = run("prune", "nets_of_test:make", "--sparsity", "0.6", "--out", "half", *options, *held_out)
    model, fresh = factory["make"]()[0], factory["rows"](2, 50)
    assert (found["before"]["loss"], found["before"]["accuracy"]) == pytest.approx(measured(model, fresh))
    pruned = factory["net"]()
    pruned.load_state_dict(load_file("half/model.safetensors"))
    weights = torch.cat([p.flatten() for p in pruned.parameters() if p.ndim > 1])
    assert found["weights"] == {"before": 248, "after": int(weights.count_nonzero())}
    assert found["weights"]["after"] == round(0.4 * 248)
    assert (found["after"]["loss"], found["after"]["accuracy"]) == pytest.approx(measured(pruned, fresh))
    sizes = torch.cat([p.detach().abs().flatten() for p in model.parameters() if p.ndim > 1])
    least = sizes.sort().values[248 - found["weights"]["after"]]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.where(p.abs() >= least, p, 0) if p.ndim > 1 else p)
    assert found["magnitude"]["loss"] == pytest.approx(measured(model, fresh)[0], rel=1e-4)


def test_patterns_hold(factory):
    """Oracle: at most two of four neighbours left; whole rectangles gone."""
    options = ["--layers", "2", "--gradients", "8", "--rounds", "1", "--no-compare"]
    run("prune", "nets_of_test:make", "--sparsity", "0.5", "--pattern", "2:4", "--out", "a", *options)
    weight = load_file("a/model.safetensors")["2.weight"]
    assert bool(((weight.reshape(-1, 4) != 0).sum(1) == 2).all())
    run("prune", "nets_of_test:make", "--sparsity", "0.5", "--pattern", "2x4", "--out", "b", *options)
    tiles = load_file("b/model.safetensors")["2.weight"].reshape(4, 2, 4, 4).movedim(1, 2).flatten(2)
    counts = (tiles != 0).sum(2).flatten()
    assert sorted(set(counts.tolist())) == [0, 8]
    assert int((counts == 0).sum()) == 8


def test_memory_bounds_the_gradients(factory):
    """Oracle: the sparsity of every weight, whichever parts it was pruned in; one that cannot fit is refused."""
    options = ["--sparsity", "0.5", "--gradients", "8", "--rounds", "1", "--no-compare"]
    found = run(
        "prune", "nets_of_test:make", "--out", "a", "--scope", "layer", "--memory", "9kB", *options
    )  # 128 weights take 8 gradients of 8 bytes
    assert found["parts"] == 3
    state = load_file("a/model.safetensors")
    assert [int(state[f"{i}.weight"].count_nonzero()) for i in (0, 2, 4)] == [48, 64, 12]
    for words, message in [(["--memory", "9kB"], "--scope layer"), (["--memory", "1kB"], "0.weight")]:
        done = invoke("compress", "prune", "nets_of_test:make", "--out", "b", *words, *options)
        assert done.exit_code == 1
        assert message in done.stderr


@pytest.mark.parametrize("training", [[], ["--epochs", "8", "--lr", "0.01"]])
def test_channels_are_cut(factory, training):
    """Oracle: the written smaller network, run by hand, gives what the zeroed one gives; both lose the share asked."""
    found = run(
        "prune", "nets_of_test:make", "--method", "hesso", "--sparsity", "0.4", "--out", "cut",
        "--held-out", "nets_of_test:fresh", "--gradients", "40", *training,
    )  # fmt: skip
    zeroed = factory["net"]()
    zeroed.load_state_dict(load_file("cut/model.safetensors"))
    small = load_file("cut/smaller.safetensors")
    first, second = len(small["0.weight"]), len(small["2.weight"])
    cut = nn.Sequential(
        nn.Linear(6, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 3)
    )  # fmt: skip
    cut.load_state_dict(small)
    fresh = factory["rows"](2, 50)
    assert measured(cut, fresh) == pytest.approx(measured(zeroed, fresh))
    assert (found["after"]["loss"], found["after"]["accuracy"]) == pytest.approx(measured(cut, fresh))
    assert found["parameters"] == {"before": 275, "after": sum(p.numel() for p in cut.parameters())}
    assert found["groups"] == {"before": 24, "after": first + second}
    left = 6 * first + first * second + 3 * second
    if training:
        assert left < 0.8 * 248  # the share is met by the choice made beforehand, families cut evenly
    else:
        assert left <= 0.6 * 248
        assert left > 0.4 * 248  # no more than a group too many


def test_a_language_model_is_planned_and_quantised(tiny, tmp_path):
    """Oracle: losses token by token of the folder that was written, on the rows that were held out."""
    from hesse.cli.compress.subject import load_subject
    from hesse.influence.huggingface import load_model

    data = ["--data", tiny / "train.jsonl", *LANGUAGE]
    plan, out = tmp_path / "plan.json", tmp_path / "small"
    made = run("plan", tiny / "model", *data, "--budget", "5", "--bits", "4,8", "--out", plan)
    assert made["sensitivity"] == "fisher"
    assert not any("wte" in name or "lm_head" in name for name in made["weights"])
    found = run("quantize", tiny / "model", "--plan", plan, "--out", out, *data)
    subject = load_subject(
        str(tiny / "model"), str(tiny / "train.jsonl"), None,
        layers=None, max_examples=6, max_held_out=None, max_length=24, revision=None, seed=0,
    )  # fmt: skip
    assert found["before"]["loss"] == pytest.approx(tokens_loss(subject.module, subject.held_out), rel=1e-5)
    written, _ = load_model(out)
    assert found["after"]["loss"] == pytest.approx(tokens_loss(written, subject.held_out), rel=1e-5)
    assert found["after"]["perplexity"] == pytest.approx(math.exp(found["after"]["loss"]))
    for name, bits in made["weights"].items():
        columns = written.get_parameter(name).detach().movedim(1, 0)  # transformers' Conv1D: outputs on axis 1
        assert all(len(column.unique()) <= 2**bits for column in columns)


@pytest.mark.parametrize("method", ["obs", "hesso"])
def test_a_language_model_is_pruned(tiny, tmp_path, method):
    """Oracle: zeros counted in the folder that was written, and its loss token by token."""
    from hesse.cli.compress.subject import load_subject
    from hesse.influence.huggingface import load_model

    out = tmp_path / "half"
    words = ["prune", tiny / "model", "--data", tiny / "train.jsonl", *LANGUAGE, "--sparsity", "0.5"]
    found = run(*words, "--method", method, "--out", out, "--gradients", "4", "--rounds", "1")
    written, _ = load_model(out)
    subject = load_subject(
        str(tiny / "model"), str(tiny / "train.jsonl"), None,
        layers=None, max_examples=6, max_held_out=None, max_length=24, revision=None, seed=0,
    )  # fmt: skip
    assert found["after"]["loss"] == pytest.approx(tokens_loss(written, subject.held_out), rel=1e-4)
    parameters = dict(written.named_parameters())
    if method == "obs":
        for name in subject.weights:  # the same share of each
            assert int(parameters[name].count_nonzero()) == round(0.5 * parameters[name].numel())
    else:
        assert found["parameters"]["after"] < found["parameters"]["before"]
        assert found["output_difference"] <= 1e-4


def test_results_are_not_overwritten_by_accident(factory, tmp_path):
    """Oracle: the bytes that were there; only what a compress command wrote is replaced, and only when told."""
    words = ["prune", "nets_of_test:make", "--sparsity", "0.5", "--gradients", "4", "--rounds", "1", "--no-compare"]
    run(*words, "--out", "a")
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    refused = invoke("compress", *words, "--out", "a")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "--overwrite" in refused.stderr
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before
    run(*words, "--out", "a", "--overwrite", "--layers", "0")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    refused = invoke("compress", *words, "--out", "mine", "--overwrite")
    assert refused.exit_code == 1
    assert "was not written by hesse compress" in refused.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "three years"
    plan = ["plan", "nets_of_test:make", "--budget", "4", "--probes", "2", "--candidates", "0"]
    run(*plan)
    assert "--overwrite" in invoke("compress", *plan).stderr
    run(*plan, "--overwrite")


def test_a_failed_write_leaves_what_was_there(factory, tmp_path, monkeypatch):
    """Oracle: the folder's content, and no temporary folder, after a disk that fills up half-way."""
    from hesse.cli.compress import output

    words = ["prune", "nets_of_test:make", "--sparsity", "0.5", "--gradients", "4", "--rounds", "1", "--no-compare"]
    run(*words, "--out", "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "_sync", fail)
    done = invoke("compress", *words, "--out", "a", "--overwrite", "--seed", "1")
    assert done.exit_code == 1
    assert "free some space" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert not list(tmp_path.glob(".hesse-tmp-*"))


def test_what_cannot_be_done_is_refused(factory, tiny, tmp_path):
    """Oracle: the exit code and a line that names the cause; nothing on stdout, nothing written."""
    run("plan", "nets_of_test:make", "--budget", "4", "--probes", "2", "--candidates", "0", "--out", "p.json")
    plan = json.loads((tmp_path / "p.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(plan | {"numel": dict.fromkeys(plan["numel"], 7)}))
    (tmp_path / "broken.json").write_text(json.dumps(plan | {"weights": {"0.weight": 99}}))
    (tmp_path / "rule.json").write_text(json.dumps(plan | {"made_by": {"quantizer": {"scale": "best"}}}))
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "one.jsonl").write_text('{"id": "a", "text": "the cat sat"}\n')
    out, net = ["--out", "never"], "nets_of_test:make"
    prune = ["prune", net, *out, "--sparsity"]
    cases = [
        (["plan", net, "--budget", "1"], 1, "fewest of --bits"),
        (["plan", net, "--budget", "10kb", "--out", "missing/p.json"], 1, "missing"),
        (["plan", net, "--budget", "1kb", "--layers", "("], 1, "regular expression"),
        (["plan", net, "--budget", "4", "--layers", "head"], 1, "0.weight"),
        (["plan", net, "--budget", "0.01kB", "--probes", "2"], 1, "least possible"),
        (["plan", net, "--budget", "4", "--data", tiny / "train.jsonl"], 1, "factory"),
        (["plan", net, "--budget", "4", "--held-out", "nets_of_test:none"], 1, "none"),
        (["plan", net, "--budget", "4", "--plot", "p.bmp"], 1, ".svg"),
        (["plan", tiny / "model", "--budget", "4"], 1, "--data"),
        (["plan", tiny / "model", "--budget", "4", "--data", "one.jsonl"], 1, "--held-out"),
        (["plan", "nets_of_test:regression", "--budget", "4", "--sensitivity", "fisher"], 1, "trace or quadratic"),
        (["plan", "nets_of_test:shuffled", "--budget", "4"], 1, "shuffles"),
        (["plan", "nets_of_test:words", "--budget", "4"], 1, "(inputs, targets)"),
        (["quantize", net, "--plan", "absent.json", *out], 1, "absent.json"),
        (["quantize", net, "--plan", "other.json", *out], 3, "not of this model"),
        (["quantize", net, "--plan", "broken.json", *out], 3, "99"),
        (["quantize", net, "--plan", "rule.json", *out], 3, "best"),
        (["quantize", net, "--plan", "no.json", *out], 3, "bit plan"),
        ([*prune, "0.6", "--pattern", "2:4"], 1, "at most 0.5"),
        ([*prune, "0.5", "--pattern", "2:4"], 1, "--layers"),
        ([*prune, "0.5", "--method", "hesso", "--pattern", "2:4"], 1, "hesso"),
        ([*prune, "0.5", "--epochs", "3"], 1, "obs does not train"),
        ([*prune, "0.5", "--gradients", "1000"], 1, "--gradients"),
        ([*prune, "0.999", "--method", "hesso", "--gradients", "4"], 1, "can be cut"),
        (["prune", "nets_of_test:ruined", *out, "--sparsity", "0.5"], 1, "nan"),
        ([*prune, "1.5"], 2, "0.5"),
        ([*prune, "0.5", "--pattern", "4"], 2, "2:4"),
        ([*prune, "0.5", "--memory", "4"], 2, "2GiB"),
        (["plan", net, "--budget", "4", "--bits", "1,4"], 2, "2,4,8"),
        (["plan", net, "--budget", "lots"], 2, "40MB"),
        (["plan", net], 2, "budget"),
        (["plan", net, "--budget", "0BOPs"], 2, "30GBOPs"),
        (["plan", net, "--budget", "4", "--limit", "1kB"], 1, "bit operations"),
        (["plan", net, "--budget", "10BOPs", "--activations", "4,8", "--probes", "2"], 1, "least possible"),
        (["plan", net, "--budget", "4", "--activations", "1"], 2, "2,4,8"),
    ]
    for words, code, message in cases:
        done = invoke("compress", *words)
        assert (done.exit_code, done.stdout) == (code, ""), (words, done.output, done.exception)
        assert message in done.stderr, (words, done.stderr)
    assert not (tmp_path / "never").exists()
    assert not (tmp_path / "plan.json").exists()


def test_help_and_options():
    """Oracle: sys.modules of a fresh process after every help; the options others script against, written out here."""
    code = (
        "import sys\nfrom hesse.cli.main import app\n"
        "for words in [[], ['plan'], ['quantize'], ['prune']]:\n"
        "    try: app(['compress', *words, '--help'], prog_name='hesse')\n"
        "    except SystemExit as stop: assert stop.code == 0, words\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "matplotlib"} & set(done.stdout.split("LOADED ")[1].split())
    shared = "--data --held-out --out --max-examples --max-held-out --max-length --revision --overwrite --json "
    expected = {
        "plan": "--budget --limit --bits --activations --layers --sensitivity --matrix --probes --per-tensor "
        "--candidates --plot --seed",
        "quantize": "--plan --compare --packed",
        "prune": "--sparsity --method --pattern --scope --gradients --rounds --damping --block-size --memory --epochs "
        "--lr --batch-size --layers --compare --seed",
    }
    group = typer.main.get_command(app).commands["compress"]
    for name, options in expected.items():
        found = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert set((shared + options).split()) <= found, name
