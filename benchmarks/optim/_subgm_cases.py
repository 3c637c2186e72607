"""Problems of robust matrix recovery, and the peers of SubGM on them."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers import require_peer
from hesse.optim.subgm import RecoveryResult, SymmetricMatrices

__all__ = ["Ensemble", "convex_recovery", "gradient_peers", "principal_component_pursuit", "relative_error"]

F64 = torch.float64


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Gaussian measurements of one eigenbasis, and the generator of everything that is put on top."""

    dense: Tensor  # (m, d, d)
    basis: Tensor  # (d, r)
    generator: torch.Generator

    @classmethod
    def draw(cls, seed: int, m: int, d: int, r: int = 2) -> "Ensemble":
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=F64)).Q
        return cls(torch.randn(m, d, d, generator=generator, dtype=F64), basis, generator)

    @property
    def packed(self) -> SymmetricMatrices:
        return SymmetricMatrices.from_dense(self.dense)

    def truth(self, condition: float = 1.0) -> Tensor:
        return (self.basis * torch.linspace(1, 1 / condition, self.basis.shape[1], dtype=F64)) @ self.basis.mT

    def targets(self, truth: Tensor, *, outliers: float = 0.0, noise: float = 0.0) -> Tensor:
        """⟨A_i, X⟩ with a fraction of outliers N(0, 10²) added, and dense noise of this standard deviation."""
        clean = self.dense.flatten(1) @ truth.flatten()
        m = len(clean)
        bad = torch.rand(m, generator=self.generator, dtype=F64) < outliers
        gross, dense = torch.randn(2, m, generator=self.generator, dtype=F64)
        return clean + 10 * bad * gross + noise * dense


def relative_error(found: RecoveryResult | Tensor, truth: Tensor) -> list[float]:
    """‖X - X*‖_F/‖X*‖_F for each problem of a stack."""
    matrix = found if isinstance(found, Tensor) else found.matrix
    gap = torch.linalg.matrix_norm(matrix - truth) / torch.linalg.matrix_norm(truth)
    return gap.reshape(-1).tolist()


def gradient_peers(ensemble: Ensemble, y: Tensor, truth: Tensor, steps: int) -> dict[str, float]:
    """torch.optim on the same loss from ‖U_0‖₂ = 1, each at its best of five learning rates with the decay 0.995."""
    d = truth.shape[0]
    measurements = ensemble.packed
    start = torch.linalg.qr(torch.randn(d, d, generator=ensemble.generator, dtype=F64)).Q
    rates = (0.01, 0.03, 0.1, 0.3, 1.0)
    found = {}
    for optimizer_class in (torch.optim.SGD, torch.optim.Adam):
        factors = [start.clone().requires_grad_() for _ in rates]
        groups = [{"params": [factor], "lr": rate} for factor, rate in zip(factors, rates, strict=True)]
        optimizer = optimizer_class(groups)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.995)
        for _ in range(steps):
            optimizer.zero_grad()
            (measurements.apply(torch.stack(factors)) - y).abs().mean(-1).sum().backward()
            optimizer.step()
            schedule.step()
        matrices = torch.stack([factor.detach() @ factor.detach().mT for factor in factors])
        found[optimizer_class.__name__] = min(relative_error(matrices.nan_to_num(1e3), truth))
    return found


def convex_recovery(ensemble: Ensemble, y: Tensor, truth: Tensor) -> dict[str, float]:
    """cvxpy: the best of four weights λ in min mean |y - ⟨A, X⟩| + λ tr X over X ⪰ 0, and seconds for one of them."""
    cp = require_peer("cvxpy")
    d = truth.shape[0]
    X = cp.Variable((d, d), PSD=True)
    residual = y.numpy() - ensemble.dense.flatten(1).numpy() @ cp.vec(X, order="C")
    weight = cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.norm1(residual) / len(y) + weight * cp.trace(X)))
    weights = (0.0, 1e-3, 1e-2, 1e-1)
    errors, begin = [], time.perf_counter()
    for value in weights:
        weight.value = value
        problem.solve(solver="CLARABEL")
        errors.append(relative_error(torch.as_tensor(X.value), truth)[0])
    return {"error": min(errors), "seconds": (time.perf_counter() - begin) / len(weights)}


def principal_component_pursuit(matrix: Tensor, truth: Tensor) -> float:
    """cvxpy: min ‖L‖_* + ‖M - L‖₁/√max(p, q), the weight that its authors recommend; the relative error of L."""
    cp = require_peer("cvxpy")
    L = cp.Variable(matrix.shape)
    loss = cp.normNuc(L) + cp.sum(cp.abs(matrix.numpy() - L)) / max(matrix.shape) ** 0.5
    cp.Problem(cp.Minimize(loss)).solve(solver="CLARABEL")
    return relative_error(torch.as_tensor(L.value), truth)[0]
