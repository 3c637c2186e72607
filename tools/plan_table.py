"""The table of docs/planning.md, reckoned from stated rates: checked, or rewritten with ``--write``."""

import sys
from pathlib import Path
from typing import Any

import torch

from hesse.cli._units import show_duration, show_size
from hesse.curvature.layers import select_layers
from hesse.influence import Budget, Proposal, StatedRates, Workload, propose_plan

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- plans: written by tools/plan_table.py -->", "<!-- end of plans -->"

RATES = StatedRates(rate=4e14, factor_rate=4e13, eigen_rate=1e12)
MEMORY = 80e9
WORK = Workload(num_sequences=1_000_000, mean_length=512, num_queries=32, rank=32, batch_tokens=16_384)
PROCESSES = (1, 8, 64)


def models() -> dict[str, Any]:
    """Name -> the model without weights, in bfloat16."""
    from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

    configs = {
        "GPT-2 (124M)": GPT2Config(),
        "Llama-3-8B": LlamaConfig(
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
        "52B (64 blocks of 8192)": GPTNeoXConfig(
            hidden_size=8192, intermediate_size=32_768, num_hidden_layers=64, num_attention_heads=64
        ),
    }
    with torch.device("meta"):
        return {
            name: AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
            for name, config in configs.items()
        }


def row(name: str, processes: int, found: Proposal) -> str:
    """One line of the table."""
    seconds = {stage.name: stage.seconds for stage in found.plan.stages}
    fit = sum(seconds[stage] for stage in ("covariance", "eigendecomposition", "eigenvalues"))
    score = seconds["queries"] + seconds["scores"]
    memory = show_size(found.plan.memory)
    fits = "no" if found.exceeded else "yes"
    times = f"{show_duration(fit)} | {show_duration(score)}"
    return f"| {name} | {processes} | {found.blocks} | {times} | {memory} | {fits} | {show_size(found.plan.disk)} |"


def table() -> str:
    """The block between the two marks."""
    head = [
        "| Model | GPUs | Blocks | Fit | Score | Memory a GPU | Fits 80 GB | Disk |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = []
    for name, model in models().items():
        layers = select_layers(model)
        for processes in PROCESSES:
            budget = Budget(memory=MEMORY)
            found = propose_plan(model, layers, WORK, budget, processes=processes, rates=RATES)
            rows.append(row(name, processes, found))
    return "\n".join([BEGIN, *head, *rows, END])


def main(arguments: list[str]) -> int:
    old = PAGE.read_text("utf-8")
    before, rest = old.split(BEGIN)
    new = before + table() + rest.split(END)[1]
    if "--write" in arguments:
        PAGE.write_text(new, "utf-8")
    elif new != old:
        print("docs/planning.md: the table is out of date; run tools/plan_table.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
