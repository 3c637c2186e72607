"""What DIFF2 is measured on: private logistic regression, a linear probe of ten classes, and a worst case to audit.

Shapes: N records, D unknowns, F features.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.optim.diff2 import LinearRecords, RoundInfo, dp_gd, run_diff2

__all__ = ["ETAS", "Probe", "best_gradients", "generator", "logistic", "penalty_grad", "probe"]

ETAS = (2.0, 8.0, 20.0)


def generator(seed: int, stream: int) -> torch.Generator:
    """Independent draws for each pair."""
    return torch.Generator().manual_seed(1_000_003 * abs(seed) + stream)


def logistic(num_records: int, dim: int, labels: str, draws: torch.Generator) -> LinearRecords:
    """Logistic regression on rows of length 1 that point anywhere.

    ``labels="sign"``: y = sign(a·w), w ~ N(0, I). ``labels="noisy"``: y = 1 with probability sigmoid(3 a·w).
    """
    rows = torch.randn(num_records, dim, generator=draws, dtype=torch.float64)
    rows /= rows.norm(dim=1, keepdim=True)
    margins = rows @ torch.randn(dim, generator=draws, dtype=torch.float64)
    if labels == "noisy":
        margins = torch.sigmoid(3 * margins) - torch.rand(num_records, generator=draws, dtype=torch.float64)
    return LinearRecords(rows, torch.where(margins > 0, 1.0, -1.0).double(), _logistic_slope)


def _logistic_slope(outputs: Tensor, labels: Tensor) -> Tensor:
    signs = labels.unsqueeze(1)
    return -signs * torch.sigmoid(-signs * outputs)


def penalty_grad(x: Tensor) -> Tensor:
    """∇ of 0.01 Σ x²/(1 + x²): not convex, and without data."""
    return 0.02 * x / (1 + x**2) ** 2


def best_gradients(
    records: LinearRecords, dim: int, epsilon: float, rounds: Sequence[int], draws: Callable[[int], torch.Generator]
) -> dict[str, tuple[float, float, int]]:
    """‖∇f‖² of DP-GD and DIFF2, mean over the last rounds, at the best step and number of rounds of each.

    The last 20 rounds, or the last quarter where there are fewer than 80. (1e-5, ε); both methods and all steps see
    the same stream of normal numbers.
    """
    best: dict[str, tuple[float, float, int]] = {}
    for count in rounds:
        tail = min(20, count // 4)
        for eta in ETAS:
            for name in ("DP-GD", "DIFF2"):
                found: list[float] = []

                def watch(
                    at: int | RoundInfo, x: Tensor, found: list[float] = found, first: int = count - tail
                ) -> None:
                    if (at if isinstance(at, int) else at.number) >= first:
                        full = records.gradient_sum(x, math.inf).total / records.num_records + penalty_grad(x)
                        found.append(float(full.square().sum()))

                common = {"lr": eta, "rounds": count, "epsilon": epsilon, "delta": 1e-5, "penalty_grad": penalty_grad}
                start, noise = torch.zeros(dim, dtype=torch.float64), draws(count)
                if name == "DP-GD":
                    dp_gd(records, start, clip=1.0, generator=noise, on_round=watch, **common)
                else:
                    radii = {"clip_grad": 1.0, "clip_diff": 0.1, "restart_interval": count // 2}
                    run_diff2([records], start, generator=noise, on_round=watch, **radii, **common)
                mean = sum(found) / len(found)
                if name not in best or mean < best[name][0]:
                    best[name] = (mean, eta, count)
    return best


@dataclass(frozen=True, slots=True)
class Probe:
    """Ten classes around random centres, rows of length 1 with a constant among their entries; three disjoint parts."""

    train: tuple[Tensor, Tensor]  # (N, F), (N,)
    check: tuple[Tensor, Tensor]  # where steps are chosen
    test: tuple[Tensor, Tensor]

    def records(self) -> LinearRecords:
        """The training part under cross-entropy."""
        return LinearRecords(*self.train, _softmax_slope, num_outputs=10)

    @staticmethod
    def accuracy(weights: Tensor, part: tuple[Tensor, Tensor]) -> float:
        """Per cent of right answers."""
        inputs, labels = part
        return 100 * float(((inputs @ weights.reshape(10, -1).T).argmax(1) == labels).double().mean())


def probe(num_train: int, num_other: int, features: int, draws: torch.Generator) -> Probe:
    """Draw the classes: centres of length 3 among unit noise, then features scaled from 1 down to 1/30.

    Most of what tells classes apart lies in features that are small, as in real tables and pictures.
    """
    total = num_train + 2 * num_other
    centres = torch.randn(10, features, generator=draws)
    centres *= 3.0 / centres.norm(dim=1, keepdim=True)
    labels = torch.randint(10, (total,), generator=draws)
    rows = centres[labels] + torch.randn(total, features, generator=draws)
    rows *= torch.logspace(0, -1.5, features)
    rows = torch.cat([rows, torch.ones(total, 1)], dim=1)
    rows /= rows.norm(dim=1, keepdim=True)
    cuts = [num_train, num_other, num_other]
    return Probe(*zip(rows.split(cuts), labels.split(cuts), strict=True))


def _softmax_slope(outputs: Tensor, labels: Tensor) -> Tensor:
    slopes = outputs.softmax(1)
    return slopes - torch.nn.functional.one_hot(labels, outputs.shape[1]).to(slopes)
