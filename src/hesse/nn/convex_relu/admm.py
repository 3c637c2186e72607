"""Two-layer ReLU training as a convex programme, by the alternating direction method with an exact structured step.

min_{v, w} l(F U, y) + β Σ_i (‖v_i‖ + ‖w_i‖) subject to G U >= 0; U = (v, w), F U = Σ_i D_i X (v_i - w_i),
G_i = (2 D_i - I) X. Shapes: X (N, D), patterns (N, P), U (T, 2, P, D) for T targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.convex_relu.losses import LossName, proximal, require_targets
from hesse.nn.convex_relu.structured import StructuredSystem

__all__ = ["ADMMResult", "ADMMState", "admm_path", "admm_relu"]

_CHECK = 10  # steps between two looks at the residuals
_BALANCE = 50  # steps between two changes of the penalty
_IMBALANCE = 10.0  # ratio of residuals at which it changes
_RANGE = 1e3  # factor by which it may change in all; without decay the multipliers vanish and so would the penalty


@dataclass(frozen=True, slots=True)
class ADMMState:
    """Where an iteration stands: copies, scaled duals and the penalty they are scaled by."""

    V: Tensor  # (T, 2, P, D), copy of U with zero groups
    S: Tensor  # (T, 2, P, N), copy of G U, non-negative
    L: Tensor  # dual of U = V
    N: Tensor  # dual of G U = S
    f: Tensor  # (T, N), copy of F U; not used by the squared loss
    M: Tensor  # dual of F U = f
    rho: float


@dataclass(frozen=True, slots=True)
class ADMMResult:
    """Cone variables and how far they got."""

    V: Tensor  # (2, P, D), or (T, 2, P, D) for T targets; G V >= 0 up to the primal residual
    dual: Tensor  # (N,) or (T, N), a subgradient of the loss at the outputs
    converged: bool
    num_steps: int
    primal_residual: float  # relative to the size of U and G U
    dual_residual: float  # relative to the size of the multipliers
    history: Tensor  # (checks, 3): step, primal and dual residual
    state: ADMMState  # to go on from


def admm_relu(
    X: Tensor,
    y: Tensor,
    D: Tensor,
    *,
    beta: float = 1e-2,
    loss: LossName = "squared",
    rho: float = 0.1,
    dual_step: float = 1.0,
    over_relaxation: float = 1.6,
    balance: bool = True,
    tol: float = 1e-4,
    max_steps: int = 1000,
    start: ADMMState | None = None,
    monitor: Callable[[int, Tensor], bool] | None = None,
) -> ADMMResult:
    """Train on given patterns to the global optimum of their convex programme.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows, float32 or float64; scale them to unit norm or standardise first. Append ones for a bias.
    y : Tensor, shape (N,) or (N, T)
        Targets, or labels -1 and 1. T problems share patterns and factors.
    D : Tensor, shape (N, P)
        Distinct patterns, as `sample_patterns` gives.
    beta : float, default 1e-2
        Weight decay β >= 0, against a sum for "squared" and a mean for the others. 0 leaves up to 2 P neurons.
    loss : {"squared", "hinge", "bce"}, default "squared"
        ½ Σ (f - y)², or the mean of max(0, 1 - y f) or log(1 + e^(-y f)).
    rho : float, default 0.1
        Penalty ρ to begin with; 1 is some ten times slower on scaled data, 0.01 oscillates.
    dual_step : float, default 1.0
        γ/ρ in (0, 1.618): length of the dual step, 1 being plain ADMM.
    over_relaxation : float, default 1.6
        In [1, 2): how far copies follow U.
    balance : bool, default True
        Double or halve ρ every 50 steps while one residual is over ten times the other.
    tol : float, default 1e-4
        Bound of both relative residuals.
    max_steps : int, default 1000
        Steps at most.
    start : ADMMState, optional
        Go on from there, as along a path of β; its ρ replaces ``rho``. Default: zero.
    monitor : callable, optional
        (step, V) -> whether to stop, called every ten steps.

    Returns
    -------
    ADMMResult
        Without a graph.

    Raises
    ------
    ArgumentError
        If an argument is out of range, X or y have NaN or Inf, or labels are not -1 and 1.
    ShapeError
        If shapes, dtypes or devices do not fit.

    Notes
    -----
    Exact step: O(N D P + N²) a step and target and O((N + D) P) memory, after one factor of D x D and one of N x N (in
    float64). Linear in P, where factoring the 2 D P unknowns is cubic.

    References
    ----------
    Y. Bai, T. Gautam, S. Sojoudi (2023), SIAM J. Math. Data Sci., arXiv 2201.01965. M. Pilanci, T. Ergen (2020), ICML,
    arXiv 2002.10553. S. Boyd et al. (2011), Found. Trends Mach. Learn. 3(1).
    """
    _check(X, y, D, loss)
    for name, value, low, high in (
        ("rho", rho, 0.0, torch.inf),
        ("dual_step", dual_step, 0.0, 1.618),
        ("over_relaxation", over_relaxation, 1.0 - 1e-12, 2.0),
        ("beta", beta, -1e-300, torch.inf),
        ("tol", tol, -1e-300, torch.inf),
        ("max_steps", max_steps, 0.5, torch.inf),
    ):
        if not low < value < high:
            raise ArgumentError(f"admm_relu: expected {name} in ({low:g}, {high:g}), got {value}")
    X = X.detach()
    targets = (y if y.ndim == 2 else y.unsqueeze(1)).detach().mT
    state = _zeros(X, targets, D, rho) if start is None else start
    V, S, L, N, f, M, rho = state.V, state.S, state.L, state.N, state.f, state.M, state.rho
    first_rho, squared = rho, loss == "squared"
    system = StructuredSystem.build(X, D, rho if squared else 1.0)
    signs = 2 * system.gates - 1
    pull = system.spread(targets, X) if squared else None
    relax, history, converged, step = over_relaxation, [], False, 0
    for step in range(1, max_steps + 1):
        b = V - L + (signs * (S - N)) @ X
        b = b + (pull / rho if pull is not None else system.spread(f - M, X))
        U = system.solve(b)
        XU = U @ X.mT
        GU = signs * XU
        previous_V, previous_S = V, S
        moved_U, moved_G = relax * U + (1 - relax) * V, relax * GU + (1 - relax) * S
        V = _shrink(moved_U + L, beta / rho)
        S = (moved_G + N).clamp_min(0)
        L = L + dual_step * (moved_U - V)
        N = N + dual_step * (moved_G - S)
        if not squared:
            moved_f = relax * system.outputs(XU) + (1 - relax) * f
            f = proximal(loss, moved_f + M, targets, 1 / rho)
            M = M + dual_step * (moved_f - f)
        if step % _CHECK and step != max_steps:
            continue
        primal = _norm(U - V, GU - S) / max(_norm(V, S), _norm(U, GU), 1e-12)
        dual = _norm(V - previous_V, S - previous_S) / max(_norm(L, N), 1e-12)
        history.append((step, primal, dual))
        converged = max(primal, dual) <= tol
        if converged or (monitor is not None and monitor(step, V if y.ndim == 2 else V[0])):
            break
        factor = 2.0 if primal > _IMBALANCE * dual else 0.5 if dual > _IMBALANCE * primal else 1.0
        within = first_rho / _RANGE < rho * factor < first_rho * _RANGE
        if balance and factor != 1 and step % _BALANCE == 0 and within:
            rho *= factor
            L, N, M = L / factor, N / factor, M / factor
            system = system.with_shift(rho) if squared else system
    found = system.outputs(V @ X.mT) - targets if squared else rho * M
    single = y.ndim == 1
    return ADMMResult(
        V[0] if single else V,
        found[0] if single else found,
        converged,
        step,
        history[-1][1],
        history[-1][2],
        torch.tensor(history, dtype=torch.float64),
        ADMMState(V, S, L, N, f, M, rho),
    )


def admm_path(X: Tensor, y: Tensor, D: Tensor, betas: Sequence[float], **options: object) -> list[ADMMResult]:
    """Solve for several β, each from the solution of the one before.

    Parameters
    ----------
    X, y, D : Tensor
        As for `admm_relu`.
    betas : sequence of float
        In the order of solving; from large to small the first solutions are sparse and quick.
    **options
        Further arguments of `admm_relu`, apart from ``beta`` and ``start``.

    Returns
    -------
    list of ADMMResult
        One a β.

    Raises
    ------
    ArgumentError
        If there is no β, or as `admm_relu` does.
    """
    if not len(betas):
        raise ArgumentError("admm_path: expected one beta or more")
    results: list[ADMMResult] = []
    for beta in betas:
        start = results[-1].state if results else None
        results.append(admm_relu(X, y, D, beta=beta, start=start, **options))  # pyright: ignore[reportArgumentType]
    return results


def _shrink(V: Tensor, threshold: float) -> Tensor:
    sizes = torch.linalg.vector_norm(V, dim=-1, keepdim=True)
    return V * (1 - threshold / sizes.clamp_min(torch.finfo(V.dtype).tiny)).clamp_min(0)


def _norm(*parts: Tensor) -> float:
    return float(torch.stack([torch.linalg.vector_norm(part) for part in parts]).norm())


def _zeros(X: Tensor, targets: Tensor, D: Tensor, rho: float) -> ADMMState:
    V = X.new_zeros(len(targets), 2, D.shape[1], X.shape[1])
    S = X.new_zeros(len(targets), 2, D.shape[1], len(X))
    f = torch.zeros_like(targets)
    return ADMMState(V, S, V, S, f, f, rho)


def _check(X: Tensor, y: Tensor, D: Tensor, loss: LossName) -> None:
    if X.ndim != 2 or D.ndim != 2 or y.ndim not in (1, 2) or not len(X) == len(D) == len(y) or not D.numel():
        raise ShapeError(
            "admm_relu: expected X (N, D), y (N,) or (N, T) and patterns (N, P), got "
            f"{tuple(X.shape)}, {tuple(y.shape)}, {tuple(D.shape)}"
        )
    if X.dtype not in (torch.float32, torch.float64) or y.dtype != X.dtype or not X.device == y.device == D.device:
        raise ShapeError(f"admm_relu: expected X and y in float32 or float64 on one device, got {X.dtype}, {y.dtype}")
    if not bool(torch.isfinite(X).all()):
        raise ArgumentError("admm_relu: X has NaN or Inf")
    require_targets("admm_relu", loss, y)
