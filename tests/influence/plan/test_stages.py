"""The planner against runs, byte counts by hand, and published sizes."""

import subprocess
import sys
import time

import pytest
import torch

from hesse._threads import one_thread
from hesse.curvature.layers import select_layers
from hesse.errors import ArgumentError
from hesse.influence import Influence, MeasuredRates, Workload, load_skeleton, plan_stages, split_experts
from tests.influence._tiny import gpt2


def llama(width, inner, depth, vocab, positions):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=depth,
        num_attention_heads=4,
        max_position_embeddings=positions,
    )
    return LlamaForCausalLM(config).eval()


def test_time_and_disk_of_a_run(tmp_path):
    """Oracle: the run itself, in CPU seconds and bytes of files; within a factor of two."""
    model = llama(128, 512, 2, 300, 64)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(300, (160, 64), generator=generator)
    asked = [{"id": f"q{i}", "input_ids": row.tolist()} for i, row in enumerate(ids[:16])]
    influence = Influence(model)
    with one_thread():  # so that CPU seconds are those of the work
        rates = MeasuredRates(torch.float32, torch.device("cpu"), time.process_time)
        plan = plan_stages(model, influence.layers, Workload(160, 64, 16, 16), rates=rates)
        start = time.process_time()
        influence.fit(ids.numpy(), tmp_path, progress=False)
        fitted = time.process_time() - start
        kept = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
        start = time.process_time()
        influence.score(asked, ids.numpy(), tmp_path, rank=16, refine_topk=0, progress=False)
        scored = time.process_time() - start
    stages = {stage.name: stage for stage in plan.stages}
    assert list(stages) == ["covariance", "eigendecomposition", "eigenvalues", "queries", "scores"]
    assert 0.5 < sum(stages[name].seconds for name in list(stages)[:3]) / fitted < 2
    assert 0.5 < (stages["queries"].seconds + stages["scores"].seconds) / scored < 2
    assert 0.5 < (stages["eigendecomposition"].disk + stages["eigenvalues"].disk) / kept < 2
    assert plan.seconds == pytest.approx(sum(stage.seconds for stage in plan.stages))


_GROWTH = """
import sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from hesse.influence import Influence
torch.set_num_threads(1)
width, inner, depth, vocab, batch_tokens = map(int, sys.argv[1:6])
config = LlamaConfig(
    vocab_size=vocab, hidden_size=width, intermediate_size=inner, num_hidden_layers=depth, num_attention_heads=4,
    max_position_embeddings=64,
)
model = LlamaForCausalLM(config).eval()
ids = torch.randint(vocab, (64, 64))
model(ids[:1])
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
before = peak()
Influence(model).fit(ids.numpy(), sys.argv[6], progress=False, batch_tokens=batch_tokens)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [300, 8000], ids=["factors and activations", "logits"])
def test_memory_of_a_run(vocab, tmp_path):
    """Oracle: growth of the peak of a process that fits, beside the model; within a factor of two."""
    command = [sys.executable, "-W", "ignore", "-c", _GROWTH, "256", "1024", "3", str(vocab), "2048", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = llama(256, 1024, 3, vocab, 64)
    plan = plan_stages(model, select_layers(model), Workload(64, 64, batch_tokens=2048))
    fitting = max(stage.memory for stage in plan.stages[:3])
    assert 0.5 < fitting / int(done.stdout.split()[-1]) < 2


def test_an_expert_is_counted_for_the_tokens_it_sees():
    """Oracle: by hand; one more expert a token keeps its inputs and outputs, 16 + 128 and 64 + 16 numbers."""
    from transformers import MixtralConfig, MixtralForCausalLM

    def kept(chosen):
        config = MixtralConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
            num_local_experts=4,
            num_experts_per_tok=chosen,
        )
        model = split_experts(MixtralForCausalLM(config)).eval()
        plan = plan_stages(model, select_layers(model), Workload(100, 16, batch_tokens=10_000))
        return plan.stages[0].memory - plan.stages[0].disk

    assert kept(3) - kept(2) == pytest.approx(10_000 * 4 * (16 + 128 + 64 + 16), abs=1)


def test_bytes_by_hand():
    """Oracle: Σ (m² + p²), Σ m p and r (m + p) of the layers of a tiny GPT-2, in float64."""
    model = gpt2()
    layers = select_layers(model, "mlp")
    shapes = [(layer.out_features, layer.columns) for layer in layers.values()]
    plan = plan_stages(model, layers, Workload(10, 5, num_queries=3, rank=2))
    stages = {stage.name: stage for stage in plan.stages}
    assert stages["covariance"].disk == 8 * sum(p * p + m * m for p, m in shapes)
    assert stages["eigenvalues"].disk == 8 * sum(p * m for p, m in shapes)
    assert stages["queries"].disk == 8 * 3 * 2 * sum(p + m for p, m in shapes)
    assert plan.model_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert plan.memory > plan.model_bytes
    assert plan.to_dict()["seconds"] == plan.seconds


@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        ("kfac", ["covariance", "eigendecomposition", "queries", "scores"]),
        ("shampoo", ["covariance", "eigendecomposition", "eigenvalues", "queries", "scores"]),
        ("diagonal", ["eigenvalues", "queries", "scores"]),
        ("identity", ["queries", "scores"]),
    ],
)
def test_stages_of_a_strategy(strategy, names):
    """Oracle: the stages that `fit` and `score` run."""
    model = gpt2()
    plan = plan_stages(model, select_layers(model), Workload(10, 5), strategy=strategy)
    assert [stage.name for stage in plan.stages] == names


def test_a_model_without_weights(tmp_path):
    """Oracle: by hand for widths 64 and 160; no weights are read, and none are made."""
    llama(64, 160, 3, 100, 32).config.save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        model = load_skeleton(name, dtype="bfloat16")
        assert {p.device.type for p in model.parameters()} == {"meta"}
        plan = plan_stages(model, select_layers(model), Workload(1000, 32), blocks=2)
        assert plan.stages[0].disk == 4 * 3 * 3 * (64**2 + 160**2) // 2  # of each factor, two blocks
        assert plan.seconds > 0


def test_more_work_takes_more_time():
    """Oracle: proportion; twice the sequences take twice the time of each pass."""
    model = gpt2()
    layers = select_layers(model)
    once, twice = (plan_stages(model, layers, Workload(n, 20, fitted_on=n)) for n in (10_000, 20_000))
    assert 1.2 < twice.seconds / once.seconds < 3.3


def test_refused(tmp_path):
    """Oracle: errors that name the bad argument."""
    for name in ("num_sequences", "mean_length", "num_queries", "rank", "batch_tokens"):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            Workload(**({"num_sequences": 5, "mean_length": 5} | {name: 0}))
    with pytest.raises(ArgumentError, match=r"^dtype"):
        load_skeleton(tmp_path, dtype="float16")
    with pytest.raises(ArgumentError, match=r"^model"):
        load_skeleton(tmp_path)
    assert Workload(10, 5).fitted == 10
    assert Workload(10**6, 5).fitted == 100_000
