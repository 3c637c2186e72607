"""Betty and boat on the same cleaning task, models, data and batches as ours, for a number of seconds.

Each returns the model's parameters and the rows' logits, as our solvers do, and how many iterations it made.
"""

import copy
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bilevel._penalty_models import Cleaning, lower_loss, upper_loss
from benchmarks.peers import require_peer
from hesse.bilevel import TensorSampler

__all__ = ["betty_darts", "boat_lower", "boat_upper", "boat_value_function"]

Outcome = tuple[dict[str, Tensor], Tensor, int]


class _Endless:
    """A sampler as the loader of batches that betty iterates over."""

    def __init__(self, sampler: TensorSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.sampler.draw()


def betty_darts(task: Cleaning, seconds: float, lr: float, lr_lower: float) -> Outcome:
    """Betty's engine with its default, finite differences as in DARTS: one lower step, one upper step."""
    require_peer("betty")
    from betty.configs import Config, EngineConfig  # pyright: ignore[reportMissingImports]
    from betty.engine import Engine  # pyright: ignore[reportMissingImports]
    from betty.problems import ImplicitProblem  # pyright: ignore[reportMissingImports]

    logging.getLogger("betty").disabled = True  # it tells of its set-up on stdout
    weights, model = copy.deepcopy(task.weights), copy.deepcopy(task.model)

    class Upper(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return upper_loss(weights, model, batch)

    class Lower(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return lower_loss(weights, model, batch)

    upper = Upper(
        name="upper",
        config=Config(type="darts", log_step=-1),
        module=weights,
        optimizer=torch.optim.SGD(weights.parameters(), lr=lr),
        train_data_loader=_Endless(task.upper_sampler()),
        device="cpu",
    )
    lower = Lower(
        name="lower",
        config=Config(type="darts", unroll_steps=1),
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr_lower),
        train_data_loader=_Endless(task.lower_sampler()),
        device="cpu",
    )
    engine = Engine(
        problems=[upper, lower],
        config=EngineConfig(train_iters=1, logger_type="none"),
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )
    engine.train()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        engine.global_step += 1
        engine.train_step()
        count += 1
    return {name: p.detach() for name, p in model.named_parameters()}, weights.logits.detach(), count


def boat_lower(feed: Any, weights: nn.Module, model: nn.Module) -> Tensor:
    """Lower loss in the signature that boat looks up by its dotted name."""
    return lower_loss(weights, model, feed)


def boat_upper(feed: Any, weights: nn.Module, model: nn.Module) -> Tensor:
    """Upper loss, likewise."""
    return upper_loss(weights, model, feed)


def boat_value_function(task: Cleaning, seconds: float, lr: float, lr_lower: float, lower_steps: int) -> Outcome:
    """Boat's value-function operation.

    With one lower step its two copies are the same, and x never moves: what is left is training on the trusted rows.
    """
    boat: Any = require_peer("boat_torch")
    weights, model = copy.deepcopy(task.weights), copy.deepcopy(task.model)
    config = {
        "fo_op": "VFO",
        "gm_op": None,
        "na_op": None,
        "lower_level_model": model,
        "upper_level_model": weights,
        "lower_level_var": list(model.parameters()),
        "upper_level_var": list(weights.parameters()),
        "lower_level_opt": torch.optim.SGD(model.parameters(), lr=lr_lower),
        "upper_level_opt": torch.optim.SGD(weights.parameters(), lr=lr),
        "lower_iters": lower_steps,
        "VFO": {"y_hat_lr": lr_lower, "eta": 0.9, "u1": 1.0},
        "device": "cpu",
        "fo_ol_batch_input": False,
        "return_grad": False,
        "loss_log_path": os.devnull,
    }
    here = "benchmarks.bilevel._penalty_peers"
    losses = {
        "lower_level_loss": {"function": f"{here}.boat_lower"},
        "upper_level_loss": {"function": f"{here}.boat_upper"},
    }
    solver = boat.Problem(config, losses)
    solver.build_ll_solver()
    solver.build_ul_solver()
    lower_sampler, upper_sampler = task.lower_sampler(), task.upper_sampler()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        solver.run_iter(lower_sampler.draw(), upper_sampler.draw(), count)
        count += 1
    return {name: p.detach() for name, p in model.named_parameters()}, weights.logits.detach(), count
