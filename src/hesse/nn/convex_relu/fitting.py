"""One network a target by any of the solvers, in one form: what the estimators run.

Shapes: X (N, D), targets (N, T), patterns (N, P).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.nn.convex_relu.admm import admm_relu
from hesse.nn.convex_relu.adversarial import adversarial_network, robust_patterns
from hesse.nn.convex_relu.exact import exact_relu
from hesse.nn.convex_relu.losses import LossName
from hesse.nn.convex_relu.network import recover_network
from hesse.nn.convex_relu.patterns import distinct_patterns
from hesse.nn.convex_relu.robust import robust_relu
from hesse.nn.convex_relu.scp import sampled_relu, violating_directions

__all__ = ["Fit", "fit_admm", "fit_exact", "fit_robust", "fit_sampled", "refined_patterns"]

_SCP_STEPS = 2000
_ROBUST_LIMIT = 60  # patterns of a robust fit; its Newton matrix is dense
_ACCURATE = 1e-6  # tolerance of the solvers for which digits are cheap


@dataclass(frozen=True, slots=True)
class Fit:
    """The network of one target."""

    hidden: Tensor  # (M, D)
    output: Tensor  # (M,)
    dual: Tensor  # (N,)
    converged: bool
    num_steps: int


def fit_admm(
    X: Tensor, targets: Tensor, D: Tensor, *, beta: float, loss: LossName, rho: float, tol: float, max_steps: int
) -> tuple[list[Fit], Tensor]:
    """Fit all targets in one run of `admm_relu`.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    targets : Tensor, shape (N, T)
        Targets, or labels -1 and 1.
    D : Tensor, shape (N, P)
        Patterns.
    beta, loss, rho, tol, max_steps
        As of `admm_relu`.

    Returns
    -------
    list of Fit
        One a target.
    Tensor, shape (checks, 3)
        Its history.
    """
    run = admm_relu(X, targets, D, beta=beta, loss=loss, rho=rho, tol=tol, max_steps=max_steps)
    fits = [
        Fit(*recover_network(V), dual, run.converged, run.num_steps) for V, dual in zip(run.V, run.dual, strict=True)
    ]
    return fits, run.history


def fit_exact(X: Tensor, targets: Tensor, D: Tensor, *, beta: float, loss: LossName, tol: float) -> list[Fit]:
    """Fit each target by `exact_relu`.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    targets : Tensor, shape (N, T)
        Targets, or labels -1 and 1.
    D : Tensor, shape (N, P)
        Patterns.
    beta, loss, tol
        As of `exact_relu`; no tolerance is above 1e-6.

    Returns
    -------
    list of Fit
        One a target.
    """
    runs = [exact_relu(X, y, D, beta=beta, loss=loss, tol=min(tol, _ACCURATE)) for y in targets.mT]
    return [Fit(*recover_network(run.V), run.dual, run.converged, run.num_steps) for run in runs]


def fit_sampled(
    X: Tensor,
    targets: Tensor,
    *,
    beta: float,
    loss: LossName,
    tol: float,
    max_steps: int,
    generator: Generator | None,
) -> list[Fit]:
    """Fit each target by `sampled_relu`, on the same neurons.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    targets : Tensor, shape (N, T)
        Targets, or labels -1 and 1.
    beta, loss, tol, max_steps, generator
        As of `sampled_relu`; no tolerance is above 1e-6, and 2000 steps at least are allowed.

    Returns
    -------
    list of Fit
        One a target.
    """
    fits: list[Fit] = []
    directions = None
    for y in targets.mT:
        run = sampled_relu(
            *(X, y),
            beta=beta,
            loss=loss,
            tol=min(tol, _ACCURATE),
            max_steps=max(max_steps, _SCP_STEPS),
            directions=directions,
            generator=generator,
        )
        directions = run.directions
        kept = run.weights != 0
        roots = run.weights[kept].abs().sqrt()
        hidden = run.directions[kept] * roots.unsqueeze(1)
        fits.append(Fit(hidden, run.weights[kept].sign() * roots, run.dual, run.converged, run.num_steps))
    return fits


def fit_robust(
    X: Tensor,
    targets: Tensor,
    eps: float,
    *,
    num_hyperplanes: int,
    beta: float,
    loss: LossName,
    tol: float,
    intercept: bool,
    generator: Generator | None,
) -> tuple[Tensor, list[Fit], float]:
    """Fit each target by `robust_relu`, on hyperplanes of adversarially trained networks first, then on random ones.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    targets : Tensor, shape (N, T)
        Targets, or labels -1 and 1.
    eps : float
        Radius, in units of X.
    num_hyperplanes, intercept, generator
        As of `robust_patterns`.
    beta, loss, tol
        As of `robust_relu`; no tolerance is above 1e-6.

    Returns
    -------
    Tensor of bool, shape (N, P)
        Feasible patterns, 60 at most, which the targets share.
    list of Fit
        One a target.
    float
        Sum of the robust objectives.
    """
    directions = [
        adversarial_network(X, y, eps, beta=beta, loss=loss, intercept=intercept, generator=generator)[0]
        for y in targets.mT
    ]
    D = robust_patterns(
        *(X, eps),
        num_hyperplanes=num_hyperplanes,
        directions=torch.cat(directions),
        limit=_ROBUST_LIMIT,
        intercept=intercept,
        generator=generator,
    )
    runs = [
        robust_relu(X, y, D, eps=eps, beta=beta, loss=loss, intercept=intercept, tol=min(tol, _ACCURATE))
        for y in targets.mT
    ]
    fits = [Fit(*recover_network(run.V), run.dual, run.converged, run.num_steps) for run in runs]
    return D, fits, sum(run.objective for run in runs)


def refined_patterns(X: Tensor, D: Tensor, fits: list[Fit], generator: Generator | None) -> Tensor:
    """Add to D the patterns of the neurons found, and of those that the dual says would help most.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    D : Tensor, shape (N, P)
        Patterns so far.
    fits : list of Fit
        What they gave.
    generator : torch.Generator or None
        Of the starts of `violating_directions`.

    Returns
    -------
    Tensor of bool, shape (N, P')
        D first.
    """
    neurons = [fit.hidden for fit in fits]
    neurons += [violating_directions(X, fit.dual, generator=generator) for fit in fits]
    return distinct_patterns(torch.cat([D, X @ torch.cat(neurons).mT >= 0], 1))
