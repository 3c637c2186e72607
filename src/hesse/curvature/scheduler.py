"""Learning rate and momentum of SGD from a few Lanczos steps on the curvature of a subsample, as training goes.

    α = (2 / (√h + √l))²,   ρ = ((√h - √l) / (√h + √l))²        h, l: largest and smallest resolved curvature

h is what batches of the training size see, not what the subsample does: h = l₁ + s₁²/(b l₁).
"""

from dataclasses import asdict, dataclass
from math import exp, inf, isfinite, log
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from hesse.curvature._binding import evaluation_mode
from hesse.curvature.batch_spectrum import inverse_effective_batch
from hesse.curvature.batches import batch_size as count_examples
from hesse.curvature.batches import to_device
from hesse.curvature.hessian import Function
from hesse.curvature.learning_rate import max_learning_rate
from hesse.curvature.noise import CurvatureNoise, curvature_noise, shuffled
from hesse.curvature.of_loss import Matrix, loss_curvature
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError
from hesse.linalg import lanczos

__all__ = ["CurvatureScheduler", "RateMeasurement", "RateRule", "polyak_parameters", "resolved_range"]

RateRule = Literal["polyak", "stable", "cauchy"]
_CAUCHY_BATCH = 128  # as in the authors' code


@dataclass(frozen=True, slots=True)
class RateMeasurement:
    """What one refresh of `CurvatureScheduler` saw, and what it set."""

    step: int  # calls of ``step`` before it
    largest: float  # curvature that training batches see: l₁ + s₁²/(b l₁); for "cauchy" that along the gradient
    smallest: float  # smallest resolved curvature; equal to largest for "cauchy"
    variance: float  # s₁² between examples along the leading direction; zero for "cauchy"
    limit: float  # largest stable learning rate at the rule's momentum; inf for "cauchy" or without positive curvature
    learning_rate: float
    momentum: float
    num_products: int  # products with the curvature of one example; each costs two to three of its gradients


def polyak_parameters(largest: float, smallest: float, *, max_momentum: float = 0.95) -> tuple[float, float]:
    """Heavy ball's best learning rate and momentum on a quadratic with curvature between two values.

    Parameters
    ----------
    largest, smallest : float
        h >= l > 0.
    max_momentum : float, default 0.95
        Cap of ρ, 0 <= cap < 1. Where it acts, α = (1 + √ρ)²/h, the largest rate at which errors along h still fall by
        √ρ a step; those along curvature below (1 - √ρ)²/α fall more slowly.

    Returns
    -------
    learning_rate, momentum : float
        α and ρ; error falls by √ρ a step.

    Raises
    ------
    ArgumentError
        If the values are out of range.

    References
    ----------
    B. T. Polyak (1964), USSR Comput. Math. Math. Phys. 4(5).
    """
    if not 0 < smallest <= largest < inf:
        raise ArgumentError(f"polyak_parameters: expected 0 < smallest <= largest, got {smallest} and {largest}")
    if not 0 <= max_momentum < 1:
        raise ArgumentError(f"polyak_parameters: expected 0 <= max_momentum < 1, got {max_momentum}")
    high, low = largest**0.5, smallest**0.5
    momentum = ((high - low) / (high + low)) ** 2
    if momentum <= max_momentum:
        return (2 / (high + low)) ** 2, momentum
    return (1 + max_momentum**0.5) ** 2 / largest, max_momentum


def resolved_range(values: Tensor, weights: Tensor, edge: float, *, min_weight: float = 1e-10) -> tuple[float, float]:
    """Largest and smallest positive Ritz value that the quadrature resolves.

    Parameters
    ----------
    values, weights : Tensor, shape (M,)
        Ritz values and the squared first components of their vectors.
    edge : float
        Edge of the noise: what lies below cannot be told from it. If nothing but the largest lies above, the smallest
        is the weighted median of the positive values.
    min_weight : float, default 1e-10
        Nodes of less weight are rounding.

    Returns
    -------
    largest, smallest : float
        Both zero if no value is positive.
    """
    keep = (values > 0) & (weights > min_weight)
    if not bool(keep.any()):
        return 0.0, 0.0
    positive, weight = values[keep], weights[keep]
    order = positive.argsort()
    positive, weight = positive[order], weight[order]
    above = positive[positive > edge]
    if len(above) > 1:
        return float(positive[-1]), float(above[0])
    middle = int((weight.cumsum(0) >= weight.sum() / 2).nonzero()[0])
    return float(positive[-1]), float(positive[middle])


class CurvatureScheduler:
    """Set the learning rate of SGD, and its momentum, from the curvature of the loss where training is.

    Call ``step()`` after every epoch, as with torch's schedulers. The module is measured in evaluation mode (dropout
    off, batch norm with its running statistics) and handed back in the mode it was in. The rate is the rule's or the
    largest stable one, whichever is less, times ``safety``. From the second measurement on, rate and 1 - ρ are smoothed
    in logarithms, so that one measurement that is far off moves them by little: a limit that falls suddenly is followed
    over several refreshes.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        `torch.optim.SGD`, or another that steps along the gradient; all its groups get the same rate. Its momentum is
        set too (rule "polyak") if it was constructed with a positive one.
    module : nn.Module
        The model it trains; curvature is that in all its parameters that require a gradient.
    loss_fn : callable
        (model, batch) -> scalar, the mean loss over the batch.
    data : tensors
        Training data, or a part of them, with one leading axis of examples: ``(inputs, labels)``.
    batch_size : int
        B, examples that one optimiser step averages over: with accumulated gradients, all of them.
    rule : {"polyak", "stable", "cauchy"}, default "polyak"
        "polyak": `polyak_parameters`, or 2/(h + l) without momentum. "stable": the largest stable rate. "cauchy":
        gᵀg / gᵀHg on 128 examples, times 1 - ρ; no Lanczos.
    matrix : {"hessian", "ggn"}, default "ggn"
        "ggn" has no negative curvature to discard, and sees through ReLU.
    refresh : int, default 1
        Calls of ``step`` from one measurement to the next.
    num_steps : int, default 20
        Lanczos steps.
    subsample_size : int, default 1024
        Examples to a measurement, drawn anew each time; never fewer than B.
    num_samples : int, default 256
        Of these, how many show the noise.
    warmup : int, default 1
        Calls of ``step`` before the first measurement, at ``warmup_lr``; zero measures at construction, where the
        curvature of a fresh network says little.
    warmup_lr : float, default 3e-3
        Safe for most networks.
    safety : float, default 0.5
        In (0, 1]; the linearised limit is where training just does not diverge.
    max_momentum : float, default 0.95
        Cap of "polyak".
    smoothing : float, default 0.7
        Weight of the old logarithm in the new one; zero follows every measurement.
    max_growth : float, default 2.0
        No measurement raises the rate by more, from the second one on.
    generator : torch.Generator, optional
        Draws subsamples and starts; its state is saved with the scheduler's. Default: torch's global generator.

    Attributes
    ----------
    history : list of RateMeasurement
        One a refresh.

    Raises
    ------
    ArgumentError
        If an option is out of range, the data are fewer than B or two, or the optimiser uses dampening.
    ArgumentTypeError
        If the optimiser scales steps by itself (it has ``betas``), for which curvature of the loss is the wrong one.

    Notes
    -----
    A refresh costs ``num_steps`` + 5 products with the subsample and three with each of the ``num_samples``.

    References
    ----------
    D. Granziol, S. Zohren, S. Roberts (2022), JMLR 23, arXiv 2006.09092, for the idea; details are reconstructed.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module,
        loss_fn: Function,
        data: Any,
        *,
        batch_size: int,
        rule: RateRule = "polyak",
        matrix: Matrix = "ggn",
        refresh: int = 1,
        num_steps: int = 20,
        subsample_size: int = 1024,
        num_samples: int = 256,
        warmup: int = 1,
        warmup_lr: float = 3e-3,
        safety: float = 0.5,
        max_momentum: float = 0.95,
        smoothing: float = 0.7,
        max_growth: float = 2.0,
        generator: Generator | None = None,
    ) -> None:
        call = type(self).__name__
        for group in optimizer.param_groups:
            if "betas" in group:
                raise ArgumentTypeError(
                    f"{call}: {type(optimizer).__name__} scales its steps by itself; use torch.optim.SGD, or set its "
                    "rate by hesse.curvature.scale_learning_rate(rule='sqrt')"
                )
            if group.get("dampening", 0) != 0:
                raise ArgumentError(f"{call}: the optimiser has dampening={group['dampening']}; the rules hold without")
        if rule not in ("polyak", "stable", "cauchy"):
            raise ArgumentError(f"{call}: rule must be 'polyak', 'stable' or 'cauchy', got {rule!r}")
        if matrix not in ("hessian", "ggn"):
            raise ArgumentError(f"{call}: matrix must be 'hessian' or 'ggn', got {matrix!r}")
        counts = {"refresh": refresh, "num_steps": num_steps, "num_samples": num_samples - 1, "warmup": warmup + 1}
        for option, value in (*counts.items(), ("max_growth", max_growth)):
            if not value >= 1:
                raise ArgumentError(f"{call}: {option} is too small")
        if not 0 < safety <= 1 or not 0 <= smoothing < 1 or not 0 <= max_momentum < 1 or not warmup_lr > 0:
            raise ArgumentError(
                f"{call}: expected 0 < safety <= 1, 0 <= smoothing < 1, 0 <= max_momentum < 1 and warmup_lr > 0, got "
                f"{safety}, {smoothing}, {max_momentum} and {warmup_lr}"
            )
        examples = count_examples(data)
        if not 1 <= batch_size <= examples or examples < 2:
            raise ArgumentError(f"{call}: expected 1 <= batch_size <= {examples}, the examples given; got {batch_size}")
        self.optimizer = optimizer
        self.module = module
        self.loss_fn = loss_fn
        self.data = data
        self.batch_size = batch_size
        self.rule: RateRule = rule
        self.matrix: Matrix = matrix
        self.refresh = refresh
        self.num_steps = num_steps
        self.subsample_size = max(subsample_size, batch_size, 2)
        self.num_samples = num_samples
        self.warmup = warmup
        self.safety = safety
        self.max_momentum = max_momentum
        self.smoothing = smoothing
        self.max_growth = max_growth
        self.generator = generator
        self.history: list[RateMeasurement] = []
        self._count = 0
        self._sets_momentum = rule == "polyak" and self._momentum() > 0
        if warmup == 0:
            self._measure()
        else:
            self._set(warmup_lr, self._momentum())

    def step(self) -> None:
        """Count one epoch, and measure if one is due."""
        self._count += 1
        if self._count >= self.warmup and (self._count - self.warmup) % self.refresh == 0:
            self._measure()

    def get_last_lr(self) -> list[float]:
        """Read the rates in use.

        Returns
        -------
        list of float
            One a group of the optimiser.
        """
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Gather what is needed to go on, beside the optimiser's own state.

        Returns
        -------
        dict
            Numbers, strings and at most one tensor, the generator's state.
        """
        state: dict[str, Any] = {"count": self._count, "history": [asdict(entry) for entry in self.history]}
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the rate itself comes back with the optimiser's.

        Parameters
        ----------
        state : dict
            As `state_dict` gave it.
        """
        self._count = int(state["count"])
        self.history = [RateMeasurement(**entry) for entry in state["history"]]
        if self.generator is not None and "generator" in state:
            self.generator.set_state(state["generator"])

    def _measure(self) -> None:
        with evaluation_mode(self.module):
            seen = self._along_gradient() if self.rule == "cauchy" else self._lanczos()
        momentum, limit = self._momentum(), inf
        if not seen.largest > 0:  # nothing to go by: the rate stays as it is
            rate = self.get_last_lr()[0]
        else:
            rate, momentum = self._rule(seen)
            if seen.noise is not None:
                limit = float(max_learning_rate(seen.noise, self.batch_size, momentum=momentum))
            rate = self.safety * min(rate, limit)
            if self.history:
                # the limit is smoothed with the rest: one outlying example can lower it a hundredfold for a measurement
                last = self.history[-1]
                rate = min(self._smooth(last.learning_rate, rate), self.max_growth * last.learning_rate)
                momentum = 1 - self._smooth(1 - last.momentum, 1 - momentum)
            self._set(rate, momentum)
        variance = 0.0 if seen.noise is None else float(seen.noise.directional[0])
        entry = RateMeasurement(
            self._count, seen.largest, seen.smallest, variance, limit, rate, momentum, seen.num_products
        )
        self.history.append(entry)

    def _smooth(self, old: float, new: float) -> float:
        return exp(self.smoothing * log(old) + (1 - self.smoothing) * log(new))

    def _rule(self, seen: "_Seen") -> tuple[float, float]:
        momentum = self._momentum()
        if self.rule == "cauchy":
            return (1 - momentum) / seen.largest, momentum
        if self.rule == "stable":
            return inf, momentum  # the limit decides
        if self._sets_momentum:
            return polyak_parameters(seen.largest, seen.smallest, max_momentum=self.max_momentum)
        return 2 / (seen.largest + seen.smallest), momentum

    def _lanczos(self) -> "_Seen":
        part, count = self._subsample(self.subsample_size)
        operator = loss_curvature(self.loss_fn, self.module, [part], matrix=self.matrix, keep_graph=True)
        state = lanczos(operator, self.num_steps, generator=self.generator)
        values, vectors = torch.linalg.eigh(state.tridiagonal()[0])
        if state.basis is None or not float(values[-1]) > 0:
            return _Seen(float(values[-1]), 0.0, None, self.num_steps * count)
        top = torch.einsum("mn,m->n", state.basis[:, :, 0], vectors[:, -1]).unsqueeze(1)
        noise = curvature_noise(
            self.loss_fn,
            self.module,
            [part],
            matrix=self.matrix,
            directions=top / torch.linalg.vector_norm(top),
            num_samples=self.num_samples,
            num_probes=2,
            edge_steps=0,
            generator=self.generator,
        )
        products = (self.num_steps + 5) * count + 3 * noise.num_samples  # two of the five are the check of symmetry
        inverse_batch = inverse_effective_batch("CurvatureScheduler", self.batch_size, count)
        edge = float(2 * (noise.p_sigma2 * inverse_batch).sqrt())
        largest, smallest = resolved_range(values, vectors[0].square(), edge)
        excess = float(noise.directional[0] * inverse_batch) / largest
        return _Seen(largest + excess, smallest, noise, products)

    def _along_gradient(self) -> "_Seen":
        part, count = self._subsample(_CAUCHY_BATCH)
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(self.loss_fn(self.module, part), parameters)
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        square = float(gradient.square().sum())
        operator = loss_curvature(self.loss_fn, self.module, [part], matrix=self.matrix)
        bent = float((operator @ gradient).detach() @ gradient)
        if not isfinite(square) or not isfinite(bent):
            raise NumericalError("CurvatureScheduler: the gradient, or its product with the curvature, has NaN or Inf")
        quotient = bent / square if square > 0 else 0.0
        return _Seen(quotient, quotient, None, 2 * count)

    def _subsample(self, size: int) -> tuple[Any, int]:
        total = count_examples(self.data)
        rows = shuffled(total, self.generator)[:size]
        device = next(self.module.parameters()).device
        return to_device(tree_map(lambda leaf: leaf[rows.to(leaf.device)], self.data), device), len(rows)

    def _momentum(self) -> float:
        return float(self.optimizer.param_groups[0].get("momentum", 0.0))

    def _set(self, rate: float, momentum: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            if self._sets_momentum:
                group["momentum"] = momentum


@dataclass(frozen=True, slots=True)
class _Seen:
    largest: float  # what training batches see
    smallest: float
    noise: CurvatureNoise | None  # of the subsample, along its leading Ritz vector
    num_products: int
