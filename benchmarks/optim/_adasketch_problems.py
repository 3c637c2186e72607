"""Equality-constrained test problems: Hock-Schittkowski and Boggs-Tolle, constrained logistic regression, a Laplacian.

Values at the solutions are those printed in the collections; where a problem has several, the lowest known.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TEST_PROBLEMS", "Problem", "laplacian_problem", "logistic_problem"]

Function = Callable[[Tensor], Tensor]
ROOT2 = math.sqrt(2)


@dataclass(frozen=True, slots=True)
class Problem:
    """min fun(x) subject to con(x) = 0, from x0."""

    name: str
    fun: Function
    con: Function
    start: tuple[float, ...]
    value: float | None = None  # of f at the solution

    @property
    def x0(self) -> Tensor:
        """In float64."""
        return torch.tensor(self.start, dtype=torch.float64)


def _hs6(x: Tensor) -> Tensor:
    return (1 - x[0]) ** 2


def _hs6_con(x: Tensor) -> Tensor:
    return (10 * (x[1] - x[0] ** 2)).reshape(1)


def _hs7(x: Tensor) -> Tensor:
    return torch.log1p(x[0] ** 2) - x[1]


def _hs7_con(x: Tensor) -> Tensor:
    return ((1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4).reshape(1)


def _hs28(x: Tensor) -> Tensor:
    return (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2


def _hs28_con(x: Tensor) -> Tensor:
    return (x[0] + 2 * x[1] + 3 * x[2] - 1).reshape(1)


def _genhs28(x: Tensor) -> Tensor:
    return (x[:-1] + x[1:]).square().sum()


def _genhs28_con(x: Tensor) -> Tensor:
    return x[:-2] + 2 * x[1:-1] + 3 * x[2:] - 1


def _hs40(x: Tensor) -> Tensor:
    return -x.prod()


def _hs40_con(x: Tensor) -> Tensor:
    return torch.stack([x[0] ** 3 + x[1] ** 2 - 1, x[0] ** 2 * x[3] - x[2], x[3] ** 2 - x[1]])


def _hs42(x: Tensor) -> Tensor:
    return ((x - torch.arange(1, 5, dtype=x.dtype)) ** 2).sum()


def _hs42_con(x: Tensor) -> Tensor:
    return torch.stack([x[0] - 2, x[2] ** 2 + x[3] ** 2 - 2])


def _hs47(x: Tensor) -> Tensor:
    return (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 3 + (x[2] - x[3]) ** 4 + (x[3] - x[4]) ** 4


def _hs47_con(x: Tensor) -> Tensor:
    return torch.stack([x[0] + x[1] ** 2 + x[2] ** 3 - 3, x[1] - x[2] ** 2 + x[3] - 1, x[0] * x[4] - 1])


def _hs48(x: Tensor) -> Tensor:
    return (x[0] - 1) ** 2 + (x[1] - x[2]) ** 2 + (x[3] - x[4]) ** 2


def _hs48_con(x: Tensor) -> Tensor:
    return torch.stack([x.sum() - 5, x[2] - 2 * (x[3] + x[4]) + 3])


def _hs50(x: Tensor) -> Tensor:
    return (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 2 + (x[2] - x[3]) ** 4 + (x[3] - x[4]) ** 2


def _hs50_con(x: Tensor) -> Tensor:
    return x[:3] + 2 * x[1:4] + 3 * x[2:5] - 6


def _shifted(x: Tensor, scale: float) -> Tensor:
    return (scale * x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2


def _shifted_con(x: Tensor, right: float) -> Tensor:
    return torch.stack([x[0] + 3 * x[1] - right, x[2] + x[3] - 2 * x[4], x[1] - x[4]])


def _hs56(x: Tensor) -> Tensor:
    return -x[:3].prod()


def _hs56_con(x: Tensor) -> Tensor:
    sides = x[:3] - 4.2 * torch.sin(x[3:6]) ** 2
    return torch.cat([sides, (x[0] + 2 * x[1] + 2 * x[2] - 7.2 * torch.sin(x[6]) ** 2).reshape(1)])


def _hs77(x: Tensor) -> Tensor:
    return (x[0] - 1) ** 2 + (x[0] - x[1]) ** 2 + (x[2] - 1) ** 2 + (x[3] - 1) ** 4 + (x[4] - 1) ** 6


def _hs77_con(x: Tensor) -> Tensor:
    first = x[0] ** 2 * x[3] + torch.sin(x[3] - x[4]) - 2 * ROOT2
    return torch.stack([first, x[1] + x[2] ** 4 * x[3] ** 2 - 8 - ROOT2])


def _hs78_con(x: Tensor) -> Tensor:
    return torch.stack([x.square().sum() - 10, x[1] * x[2] - 5 * x[3] * x[4], x[0] ** 3 + x[1] ** 3 + 1])


def _hs79(x: Tensor) -> Tensor:
    chain = (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 2 + (x[2] - x[3]) ** 4 + (x[3] - x[4]) ** 4
    return (x[0] - 1) ** 2 + chain


def _hs79_con(x: Tensor) -> Tensor:
    first = x[0] + x[1] ** 2 + x[2] ** 3 - 2 - 3 * ROOT2
    return torch.stack([first, x[1] - x[2] ** 2 + x[3] + 2 - 2 * ROOT2, x[0] * x[4] - 2])


def _hs100(x: Tensor) -> Tensor:
    head = (x[0] - 10) ** 2 + 5 * (x[1] - 12) ** 2 + x[2] ** 4 + 3 * (x[3] - 11) ** 2
    return head + 10 * x[4] ** 6 + 7 * x[5] ** 2 + x[6] ** 4 - 4 * x[5] * x[6] - 10 * x[5] - 8 * x[6]


def _hs100_con(x: Tensor) -> Tensor:
    first = 127 - 2 * x[0] ** 2 - 3 * x[1] ** 4 - x[2] - 4 * x[3] ** 2 - 5 * x[4]
    second = -4 * x[0] ** 2 - x[1] ** 2 + 3 * x[0] * x[1] - 2 * x[2] ** 2 - 5 * x[5] + 11 * x[6]
    return torch.stack([first, second])


def _bt1(x: Tensor) -> Tensor:
    return 100 * x.square().sum() - x[0] - 100


def _bt2(x: Tensor) -> Tensor:
    return (x[0] - 1) ** 2 + (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 4


def _bt2_con(x: Tensor) -> Tensor:
    return (x[0] * (1 + x[1] ** 2) + x[2] ** 4 - 4 - 3 * ROOT2).reshape(1)


def _bt4(x: Tensor) -> Tensor:
    return x[0] - x[1] + x[1] ** 3


def _bt4_con(x: Tensor) -> Tensor:
    return torch.stack([x.square().sum() - 25, x.sum() - 1])


def _bt5(x: Tensor) -> Tensor:
    return 1000 - x[0] ** 2 - 2 * x[1] ** 2 - x[2] ** 2 - x[0] * x[1] - x[0] * x[2]


def _bt5_con(x: Tensor) -> Tensor:
    return torch.stack([x.square().sum() - 25, 8 * x[0] + 14 * x[1] + 7 * x[2] - 56])


def _bt9_con(x: Tensor) -> Tensor:
    return torch.stack([x[1] - x[0] ** 3 - x[2] ** 2, x[0] ** 2 - x[1] - x[3] ** 2])


def _bt10_con(x: Tensor) -> Tensor:
    return torch.stack([x[1] - x[0] ** 3, x[0] ** 2 - x[1]])


def _bt11_con(x: Tensor) -> Tensor:
    first = x[0] + x[1] ** 2 + x[2] ** 3 - 2 - 3 * ROOT2
    return torch.stack([first, x[1] + x[3] - x[2] ** 2 + 2 - 2 * ROOT2, x[0] - x[4] - 2])


def _bt12(x: Tensor) -> Tensor:
    return 0.01 * x[0] ** 2 + x[1] ** 2


def _bt12_con(x: Tensor) -> Tensor:
    second = x[0] ** 2 + x[1] ** 2 - x[3] ** 2 - 25
    return torch.stack([x[0] + x[1] - x[2] ** 2 - 25, second, x[0] - x[4] ** 2 - 2])


_ANGLE = math.asin(math.sqrt(1 / 4.2))

TEST_PROBLEMS = [
    Problem("HS6", _hs6, _hs6_con, (-1.2, 1.0), 0.0),
    Problem("HS7", _hs7, _hs7_con, (2.0, 2.0), -math.sqrt(3)),
    Problem("HS28", _hs28, _hs28_con, (-4.0, 1.0, 1.0), 0.0),
    Problem("GENHS28", _genhs28, _genhs28_con, (-4.0,) + (1.0,) * 9, 0.9271737),
    Problem("HS40", _hs40, _hs40_con, (0.8,) * 4, -0.25),
    Problem("HS42", _hs42, _hs42_con, (1.0,) * 4, 28 - 10 * ROOT2),
    Problem("HS47", _hs47, _hs47_con, (2.0, ROOT2, -1.0, 2 - ROOT2, 0.5), 0.0),
    Problem("HS48", _hs48, _hs48_con, (3.0, 5.0, -3.0, 2.0, -2.0), 0.0),
    Problem("HS50", _hs50, _hs50_con, (35.0, -31.0, 11.0, 5.0, -5.0), 0.0),
    Problem("HS51", lambda x: _shifted(x, 1.0), lambda x: _shifted_con(x, 4.0), (2.5, 0.5, 2.0, -1.0, 0.5), 0.0),
    Problem("HS52", lambda x: _shifted(x, 4.0), lambda x: _shifted_con(x, 0.0), (2.0,) * 5, 1859 / 349),
    Problem("HS56", _hs56, _hs56_con, (1.0,) * 3 + (_ANGLE,) * 3 + (math.asin(math.sqrt(5 / 7.2)),), -3.456),
    Problem("HS77", _hs77, _hs77_con, (2.0,) * 5, 0.24150513),
    Problem("HS78", lambda x: x.prod(), _hs78_con, (-2.0, 1.5, 2.0, -1.0, -1.0), -2.91970041),
    Problem("HS79", _hs79, _hs79_con, (2.0,) * 5, 0.0787768209),
    Problem("HS100LNP", _hs100, _hs100_con, (1.0, 2.0, 0.0, 4.0, 0.0, 1.0, 1.0), 680.630057),
    Problem("BT1", _bt1, lambda x: x.square().sum().reshape(1) - 1, (0.08, 0.06), -1.0),
    Problem("BT2", _bt2, _bt2_con, (10.0,) * 3, 0.0325682),
    Problem("BT3", lambda x: _shifted(x, 1.0), lambda x: _shifted_con(x, 0.0), (20.0,) * 5, 4.0930233),
    Problem("BT4", _bt4, _bt4_con, (4.0382, -2.9470, -0.09115), -45.5105514),
    Problem("BT5", _bt5, _bt5_con, (2.0,) * 3, 961.7151721),
    Problem("BT9", lambda x: -x[0], _bt9_con, (2.0,) * 4, -1.0),
    Problem("BT10", lambda x: -x[0], _bt10_con, (2.0, 2.0), -1.0),
    Problem("BT11, a variant", _hs79, _bt11_con, (2.0,) * 5),
    Problem("BT12", _bt12, _bt12_con, (15.81, 1.58, 0.0, 15.083, 3.7164), 6.1881188),
]


def logistic_problem(name: str, features: Tensor, signs: Tensor, rows: Tensor, right: Tensor) -> Problem:
    """Mean logistic loss subject to linear equations and ‖x‖² = 1, from ones.   Signs are ±1."""
    signed = features * signs.unsqueeze(1)

    def fun(x: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-(signed @ x)).mean()

    def con(x: Tensor) -> Tensor:
        return torch.cat([rows @ x - right, x.square().sum().reshape(1) - 1])

    return Problem(name, fun, con, (1.0,) * features.shape[1])


def laplacian_problem(size: int) -> Problem:
    """Distributed control of the Laplace equation on a size x size grid: w tracks a target, z is the control."""
    h = 2 / (size + 1)
    places = (torch.arange(1, size + 1, dtype=torch.float64) - (size + 1) / 2) * (0.1 / math.sqrt(15))
    target = torch.sin(4 + places).unsqueeze(1) + torch.cos(3 + places)

    def fun(x: Tensor) -> Tensor:
        state, control = x[: size * size], x[size * size :]
        return 0.5 * (state - target.reshape(-1)).square().sum() + 0.05 * control.square().sum()

    def con(x: Tensor) -> Tensor:
        state, control = x[: size * size].reshape(size, size), x[size * size :].reshape(size, size)
        padded = torch.nn.functional.pad(state, (1, 1, 1, 1))
        around = padded[1:-1, :-2] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[2:, 1:-1]
        return ((around - 4 * state) / h**2 + control).reshape(-1)

    return Problem(f"{size} x {size} grid", fun, con, (1.0,) * (2 * size * size))
