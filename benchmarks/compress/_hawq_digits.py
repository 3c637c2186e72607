"""Digits networks of the HAWQ-V2 benchmark: training, traces, tables, random plans of a given size."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data import Split, digits
from hesse.compress.hawq import (
    BitPlan,
    LayerTraces,
    SensitivityTable,
    UniformQuantizer,
    allocate_bits,
    layer_traces,
    sensitivity_table,
    uniform_plan,
)
from hesse.curvature import hessian, top_eigenpairs

BITS = (2, 3, 4, 6, 8)


def cross_entropy(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def convolutional() -> nn.Sequential:
    """conv8, conv16, pool, conv32, conv32, pool, fc64, fc10: weights of 72, 1152, 4608, 9216, 8192 and 640 entries."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def perceptron() -> nn.Sequential:
    """Three linear layers, which torchao can carry."""
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))


@dataclass(frozen=True, slots=True)
class Case:
    """A trained network with its data; calibration is the first 512 training rows."""

    net: nn.Sequential
    data: Split
    calibration: tuple[Tensor, Tensor]

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        return self.data.test_x, self.data.test_y

    @property
    def numel(self) -> dict[str, int]:
        return {name: p.numel() for name, p in self.net.named_parameters() if p.ndim > 1}

    def batches(self, size: int = 64) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.data.train_x.split(size), self.data.train_y.split(size), strict=True))

    def accuracy(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(self.data.test_x).argmax(1) == self.data.test_y).double().mean())


@cache
def trained(kind: str, seed: int, epochs: int) -> Case:
    """Adam, 2e-3, 1300 training rows. Batches of 128: no size is published, and this one gives the traces that are."""
    data = digits(1300, seed=seed, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = convolutional() if kind == "convolutional" else perceptron()
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(data.train_x)).split(128):
                optimizer.zero_grad()
                cross_entropy(net, (data.train_x[rows], data.train_y[rows])).backward()
                optimizer.step()
    return Case(net.eval(), data, (data.train_x[:512], data.train_y[:512]))


@cache
def traces_of(kind: str, seed: int, epochs: int, num_probes: int = 30) -> LayerTraces:
    case = trained(kind, seed, epochs)
    generator = torch.Generator().manual_seed(seed)
    return layer_traces(
        case.net,
        cross_entropy,
        case.calibration,
        num_probes=num_probes,
        rtol=0.0,
        chunk_size=1,
        keep_graph=True,
        generator=generator,
        show_progress=False,
    )


def table_of(case: Case, traces: LayerTraces, quantizer: UniformQuantizer) -> SensitivityTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # negative traces are counted in a row of their own
        return sensitivity_table(case.net, traces, BITS, quantizer)


def top_eigenvalues(case: Case, names: Sequence[str], seed: int) -> np.ndarray:
    """λ_max of every diagonal block of the Hessian, the weight of HAWQ's first version."""
    operator = hessian(cross_entropy, case.net, case.calibration, names=names, keep_graph=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        tops = [
            top_eigenpairs(
                operator.block([name]), 1, which="LA", tol=1e-3, generator=generator, show_progress=False
            ).eigenvalues[-1]
            for name in names
        ]
    return np.array([max(0.0, float(value)) for value in tops])


def even_plan(table: SensitivityTable, average: float) -> BitPlan:
    """One width for all where the budget is one; between two widths, the plan of least squared error."""
    if average in table.options:
        return uniform_plan(dict(zip(table.names, table.numel.tolist(), strict=True)), int(average))
    return allocate_bits(table.with_omega(table.error), average, constraint="average_bits")


def random_plans(table: SensitivityTable, average: float, count: int, seed: int) -> list[BitPlan]:
    """Plans drawn evenly among those between 97 % of the budget and all of it; fewer if few are met."""
    rng = np.random.default_rng(abs(seed))
    columns = rng.integers(0, len(table.options), (400_000, len(table.names)))
    widths = np.array(table.options)[columns]
    averages = widths @ table.numel / table.numel.sum()
    rows = np.unique(widths[(averages <= average) & (averages >= 0.97 * average)], axis=0)
    rng.shuffle(rows)
    numel = dict(zip(table.names, table.numel.tolist(), strict=True))
    return [BitPlan(dict(zip(table.names, row.tolist(), strict=True)), numel=numel) for row in rows[:count]]
