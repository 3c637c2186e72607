"""B3: what a solver buys for its work. EK-FAC against LiSSA in time; PCG against LiSSA and CG in fidelity a product.

Oracles, all computed in the run: the dense damped Gauss-Newton matrix of a small network from its Jacobian, and its
Cholesky solve; on a language model, conjugate gradients run to convergence.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import digits, flip_labels, interleave
from benchmarks.influence._oracles import train_language_model
from hesse.influence import ClassificationLoss, Influence, as_examples
from hesse.influence.baselines import datainf, gradient_cosine
from hesse.influence.factors import Factors
from hesse.influence.gradients import gradient_pass, stacked_gradients
from hesse.influence.solvers import CG, PCG, LiSSA, Solved, Solver, damped_ggn, solve

__all__ = ["CLAIMS", "fidelity_of_solvers", "speed_on_a_language_model"]

F64 = torch.float64
SEEDS = 5
FACTORS = ("ekfac", "shampoo", "kfac", "diagonal", "identity")


def correlation(found: Tensor, wanted: Tensor) -> float:
    """Pearson's, over the training sequences, averaged over queries.   Shapes: (Q, N)."""
    a, b = found - found.mean(1, keepdim=True), wanted - wanted.mean(1, keepdim=True)
    return float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean())


def scores_of(matrices: Mapping[str, Tensor], train: Mapping[str, Tensor]) -> Tensor:
    """Σ_ℓ ⟨x_q, g_n⟩, (Q, N)."""
    return torch.stack([matrices[name].flatten(1) @ train[name].flatten(1).T for name in train]).sum(0)


@dataclass(frozen=True)
class Fitted:
    """Factors, and what they took."""

    factors: Factors
    seconds: float  # of this process's CPU


def fit(model: nn.Module, data: Any, **options: Any) -> Fitted:
    """Fit factors in a folder of their own."""
    with tempfile.TemporaryDirectory() as name:
        start = time.process_time()
        factors = Influence(model, **options).fit(data, Path(name) / "run", progress=False)
        return Fitted(factors, time.process_time() - start)


# ------------------------------------------------------------------------------------ fidelity, on digits


def _solvers(longest: int) -> dict[str, Solver]:
    # rtol 0: exactly so many steps
    out: dict[str, Solver] = {f"pcg({steps})": PCG(steps=steps, rtol=0.0) for steps in (0, 2, 5, 10, 20, 40)}
    out |= {f"cg({steps})": CG(steps=steps, rtol=0.0) for steps in (5, 10, 20, 40)}
    for steps in (longest // 15, longest // 3, longest):
        out[f"lissa({steps}), full batch"] = LiSSA(steps=steps, batch_size=None, rtol=0.0)
    return out | {f"lissa({longest}), batches of 32": LiSSA(steps=longest, rtol=0.0)}


def _digits_net(num_train: int, steps: int, seed: int) -> tuple[nn.Sequential, tuple[Tensor, Tensor], Any]:
    # a 64-32-32-10 network, one label in ten wrong, trained with momentum on all rows at once
    split = digits(num_train, seed=seed)
    labels, _flipped = flip_labels(split.train_y, 0.1, 10, seed=seed)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)).to(F64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(split.train_x), labels).backward()
        optimizer.step()
        schedule.step()
    return net.eval(), (split.train_x, labels), split


def _dense(net: nn.Module, x: Tensor) -> Tensor:
    # (1/N) Σ JᵀHJ over all weights, in the order of named_parameters, from the Jacobian of every logit
    names, values = zip(*((name, p.detach()) for name, p in net.named_parameters()), strict=True)

    def logits(parameters: tuple[Tensor, ...], row: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (row,))

    jacobian = torch.func.vmap(torch.func.jacrev(logits), (None, 0))
    total = torch.zeros(sum(v.numel() for v in values), sum(v.numel() for v in values), dtype=F64)
    for block in x.split(100):
        rows = torch.cat([part.flatten(2) for part in jacobian(values, block)], 2)
        p = net(block).detach().softmax(1)
        # a root of diag(p) - p pᵀ: diag(√p)(I - √p √pᵀ), whose transpose times J is what is squared
        root = p.sqrt()
        scaled = root[:, :, None] * rows
        scaled = scaled - root[:, :, None] * torch.einsum("bc,bcp->bp", root, scaled)[:, None]
        flat = scaled.flatten(0, 1)
        total.addmm_(flat.T, flat)
    return total / len(x)


def _one_seed(seed: int, scale: Scale) -> dict[str, dict[str, float]]:
    num_train, steps, num_queries, longest = scale(smoke=(80, 40, 3, 30), full=(600, 250, 12, 300))
    net, (x, y), split = _digits_net(num_train, steps, seed)
    loss = ClassificationLoss()
    queries = (split.test_x[:num_queries], split.test_y[:num_queries])
    fitted = {s: fit(net, (x, y), strategy=s, loss=loss, seed=seed) for s in FACTORS}
    factors = fitted["ekfac"].factors
    run_pass = gradient_pass(net, loss=loss)
    asked, train = (stacked_gradients(run_pass, as_examples(data)) for data in (queries, (x, y)))
    system = damped_ggn(net, (x, y), factors, loss=loss)
    b = system.flatten(asked)
    damped = _dense(net, x) + system.damping.diag()
    exact = scores_of(system.unflatten(torch.cholesky_solve(b, torch.linalg.cholesky(damped))), train)
    out: dict[str, dict[str, float]] = {}
    for name, found in fitted.items():
        matrices, seconds = _timed(lambda f=found.factors: {n: f.precondition(n, v) for n, v in asked.items()})
        out[name] = {"correlation": correlation(scores_of(matrices, train), exact), "products": 0.0,
                     "fit, CPU seconds": found.seconds, "query, CPU ms": 1e3 * seconds / num_queries}  # fmt: skip
    for name, solver in _solvers(longest).items():
        solved, seconds = _timed(lambda solver=solver: solve(system, asked, solver))
        out[name] = {"correlation": correlation(scores_of(solved.matrices, train), exact),
                     "products": float(solved.num_products), "residual": float(solved.residual.median()),
                     "query, CPU ms": 1e3 * seconds / num_queries}  # fmt: skip
    for name, baseline in (("gradient cosine", gradient_cosine), ("DataInf", datainf)):
        found, seconds = _timed(lambda f=baseline: f(net, queries, (x, y), loss=loss))
        out[name] = {"correlation": correlation(found, exact), "products": 0.0,
                     "query and scores, CPU ms": 1e3 * seconds / num_queries}  # fmt: skip
    return out


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def _lower_end(values: list[float]) -> float:
    # of the 95 % interval of the mean, by Student's t over independent seeds
    if len(values) < 2:
        return values[0]
    return mean(values) - float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def fidelity_of_solvers(scale: Scale) -> list[Claim]:
    """Correlation with the scores of the dense damped Gauss-Newton matrix, for every method and budget."""
    seeds = [scale.seed + i for i in range(scale(smoke=1, full=SEEDS))]
    runs = [_one_seed(seed, scale) for seed in seeds]
    table = {
        name: {key: mean(run[name][key] for run in runs) for key in runs[0][name]}
        | {"correlation, by seed": [run[name]["correlation"] for run in runs]}
        for name in runs[0]
    }
    rows = {"seeds": seeds, "methods": table}
    claims = []
    longest = scale(smoke=30, full=300)
    for rival in (f"lissa({longest}), full batch", "cg(10)"):
        gains = [run["pcg(5)"]["correlation"] - run[rival]["correlation"] for run in runs]
        claims.append(
            Claim(
                f"B3 pcg(5) is closer to the dense solution than {rival}: gain in correlation, lower end of 95 %",
                _lower_end(gains),
                0.0,
                "higher",
                {"gain, by seed": gains, "pcg(5)": table["pcg(5)"], rival: table[rival]} | (rows if not claims else {}),
                full_only=True,
            )
        )
    return claims


# ------------------------------------------------------------------------------------ speed, on a language model


def speed_on_a_language_model(scale: Scale) -> Claim:
    """Time of one query's answer, its gradient given: two products a side and a division, against 300 steps of LiSSA.

    The queries are answered together by both, which suits LiSSA: it shares the forward passes of a minibatch.
    """
    sequences, num_queries, steps, budget = scale(smoke=(32, 2, 20, 10), full=(256, 4, 600, 300))
    trained = train_language_model(
        width=16, blocks=2, length=32, sequences=sequences, queries=num_queries, steps=steps, seed=scale.seed
    )
    model = trained.model.double()
    fitted = fit(model, trained.train, seed=scale.seed)
    factors, run_pass = fitted.factors, gradient_pass(model)
    asked, train = (stacked_gradients(run_pass, as_examples(data)) for data in (trained.queries, trained.train))
    system = damped_ggn(model, trained.train, factors)
    exact = solve(system, asked, PCG(steps=scale(smoke=5, full=60), rtol=1e-4))
    wanted = scores_of(exact.matrices, train)
    answers: dict[str, list[Solved]] = {}

    def iterate(name: str, solver: Solver) -> Callable[[], None]:
        return lambda: answers.setdefault(name, []).append(solve(system, asked, solver))

    direct = {n: factors.precondition(n, v) for n, v in asked.items()}
    repeats = scale(smoke=3, full=200)
    ours = interleave(
        {"ekfac": lambda: {n: factors.precondition(n, v) for n, v in asked.items()}}, repeats, clock="cpu"
    )["ekfac"]
    slow = interleave(
        {
            name: iterate(name, solver)
            for name, solver in (
                (f"lissa({budget}), batches of 32", LiSSA(steps=budget, rtol=0.0)),
                ("pcg(5)", PCG(steps=5, rtol=0.0)),
            )
        },
        1,
        warmup=0,
        clock="cpu",
    )
    seconds = {"ekfac": median(ours)} | {name: median(times) for name, times in slow.items()}
    lissa = seconds[f"lissa({budget}), batches of 32"] / num_queries
    rows: dict[str, Any] = {
        "CPU seconds a query": {name: value / num_queries for name, value in seconds.items()},
        "correlation with the converged solution": {"ekfac": correlation(scores_of(direct, train), wanted)}
        | {name: correlation(scores_of(found[0].matrices, train), wanted) for name, found in answers.items()},
        "residual of the converged solution, worst query": float(exact.residual.max()),
        "fit, CPU seconds": fitted.seconds,
        "queries at which the fit has paid for itself": fitted.seconds / (lissa - seconds["ekfac"] / num_queries),
        "weights": system.layout.size,
        "sequences": sequences,
        "queries": num_queries,
        "training loss, nats a byte": trained.losses[-1],
    }
    return Claim(
        f"B3 EK-FAC answers a query faster than LiSSA({budget}), times, language model",
        lissa / (seconds["ekfac"] / num_queries),
        1000.0,
        "higher",
        rows,
        full_only=True,
        note="the query's gradient, and the fit of the factors, are in neither time; the fit is in the rows",
    )


CLAIMS: list[ClaimFunction] = [speed_on_a_language_model, fidelity_of_solvers]
