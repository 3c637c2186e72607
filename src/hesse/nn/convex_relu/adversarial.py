"""Candidates for robust training: a network trained on its own attacks, and the patterns that survive an l∞ ball.

Shapes: X (N, D), hidden weights (M, D), output weights (M,).
"""

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.nn.attacks import pgd
from hesse.nn.convex_relu.losses import LossName
from hesse.nn.convex_relu.network import network_objective, network_outputs
from hesse.nn.convex_relu.patterns import distinct_patterns, feasible_patterns, sample_patterns

__all__ = ["adversarial_network", "attack", "robust_patterns"]


def attack(
    X: Tensor,
    y: Tensor,
    hidden: Tensor,
    output: Tensor,
    eps: float,
    *,
    loss: LossName = "hinge",
    num_steps: int = 5,
    intercept: bool = True,
    generator: Generator | None = None,
) -> Tensor:
    """Raise the loss of each row over its l∞ ball by `hesse.nn.attacks.pgd`; the bias column stays as it is.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    y : Tensor, shape (N,)
        Targets, or labels -1 and 1.
    hidden, output : Tensor, shapes (M, D) and (M,)
        The network Σ_j (x·u_j)₊ a_j.
    eps : float
        Radius, in units of X.
    loss : {"squared", "hinge", "bce"}, default "hinge"
        What to raise; for labels the margin is followed, which has a slope everywhere.
    num_steps : int, default 5
        Steps of 2.5 eps / num_steps.
    intercept : bool, default True
        Whether the last column stays as it is.
    generator : torch.Generator, optional
        Of the starts in the balls. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (N, D)
        Rows moved by eps at most. A lower bound of the worst case.
    """
    free = X.shape[1] - int(intercept)
    bias = X[:, free:]

    def outputs(rows: Tensor) -> Tensor:
        return network_outputs(torch.cat([rows, bias], 1), hidden, output.unsqueeze(1))

    def raised(f: Tensor, _labels: Tensor) -> Tensor:
        return (f.squeeze(1) - y).square() if loss == "squared" else -y * f.squeeze(1)

    # to pgd this is one class; the targets, which may be any numbers, come in the loss, row by row
    labels = torch.zeros(len(X), dtype=torch.long, device=X.device)
    moved = pgd(outputs, X[:, :free], labels, raised, eps=eps, num_steps=num_steps, bounds=None, generator=generator)
    return torch.cat([moved, bias], 1)


def adversarial_network(
    X: Tensor,
    y: Tensor,
    eps: float,
    *,
    width: int = 100,
    beta: float = 1e-4,
    loss: LossName = "hinge",
    learning_rate: float = 1e-2,
    num_steps: int = 300,
    attack_steps: int = 5,
    intercept: bool = True,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Train a network by Adam on rows attacked anew at each step: no guarantee, but good hyperplanes.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    y : Tensor, shape (N,)
        Targets, or labels -1 and 1.
    eps : float
        Radius of the attacks, in units of X.
    width : int, default 100
        Neurons M.
    beta : float, default 1e-4
        Weight decay β/2 (‖u‖² + a²).
    loss : {"squared", "hinge", "bce"}, default "hinge"
        The loss.
    learning_rate : float, default 1e-2
        Of Adam.
    num_steps : int, default 300
        Of Adam, each on all rows; enough for candidates.
    attack_steps : int, default 5
        Ascent steps of each attack.
    intercept : bool, default True
        Whether the last column is the bias.
    generator : torch.Generator, optional
        Of the initial weights and of the attacks. Default: torch's global generator.

    Returns
    -------
    hidden : Tensor, shape (M, D)
        u_j as rows.
    output : Tensor, shape (M,)
        a_j.
    """
    d = X.shape[1]
    draw = {"dtype": X.dtype, "device": X.device, "generator": generator}
    hidden = (torch.randn(width, d, **draw) * d**-0.5).requires_grad_()
    output = (torch.randn(width, **draw) * width**-0.5).requires_grad_()
    optimizer = torch.optim.Adam([hidden, output], lr=learning_rate)
    options = {"loss": loss, "num_steps": attack_steps, "intercept": intercept, "generator": generator}
    for _ in range(num_steps):
        moved = attack(X, y, hidden.detach(), output.detach(), eps, **options)
        with torch.enable_grad():
            objective = network_objective(moved, y, hidden, output, beta, loss)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    return hidden.detach(), output.detach()


def robust_patterns(
    X: Tensor,
    eps: float,
    *,
    num_hyperplanes: int = 600,
    directions: Tensor | None = None,
    limit: int | None = None,
    intercept: bool = True,
    generator: Generator | None = None,
) -> Tensor:
    """Patterns that some neuron keeps through every ball: the all-ones one first, then drawn ones that are feasible.

    Candidates are the patterns of the directions given and of random hyperplanes, at the rows and at rows with corners
    ±eps added.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    eps : float
        Radius, in units of X.
    num_hyperplanes : int, default 600
        Distinct random patterns to try; each costs a small linear programme.
    directions : Tensor, shape (K, D), optional
        Neurons to try first, say of an `adversarial_network`, which the random ones seldom match in many dimensions.
    limit : int, optional
        Patterns to return at most. Default: all.
    intercept : bool, default True
        Whether the last column of X is the bias. Without it the all-ones pattern may be infeasible, and is kept.
    generator : torch.Generator, optional
        Default: torch's global generator.

    Returns
    -------
    Tensor of bool, shape (N, P)
        The first column is all ones.

    Raises
    ------
    ArgumentError
        If ``limit < 1``, or an argument is refused by `sample_patterns` or `feasible_patterns`.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"robust_patterns: expected limit >= 1, got {limit}")
    corners = torch.randint(2, X.shape, generator=generator, device=X.device).to(X) * 2 - 1
    corners[:, X.shape[1] - int(intercept) :] = 0
    candidates = [torch.ones(len(X), 1, dtype=torch.bool, device=X.device)]
    if directions is not None:
        candidates += [(X + eps * shift) @ directions.mT >= 0 for shift in (torch.zeros_like(X), corners)]
    candidates.append(sample_patterns(X, num_hyperplanes, generator=generator))
    candidates.append(sample_patterns(X + eps * corners, max(1, num_hyperplanes // 4), generator=generator))
    distinct = distinct_patterns(torch.cat(candidates, 1))
    feasible = feasible_patterns(X, distinct, eps, intercept=intercept)
    feasible[0] = True
    return distinct[:, feasible][:, :limit]
