"""The problems of the target_surrogates benchmark: logistic regression, matrix factorisation, an expert to imitate."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Expert", "Logistic", "MatrixFactorisation", "geometric_mean", "tanh_network", "tanh_outputs"]

F64 = torch.float64


def geometric_mean(values: list[float]) -> float:
    """exp of the mean logarithm."""
    return float(torch.tensor(values, dtype=F64).log().mean().exp())


def tanh_network(generator: torch.Generator, widths: tuple[int, int, int]) -> list[Tensor]:
    """Weights and biases of one hidden layer, to train."""
    into, hidden, out = widths
    shapes = ((into, hidden), (hidden,), (hidden, out), (out,))
    scales = (into**-0.5, 0.0, hidden**-0.5, 0.0)
    return [
        (scale * torch.randn(shape, generator=generator, dtype=F64)).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def tanh_outputs(params: list[Tensor], x: Tensor) -> Tensor:
    """W2 tanh(W1 x + b1) + b2, one row a datum."""
    return torch.tanh(x @ params[0] + params[1]) @ params[2] + params[3]


@dataclass(frozen=True, slots=True)
class Logistic:
    """Binary logistic regression whose columns fall in scale, so that X^T X has condition 1e3."""

    X: Tensor  # (n, d)
    y: Tensor  # (n,), signs
    optimum: float
    smoothness: float  # L of the mean loss in the weights

    @classmethod
    def draw(cls, seed: int, n: int = 2000, d: int = 50) -> "Logistic":
        """Labels are the sign of X w plus noise of 0.3 standard deviations of X w."""
        generator = torch.Generator().manual_seed(seed)
        X = torch.randn(n, d, generator=generator, dtype=F64) * torch.logspace(0, -1.5, d, dtype=F64)
        signal = X @ torch.randn(d, generator=generator, dtype=F64)
        y = torch.sign(signal + 0.3 * signal.std() * torch.randn(n, generator=generator, dtype=F64))
        smoothness = float(torch.linalg.matrix_norm(X, 2)) ** 2 / (4 * n)
        w = torch.zeros(d, dtype=F64)
        for _ in range(60):  # Newton's method with halved steps: the oracle for every suboptimality
            p = torch.sigmoid(-y * (X @ w))
            gradient = -(X.T @ (y * p)) / n
            hessian = (X.T * (p * (1 - p))) @ X / n
            step = torch.linalg.solve(hessian, gradient)
            value, scale = cls.mean_loss(X @ w, y), 1.0
            while cls.mean_loss(X @ (w - scale * step), y) > value and scale > 1e-12:
                scale /= 2
            w = w - scale * step
            if float(gradient.norm()) < 1e-14:
                break
        return cls(X, y, float(cls.mean_loss(X @ w, y)), smoothness)

    @staticmethod
    def mean_loss(z: Tensor, y: Tensor) -> Tensor:
        """The mean of log(1 + exp(-y z))."""
        return torch.nn.functional.softplus(-y * z).mean()

    def loss(self, w: Tensor, rows: Tensor | None = None) -> Tensor:
        """The mean over all data, or over those of a batch."""
        X, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
        return self.mean_loss(X @ w, y)

    def gap(self, w: Tensor) -> float:
        """Suboptimality, not below rounding."""
        return max(float(self.loss(w.detach())) - self.optimum, 1e-16)

    def start(self) -> Tensor:
        """Weights of zero."""
        return torch.zeros(self.X.shape[1], dtype=F64, requires_grad=True)

    def batches(self, seed: int, size: int, count: int) -> list[Tensor]:
        """Indices, drawn without replacement in epochs."""
        generator = torch.Generator().manual_seed(seed)
        found: list[Tensor] = []
        while len(found) < count:
            found.extend(torch.randperm(len(self.X), generator=generator).split(size))
        return found[:count]


@dataclass(frozen=True, slots=True)
class MatrixFactorisation:
    """Y = A X with A badly scaled, to be fitted by W2 W1 from a small random start."""

    X: Tensor  # (6, n)
    Y: Tensor  # (10, n)
    W1: Tensor
    W2: Tensor

    @classmethod
    def draw(cls, seed: int, n: int = 1000) -> "MatrixFactorisation":
        """A = diag(linspace(1, 1e-10, 10)) U(0, 1)^(10 x 6)."""
        generator = torch.Generator().manual_seed(seed)
        X = torch.randn(6, n, generator=generator, dtype=F64)
        A = torch.linspace(1, 1e-10, 10, dtype=F64).unsqueeze(1) * torch.rand(10, 6, generator=generator, dtype=F64)
        W1 = 0.3 * torch.randn(10, 6, generator=generator, dtype=F64)
        W2 = 0.3 * torch.randn(10, 10, generator=generator, dtype=F64)
        return cls(X, A @ X, W1, W2)

    def start(self) -> list[Tensor]:
        """Copies of the two factors to train."""
        return [self.W1.clone().requires_grad_(), self.W2.clone().requires_grad_()]

    def outputs(self, factors: list[Tensor]) -> Tensor:
        """Predictions, one row a datum."""
        return (factors[1] @ (factors[0] @ self.X)).T

    def mean_loss(self, z: Tensor) -> Tensor:
        """The mean of ½‖z - y‖²."""
        return (z - self.Y.T).square().sum(1).mean() / 2

    def loss(self, factors: list[Tensor]) -> float:
        """The loss of two factors, as a number."""
        return float(self.mean_loss(self.outputs(factors)).detach())


class Expert:
    """A linear-quadratic regulator whose actuators saturate, on a linear system with noise.

    States (4,), actions (2,). The expert is -K x clipped to [-1, 1]; K solves the Riccati equation by iteration.
    """

    horizon, noise = 25, 0.3

    def __init__(self, seed: int) -> None:
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        self.A = torch.eye(4, dtype=F64) + 0.15 * torch.randn(4, 4, generator=generator, dtype=F64)
        self.B = torch.randn(4, 2, generator=generator, dtype=F64) / 2
        P, self.K = torch.eye(4, dtype=F64), torch.zeros(2, 4, dtype=F64)
        for _ in range(500):
            self.K = torch.linalg.solve(torch.eye(2, dtype=F64) + self.B.T @ P @ self.B, self.B.T @ P @ self.A)
            P = torch.eye(4, dtype=F64) + self.A.T @ P @ (self.A - self.B @ self.K)
        self.num_batches = 0

    def actions(self, states: Tensor) -> Tensor:
        """What the expert would do."""
        return (-(states @ self.K.T)).clamp(-1, 1)

    def label(self, states: Tensor) -> Tensor:
        """As `actions`, counted: one batch of labels."""
        self.num_batches += 1
        return self.actions(states)

    def visit(self, policy: Callable[[Tensor], Tensor], seed: int, episodes: int) -> Tensor:
        """States on the way of a policy, (episodes · horizon, 4); states are held in a box, where an expert is lost."""
        generator = torch.Generator().manual_seed(seed)
        state = torch.randn(episodes, 4, generator=generator, dtype=F64)
        seen = []
        for _ in range(self.horizon):
            seen.append(state)
            with torch.no_grad():
                action = policy(state).clamp(-1, 1)
            shock = self.noise * torch.randn(episodes, 4, generator=generator, dtype=F64)
            state = (state @ self.A.T + action @ self.B.T + shock).clamp(-5, 5)
        return torch.cat(seen)

    def policy(self) -> list[Tensor]:
        """An untrained network with 32 hidden units."""
        return tanh_network(torch.Generator().manual_seed(self.seed), (4, 32, 2))

    def dagger(
        self,
        params: list[Tensor],
        update: Callable[[Tensor, Tensor, int], None],
        rounds: int,
        goal: float = 0.0,
    ) -> list[float]:
        """Roll out, ask for labels, update; stops below the goal.

        Returns half the mean squared error of the actions on states the policy visits, after every round, from 1000
        fresh states whose labels nobody trains on.
        """
        losses: list[float] = []
        for t in range(1, rounds + 1):
            states = self.visit(lambda x: tanh_outputs(params, x), 100_000 * self.seed + t, episodes=4)
            update(states, self.label(states), t)
            fresh = self.visit(lambda x: tanh_outputs(params, x), 100_000 * self.seed + 99_999, episodes=40)
            error = tanh_outputs(params, fresh).detach() - self.actions(fresh)
            losses.append(float(error.square().sum(1).mean()) / 2)
            if losses[-1] <= goal:
                break
        return losses
