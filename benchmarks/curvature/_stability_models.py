"""The two toy models whose minima the benchmark `sgd_stability` visits, and their training, many runs side by side.

Half the squared error, one output. Shapes: R runs, S problems, N samples, D inputs, M neurons.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "DiagonalLinearNetwork",
    "Problems",
    "Runs",
    "diagonal_step",
    "relu_step",
    "sparse_problems",
    "teacher_problems",
    "train",
    "two_layer_relu",
]

Parameters = tuple[Tensor, Tensor]
Step = Callable[[Parameters, Tensor, Tensor], tuple[Parameters, Tensor]]
"""(parameters of R runs, inputs (R, B, D), targets (R, B)) -> gradients of the mean loss, residuals (R, B)."""


class DiagonalLinearNetwork(nn.Module):
    """f(x) = (u² - v²) · x."""

    def __init__(self, u: Tensor, v: Tensor) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(u.clone()), nn.Parameter(v.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.u.square() - self.v.square())


def two_layer_relu(w: Tensor, a: Tensor) -> nn.Sequential:
    """f(x) = Σ_k a_k relu(w_k · x), from weights (M, D) and (M,)."""
    net = nn.Sequential(
        nn.Linear(w.shape[1], w.shape[0], bias=False), nn.ReLU(), nn.Linear(w.shape[0], 1, bias=False)
    ).to(w.dtype)
    net.load_state_dict({"0.weight": w, "2.weight": a.unsqueeze(0)})
    return net


@dataclass(frozen=True, slots=True)
class Problems:
    """S independent regression problems without noise."""

    x: Tensor  # (S, N, D)
    y: Tensor  # (S, N)
    truth: Tensor  # (S, D), or (S, neurons of the teacher, D)


def sparse_problems(count: int, n: int, d: int, nonzero: int, generator: torch.Generator) -> Problems:
    """Gaussian inputs, a linear teacher with a few entries of size one."""
    x = torch.randn(count, n, d, dtype=torch.float64, generator=generator)
    truth = torch.zeros(count, d, dtype=torch.float64)
    signs = torch.randint(2, (count, nonzero), generator=generator) * 2.0 - 1
    truth[:, :nonzero] = signs.to(torch.float64)  # which ones does not matter, the inputs are exchangeable
    return Problems(x, (x @ truth.unsqueeze(2)).squeeze(2), truth)


def teacher_problems(count: int, n: int, d: int, neurons: int, generator: torch.Generator) -> Problems:
    """Gaussian inputs, a sum of a few ReLUs with directions of length one."""
    x = torch.randn(count, n, d, dtype=torch.float64, generator=generator)
    truth = nn.functional.normalize(torch.randn(count, neurons, d, dtype=torch.float64, generator=generator), dim=2)
    return Problems(x, (x @ truth.mT).relu().sum(2), truth)


@dataclass(frozen=True, slots=True)
class Runs:
    """Where R runs ended."""

    parameters: Parameters
    loss: Tensor  # (R,), over all samples; infinite where it diverged
    steps: Tensor  # (R,)


def diagonal_step(parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Parameters, Tensor]:
    """For `DiagonalLinearNetwork`."""
    u, v = parameters
    residual = (x @ (u.square() - v.square()).unsqueeze(2)).squeeze(2) - y
    slope = 2 * (x.mT @ residual.unsqueeze(2)).squeeze(2) / x.shape[1]
    return (slope * u, -slope * v), residual


def relu_step(parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Parameters, Tensor]:
    """For `two_layer_relu`."""
    w, a = parameters
    z = x @ w.mT  # (R, B, M)
    h = z.relu()
    residual = (h @ a.unsqueeze(2)).squeeze(2) - y
    back = residual.unsqueeze(2) * a.unsqueeze(1) * (z > 0)
    return (back.mT @ x / x.shape[1], (h.mT @ residual.unsqueeze(2)).squeeze(2) / x.shape[1]), residual


def train(
    step_fn: Step,
    start: Parameters,
    problems: Problems,
    which: Tensor,
    lr: Tensor,
    *,
    batch_size: int | None,
    max_steps: int,
    tol: float,
    generator: torch.Generator,
    check_every: int = 250,
) -> Runs:
    """Train R runs at once until the loss over all samples is at most tol; run r is on problem ``which[r]``.

    ``batch_size`` None is gradient descent; batches are drawn independently of each other. Runs that have converged, or
    whose loss exceeds 1e6, leave the block.
    """
    parameters = (start[0].clone(), start[1].clone())
    final = (start[0].clone(), start[1].clone())
    loss, steps = torch.full_like(lr, torch.inf), torch.full((len(lr),), max_steps)
    alive, x, y = torch.arange(len(lr)), problems.x[which], problems.y[which]
    rates = lr
    for step in range(max_steps + 1):
        if step % check_every == 0:
            residual = step_fn(parameters, x, y)[1]
            now = residual.square().mean(1) / 2
            gone = ~(now <= 1e6)
            done = (now <= tol) | gone | (step == max_steps)
            loss[alive[done]] = torch.where(gone, torch.inf, now)[done]
            steps[alive[done]] = step
            for kept, value in zip(final, parameters, strict=True):
                kept[alive[done]] = value[done]
            stay = ~done
            if not bool(stay.any()):
                break
            if bool(done.any()):
                alive, x, y, rates = alive[stay], x[stay], y[stay], rates[stay]
                parameters = (parameters[0][stay], parameters[1][stay])
        if batch_size is None:
            xb, yb = x, y
        else:
            index = _batches(len(alive), x.shape[1], batch_size, generator)
            run = torch.arange(len(alive)).unsqueeze(1)
            xb, yb = x[run, index], y[run, index]
        gradients = step_fn(parameters, xb, yb)[0]
        parameters = (_moved(parameters[0], rates, gradients[0]), _moved(parameters[1], rates, gradients[1]))
    return Runs(final, loss, steps)


def _moved(parameter: Tensor, rates: Tensor, gradient: Tensor) -> Tensor:
    return parameter - rates.reshape(-1, *[1] * (parameter.ndim - 1)) * gradient


def _batches(runs: int, n: int, batch_size: int, generator: torch.Generator) -> Tensor:
    if batch_size == 1:
        return torch.randint(n, (runs, 1), generator=generator)
    return torch.rand(runs, n, generator=generator).topk(batch_size, dim=1).indices
