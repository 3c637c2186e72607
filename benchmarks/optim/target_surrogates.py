"""Claims of Lavington, Vaswani, Babanezhad, Schmidt, Le Roux (ICML 2023): one gradient on outputs, many updates.

The price of a run is the number of gradients that the oracle gave, whatever the model did in between. Peers in the same
run: torch's SGD, Adam and L-BFGS, and descent with Armijo's rule in the parameters (SLS). Oracles: LAPACK's least
squares, plain loops, Newton's method for the optimum.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.optim._target_surrogates_peers import fit, lbfgs_path, line_search_path
from benchmarks.optim._target_surrogates_problems import (
    Expert,
    Logistic,
    MatrixFactorisation,
    geometric_mean,
    tanh_network,
    tanh_outputs,
)
from hesse.optim import SSO, OracleCounter, target_surrogate

__all__ = ["CLAIMS"]

F64 = torch.float64


def _seed(scale: Scale, stream: int) -> int:
    return 1000 * abs(scale.seed) + stream


def least_squares(scale: Scale) -> list[Claim]:
    """Exact inner solve: the answer after one oracle gradient. One fixed inner step: gradient descent on the loss."""
    generator = torch.Generator().manual_seed(_seed(scale, 0))
    n, d, alpha = 300, 20, 0.1
    X = torch.randn(n, d, generator=generator, dtype=F64) * torch.logspace(0, -1, d, dtype=F64)
    y = torch.randn(n, generator=generator, dtype=F64)
    w = torch.zeros(d, dtype=F64, requires_grad=True)
    optimizer = SSO([w], eta="half-squared", inner="gauss-newton", inner_steps=1, inner_tol=1e-12)
    info = optimizer.step(lambda: X @ w, lambda z: z - y)
    exact = torch.linalg.lstsq(X, y.unsqueeze(1)).solution.squeeze(1)
    error = float((w.detach() - exact).norm() / exact.norm())

    ours, plain = (torch.zeros(d, dtype=F64, requires_grad=True) for _ in range(2))
    optimizer = SSO([ours], eta="half-squared", inner=lambda params: SGD(params, lr=alpha), inner_steps=1)
    for _ in range(20):
        optimizer.step(lambda: X @ ours, lambda z: z - y)
    fit(SGD([plain], lr=alpha), [lambda: (X @ plain - y).square().mean() / 2] * 20)
    identity = float((ours - plain).detach().norm() / plain.detach().norm())
    rows = {"oracle gradients": info.oracle_gradients, "n": n, "d": d, "inner step": alpha, "steps of the identity": 20}
    return [
        Claim("least squares in one oracle gradient", error, 1e-8, "lower", rows),
        Claim("one inner step is gradient descent", identity, 1e-12, "lower", rows),
    ]


def majorisation(scale: Scale) -> list[Claim]:
    """Softmax cross-entropy of a tanh network: the surrogate lies above the loss, and no step raises the loss."""
    generator = torch.Generator().manual_seed(_seed(scale, 1))
    X = torch.randn(200, 5, generator=generator, dtype=F64)
    labels = torch.randint(4, (200,), generator=generator)
    params = tanh_network(generator, (5, 16, 4))

    def loss(z: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(z, labels)

    z_t = tanh_outputs(params, X).detach()
    base = float(loss(z_t))
    gradient = OracleCounter(loss).gradient(z_t)
    lowest, below = float("inf"), 0
    trials = scale(smoke=100, full=1000)
    for trial in range(trials):
        spread = 10.0 ** (-3 + 4 * trial / trials)  # from next to θ_t to far away
        there = [p.detach() + spread * torch.randn(p.shape, generator=generator, dtype=F64) for p in params]
        z = tanh_outputs(there, X)
        margin = base + float(target_surrogate(z, z_t, gradient, eta=2.0)) - float(loss(z))
        lowest, below = min(lowest, margin), below + (margin < -1e-14)
    rises: dict[str, int] = {}
    steps, ends, calls = scale(smoke=5, full=100), {}, {}
    for m in scale(smoke=(1, 10), full=(1, 10, 100)):
        trained = [p.detach().clone().requires_grad_() for p in params]
        oracle = OracleCounter(loss)
        optimizer = SSO(trained, eta="cross-entropy", inner_steps=m)
        values = [base]
        for _ in range(steps):
            optimizer.step(lambda trained=trained: tanh_outputs(trained, X), target_loss=oracle)
            values.append(float(loss(tanh_outputs(trained, X).detach())))
        rises[f"m={m}"] = sum(after > before for before, after in pairwise(values))
        ends[f"m={m}"], calls[f"m={m}"] = values[-1], oracle.num_gradients
    rows = {"smallest margin": lowest, "parameters tried": trials}
    more = {"rises": rises, "loss at the start": base, "loss at the end": ends, "steps": steps, "gradients": calls}
    return [
        Claim("the surrogate lies above the loss: exceptions", float(below), 0.0, "lower", rows),
        Claim("the loss never rises: exceptions", float(sum(rises.values())), 0.0, "lower", more),
    ]


def _sso(problem: Logistic, batches: list[Tensor] | int, **options: object) -> dict[str, float]:
    # suboptimality and calls after one oracle gradient a batch, or so many with all data
    w = problem.start()
    optimizer = SSO([w], **options)  # pyright: ignore[reportArgumentType]
    values = gradients = forwards = 0
    for rows in [slice(None)] * batches if isinstance(batches, int) else batches:
        X, y = problem.X[rows], problem.y[rows]
        info = optimizer.step(lambda X=X: X @ w, target_loss=lambda z, y=y: problem.mean_loss(z, y))
        gradients, values, forwards = gradients + 1, values + info.oracle_values, forwards + info.num_forwards
    return {"gap": problem.gap(w), "gradients": gradients, "values": values, "model evaluations": forwards}


def _direct(problem: Logistic, kind: type[Optimizer], lr: float, batches: list[Tensor] | int, decay: bool) -> float:
    w = problem.start()
    rows = [None] * batches if isinstance(batches, int) else batches
    fit(kind([w], lr=lr), [lambda r=r: problem.loss(w, r) for r in rows], decay)  # pyright: ignore[reportCallIssue]
    return problem.gap(w)


def full_batch(scale: Scale) -> list[Claim]:
    """Suboptimality of logistic regression after 100 oracle gradients on all the data."""
    calls = many = scale(smoke=20, full=100)
    arms = {
        "m=1": {"inner_steps": 1},
        "m=10": {"inner_steps": 10},
        f"m={many}": {"inner_steps": many},
        "exact": {"inner": "gauss-newton"},
        "exact, line search": {"inner": "gauss-newton", "schedule": "line-search", "inner_tol": 1e-10},
    }
    gaps: dict[str, list[float]] = {}
    costs: dict[str, dict[str, float]] = {}
    for stream in range(scale(smoke=1, full=3)):
        problem = Logistic.draw(_seed(scale, 100 + stream), n=scale(smoke=300, full=2000))
        for name, options in arms.items():
            costs[name] = _sso(problem, calls, eta="logistic", **options)
            gaps.setdefault(name, []).append(costs[name].pop("gap"))
        for multiple in (1, 4, 10):
            gap = _direct(problem, SGD, multiple / problem.smoothness, calls, False)
            gaps.setdefault(f"GD {multiple}/L", []).append(gap)
        for lr in (0.1, 0.5):
            gaps.setdefault(f"Adam {lr}", []).append(_direct(problem, Adam, lr, calls, False))
        w = problem.start()
        for _ in line_search_path([w], lambda _, w=w, p=problem: lambda: p.loss(w), calls):
            pass
        gaps.setdefault("SLS", []).append(problem.gap(w))
        w = problem.start()
        lbfgs_path([w], lambda w=w, p=problem: p.loss(w), calls)
        gaps.setdefault("L-BFGS", []).append(problem.gap(w))
    best = [min(row) for row in zip(*(gaps[f"GD {multiple}/L"] for multiple in (1, 4, 10)), strict=True)]
    ours, descent = {name: geometric_mean(gaps[name]) for name in arms}, geometric_mean(best)
    few, most = gaps["m=10"], gaps[f"m={many}"]
    unordered = sum(not one > ten > most for one, ten, most in zip(gaps["m=1"], few, most, strict=True))
    rows = {"gaps": gaps, "best GD": best, "calls of the last seed": costs, "oracle gradients": calls}
    note = "L-BFGS and well-tuned Adam do better on a cheap convex problem"
    return [
        Claim("full batch, m=100 against the best GD", ours[f"m={many}"] / descent, 1 / 12, "lower", rows, True, note),
        Claim("full batch, m=10 against the best GD", ours["m=10"] / descent, 1 / 3, "lower", rows, True, note),
        Claim("full batch, more inner steps are better: exceptions", float(unordered), 0.0, "lower", rows, True),
        Claim(
            "full batch, exact inner solve against m=100", ours["exact"] / ours[f"m={many}"], 1.0, "lower", rows, True
        ),
        Claim("full batch, exact with a line search", max(gaps["exact, line search"]), 1e-6, "lower", rows, True),
    ]


def mini_batch(scale: Scale) -> list[Claim]:
    """Suboptimality of logistic regression after 400 oracle gradients on batches of 125, with the default settings."""
    calls, size = scale(smoke=16, full=400), scale(smoke=50, full=125)
    ours: dict[str, list[float]] = {}
    grids: dict[str, dict[str, list[float]]] = {"SGD": {}, "Adam": {}, "SLS": {}}
    peers: dict[str, tuple[type[Optimizer], tuple[float, ...], tuple[bool, ...]]] = {
        "SGD": (SGD, (1, 3, 10, 30, 60, 100), (False, True)),
        "Adam": (Adam, (0.01, 0.03, 0.1, 0.3), (False,)),
    }
    for stream in range(scale(smoke=1, full=5)):
        problem = Logistic.draw(_seed(scale, 200 + stream), n=scale(smoke=300, full=2000))
        batches = problem.batches(_seed(scale, 300 + stream), size, calls)
        for name, eta in (("default, eta_0=16", "logistic"), ("eta_0=8", 8.0), ("eta_0=4", 4.0)):
            ours.setdefault(name, []).append(_sso(problem, batches, eta=eta, schedule="sqrt")["gap"])
        for name, (kind, rates, decays) in peers.items():
            for lr in rates:
                for decay in decays:
                    gap = _direct(problem, kind, lr, batches, decay)
                    grids[name].setdefault(f"{lr}/sqrt(t)" if decay else f"{lr}", []).append(gap)
        w, epoch = problem.start(), -(-len(problem.X) // size)
        losses = [lambda r=r, w=w, p=problem: p.loss(w, r) for r in batches]
        for _ in line_search_path([w], losses.__getitem__, calls, growth=1.8 ** (1 / epoch)):
            pass
        grids["SLS"].setdefault("line search", []).append(problem.gap(w))
    # of every peer the best setting on each seed, which favours it
    best = {name: [min(row) for row in zip(*grid.values(), strict=True)] for name, grid in grids.items()}
    default = geometric_mean(ours["default, eta_0=16"])
    against = {name: default / geometric_mean(best[name]) for name in ("SGD", "Adam")}
    rows = {"SSO": ours, "best": best, "all": grids, "oracle gradients": calls, "batch": size}
    return [
        Claim("mini-batch, untuned against the best SGD", against["SGD"], 0.65, "lower", rows, True),
        Claim("mini-batch, untuned against the best Adam", against["Adam"], 0.75, "lower", rows, True),
    ]


def matrix_factorisation(scale: Scale) -> list[Claim]:
    """Oracle gradients until the loss of a badly scaled factorisation has fallen by 1e6."""
    limit = scale(smoke=30, full=600)
    counts: dict[str, list[int]] = {"m=1": [], "m=10": [], "GD with line search": []}
    for stream in range(scale(smoke=1, full=5)):
        problem = MatrixFactorisation.draw(_seed(scale, 400 + stream), n=scale(smoke=100, full=1000))
        for m in (1, 10):
            factors = problem.start()
            optimizer = SSO(factors, eta="half-squared", inner_steps=m)
            first, used = problem.loss(factors), 0
            while used < limit and problem.loss(factors) > 1e-6 * first:
                optimizer.step(lambda f=factors, p=problem: p.outputs(f), target_loss=problem.mean_loss)
                used += 1
            counts[f"m={m}"].append(used)
        factors = problem.start()
        path = line_search_path(factors, lambda _, f=factors, p=problem: lambda: p.mean_loss(p.outputs(f)), limit)
        first = next(path)
        counts["GD with line search"].append(next((t for t, loss in enumerate(path, 1) if loss <= 1e-6 * first), limit))
    means = {name: geometric_mean([float(count) for count in found]) for name, found in counts.items()}
    rows = {"oracle gradients": counts, "limit": limit}
    descent = means["GD with line search"]
    return [
        Claim("matrix factorisation, m=10 against descent", means["m=10"] / descent, 0.2, "lower", rows, True),
        Claim("matrix factorisation, m=1 against descent", means["m=1"] / descent, 1.0, "lower", rows, True),
    ]


def imitation(scale: Scale) -> Claim:
    """DAgger: batches of expert labels until a policy is as good as online gradient descent ever gets."""
    rounds, ratios = scale(smoke=2, full=60), []
    names = ("SSO m=10", "SSO m=100", "OGD batches", "OGD loss", "Adam loss")
    found: dict[str, list[float | None]] = {name: [] for name in names}
    for stream in range(scale(smoke=1, full=3)):
        seed = _seed(scale, 500 + stream)

        def direct(kind: type[Optimizer], lr: float, decay: bool, seed: int = seed) -> list[float]:
            expert = Expert(seed)
            params = expert.policy()
            optimizer = kind(params, lr=lr)  # pyright: ignore[reportCallIssue]

            def update(states: Tensor, actions: Tensor, t: int) -> None:
                optimizer.param_groups[0]["lr"] = lr / t**0.5 if decay else lr
                optimizer.zero_grad()
                ((tanh_outputs(params, states) - actions).square().sum(1).mean() / 2).backward()
                optimizer.step()

            return expert.dagger(params, update, rounds)

        grid = [direct(SGD, lr, decay) for lr in (0.03, 0.1, 0.3, 1.0, 3.0) for decay in (False, True)]
        best = min(grid, key=min)
        adam = min(min(direct(Adam, lr, False)) for lr in (0.003, 0.01, 0.03, 0.1))
        for m in (10, 100):
            expert = Expert(seed)
            params = expert.policy()
            optimizer = SSO(params, eta="half-squared", inner_steps=m)

            def update(states: Tensor, actions: Tensor, _: int, optimizer: SSO = optimizer, params=params) -> None:
                optimizer.step(lambda: tanh_outputs(params, states), lambda z: z - actions)

            losses = expert.dagger(params, update, rounds, goal=min(best))
            found[f"SSO m={m}"].append(expert.num_batches if losses[-1] <= min(best) else None)
        used = found["SSO m=100"][-1]
        found["OGD batches"].append(1 + best.index(min(best)))
        found["OGD loss"].append(min(best))
        found["Adam loss"].append(adam)
        ratios.append(used / (1 + best.index(min(best))) if isinstance(used, int) else float("inf"))
    name = "imitation, labelled batches against online gradient descent"
    return Claim(name, geometric_mean(ratios), 1 / 3, "lower", found | {"rounds": rounds}, True)


CLAIMS: list[ClaimFunction] = [least_squares, majorisation, full_batch, mini_batch, matrix_factorisation, imitation]
