"""`hesse rl train`: a policy trained by policy gradients, from several seeds, with checkpoints and learning curves."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hesse.cli._report import console, emit_json, say

__all__ = ["train"]

Method = Literal["npgigt", "nharpg", "harpg", "nmpg", "reinforce", "storm"]
BaselineName = Literal["linear", "time", "none"]


def train(
    environment: Annotated[str, typer.Argument(help="cartpole (built in), or an id of gymnasium, as Pendulum-v1.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of checkpoints and curves; made if missing.")],
    method: Annotated[Method, typer.Option(help="How gradients become steps.")] = "npgigt",
    lr: Annotated[
        float | None,
        typer.Option(help="Of normalised methods the first step's length. Default: 1; nharpg 0.2, the others 0.005."),
    ] = None,
    momentum: Annotated[float, typer.Option(help="Weight of the newest gradient at the start.")] = 1.0,
    episodes: Annotated[int, typer.Option(min=1, help="Budget of each seed.")] = 900,
    batch: Annotated[int, typer.Option(min=1, help="Episodes a step.")] = 15,
    hvp_batch: Annotated[
        int | None, typer.Option(min=1, help="harpg, nharpg: further episodes a step. Default: as many.")
    ] = None,
    horizon: Annotated[int, typer.Option(min=1, help="Steps an episode at most.")] = 200,
    discount: Annotated[float, typer.Option(help="Of rewards a step, in (0, 1].")] = 0.99,
    baseline: Annotated[BaselineName, typer.Option(help="What is subtracted from returns.")] = "linear",
    seed: Annotated[int, typer.Option(min=0, help="The first one.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many, one run each.")] = 1,
    eval_every: Annotated[int | None, typer.Option(min=1, help="Evaluate after so many steps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Train a policy. The same command again resumes from the checkpoints in OUT.

    OUT gets seed-S.safetensors, from which a run goes on exactly as if it had not stopped, and curves.json.

    Example: hesse rl train cartpole --out runs/cartpole --seeds 3
    """
    import torch

    from hesse.io import atomic_write_json, make_folder
    from hesse.rl import (
        HARPG,
        NPGIGT,
        CartPole,
        GymnasiumEnv,
        History,
        NormalizedMomentumPG,
        Policy,
        PolicyOptimizer,
        Reinforce,
        StormPG,
        make_policy,
    )
    from hesse.rl import train as run

    step = lr if lr is not None else {"npgigt": 1.0, "nmpg": 1.0, "nharpg": 0.2}.get(method, 0.005)

    def optimizer(policy: Policy) -> PolicyOptimizer:
        match method:
            case "npgigt":
                return NPGIGT(policy, step, momentum)
            case "nmpg":
                return NormalizedMomentumPG(policy, step, momentum)
            case "storm":
                return StormPG(policy, step, momentum)
            case "reinforce":
                return Reinforce(policy, step)
            case _:
                return HARPG(policy, step, momentum, normalized=method == "nharpg")

    world = CartPole() if environment == "cartpole" else GymnasiumEnv(environment)
    make_folder(out)
    histories: dict[int, History] = {}
    for each in range(seed, seed + seeds):
        policy = make_policy(world.observation_size, world.action_space, generator=torch.Generator().manual_seed(each))
        histories[each] = run(
            world,
            policy,
            optimizer(policy),
            horizon=horizon,
            episodes=episodes,
            batch=batch,
            hvp_batch=hvp_batch,
            discount=discount,
            baseline=baseline,
            seed=each,
            eval_every=eval_every,
            checkpoint=out / f"seed-{each}.safetensors",
        )
        if histories[each].iterations:
            say(f"seed {each}: mean return {histories[each].mean_return():.4g} over the last batches")
    report = {
        "environment": environment,
        "method": method,
        "lr": step,
        "curves": {str(each): history.to_dict() for each, history in histories.items()},
    }
    atomic_write_json(out / "curves.json", report)
    if as_json:
        emit_json(report)
    else:
        _show(histories)
        say(f"wrote {out}")


def _show(histories: dict) -> None:
    # ten rows of the learning curves, all seeds side by side
    from rich.table import Table

    longest = max((history.iterations for history in histories.values()), key=len)
    table = Table("episodes", *(f"seed {each}" for each in histories), title="Return of the batch")
    stride = max(1, len(longest) // 10)
    for k in range(stride - 1, len(longest), stride):
        cells = (
            f"{history.iterations[k].mean_return:.1f}" if k < len(history.iterations) else ""
            for history in histories.values()
        )
        table.add_row(f"{longest[k].episodes:,}", *cells)
    console().print(table)
