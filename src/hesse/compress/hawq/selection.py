"""From a trained model to a quantised one in one call, and the choice among plans by the loss itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hesse.compress.hawq.allocation import ParetoFrontier, Solver, allocate_bits, candidate_plans, pareto_frontier
from hesse.compress.hawq.layers import quantizable_weights
from hesse.compress.hawq.plan import BitPlan
from hesse.compress.hawq.quantized import QuantizedModel, quantize_model
from hesse.compress.hawq.quantizer import UniformQuantizer
from hesse.compress.hawq.sensitivity import WEIGHT_BITS, SensitivityTable, sensitivity_table
from hesse.compress.hawq.traces import LayerTraces, layer_traces
from hesse.curvature.batches import as_batches, batch_size, to_device
from hesse.curvature.hessian import Function
from hesse.curvature.of_loss import Matrix
from hesse.errors import ArgumentError

__all__ = ["HAWQ", "PlanLosses", "plan_losses"]


@dataclass(frozen=True, slots=True)
class PlanLosses:
    """Plans beside the loss that each really has."""

    plans: tuple[BitPlan, ...]
    losses: Tensor  # (number of plans,), float64
    dense: float  # of the model itself

    @property
    def best(self) -> BitPlan:
        """The plan of least loss."""
        return self.plans[int(self.losses.argmin())]


def plan_losses(
    module: nn.Module,
    loss_fn: Function,
    batches: Any,
    plans: Sequence[BitPlan],
    quantizer: UniformQuantizer | None = None,
) -> PlanLosses:
    """Measure the loss under each plan, weights and inputs rounded as it says.

    Parameters
    ----------
    module : nn.Module
        The model; left as it is.
    loss_fn : callable
        (model, batch) -> scalar, a mean over the examples.
    batches : object, list, DataLoader or BatchStream
        Data to measure on; inputs that are rounded get their ranges from them, too.
    plans : sequence of BitPlan
        At least one.
    quantizer : UniformQuantizer, optional
        The one the plans were made with. Default: ``UniformQuantizer()``: symmetric, one scale a tensor.

    Returns
    -------
    PlanLosses
        In the order of the plans; infinite where the loss is not finite.

    Raises
    ------
    ArgumentError
        If there are no plans, or one names what the model does not have.

    Notes
    -----
    A pass over the data for every plan, two and a copy of the model where inputs are rounded. Each pair of weight and
    width that occurs in plans of weights alone is rounded once, and kept.
    """
    if not plans:
        raise ArgumentError("plan_losses: there are no plans")
    held = as_batches("plan_losses", batches)
    rule = quantizer or UniformQuantizer()
    axes = {weight.name: weight.channel_axis for weight in quantizable_weights(module)}
    if unknown := {name for plan in plans for name in plan.weights} - set(axes):
        raise ArgumentError(f"plan_losses: the model has no quantisable weight {', '.join(sorted(unknown))}")
    parameters = dict(module.named_parameters())
    kept: dict[tuple[str, int], Tensor] = {}

    def rounded(name: str, bits: int) -> Tensor:
        if (name, bits) not in kept:
            weight = parameters[name].detach()
            kept[name, bits] = rule.with_bits(bits).grid(weight, axis=axes[name]).round_trip(weight)
        return kept[name, bits]

    def measured(plan: BitPlan) -> float:
        if plan.activations:
            return _loss(quantize_model(module, plan, rule).calibrate(loss_fn, held), {}, loss_fn, held)
        return _loss(module, {n: rounded(n, b) for n, b in plan.weights.items()}, loss_fn, held)

    with torch.no_grad():
        dense = _loss(module, {}, loss_fn, held)
        losses = [measured(plan) for plan in plans]
    values = torch.tensor(losses, dtype=torch.float64)
    return PlanLosses(tuple(plans), torch.where(values.isfinite(), values, torch.inf), dense)


def _loss(module: nn.Module, weights: dict[str, Tensor], loss_fn: Function, batches: Iterable[Any]) -> float:
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(module, weights, args, kwargs)

    device = next(module.parameters()).device
    total, examples = 0.0, 0
    for batch in batches:
        here = to_device(batch, device)
        count = batch_size(here)
        total, examples = total + float(loss_fn(stand_in, here)) * count, examples + count
    return total / examples


class HAWQ:
    """Bits by average Hessian trace, in the shape of a scikit-learn transformer.

    Parameters
    ----------
    budget : float, default 4
        In the units of ``constraint``.
    bits : sequence of int, default (2, 3, 4, 6, 8)
        Widths to choose from.
    constraint : str, default "average_bits"
        "average_bits", or "size" in bits.
    quantizer : UniformQuantizer, optional
        Default: ``UniformQuantizer()``: symmetric, one scale a tensor.
    matrix : {"hessian", "ggn"}, default "hessian"
        Whose traces.
    num_probes : int, default 50
        As in `layer_traces`.
    validate : bool, default True
        Measure the loss of `candidate_plans` and take the best, instead of trusting the prediction. It costs
        ``num_candidates`` passes, and guards against errors too large for any quadratic model.
    num_candidates : int, default 10
        Plans measured.
    ties : iterable of groups of names
        Weights of a group get the same bits.
    layers : iterable of str, optional
        As in `quantizable_weights`.
    solver : str, default "auto"
        As in `allocate_bits`, used if ``validate`` is off.
    generator : torch.Generator, optional
        Source of the probes.

    Attributes
    ----------
    traces_, table_, frontier_, plan_, losses_
        Set by `fit`: `LayerTraces`, `SensitivityTable`, `ParetoFrontier`, `BitPlan`, and the `PlanLosses` of the
        candidates (None without ``validate``).
    """

    traces_: LayerTraces
    table_: SensitivityTable
    frontier_: ParetoFrontier
    plan_: BitPlan
    losses_: PlanLosses | None

    def __init__(
        self,
        budget: float = 4.0,
        bits: Sequence[int] = WEIGHT_BITS,
        *,
        constraint: str = "average_bits",
        quantizer: UniformQuantizer | None = None,
        matrix: Matrix = "hessian",
        num_probes: int = 50,
        validate: bool = True,
        num_candidates: int = 10,
        ties: Iterable[Iterable[str]] = (),
        layers: Iterable[str] | None = None,
        solver: Solver = "auto",
        generator: Generator | None = None,
    ) -> None:
        self.budget = budget
        self.bits = bits
        self.constraint = constraint
        self.quantizer = quantizer
        self.matrix: Matrix = matrix
        self.num_probes = num_probes
        self.validate = validate
        self.num_candidates = num_candidates
        self.ties = ties
        self.layers = layers
        self.solver: Solver = solver
        self.generator = generator

    def fit(self, module: nn.Module, loss_fn: Function, batches: Any) -> "HAWQ":
        """Take traces, build the frontier and choose the plan.

        Parameters
        ----------
        module : nn.Module
            The trained model, in eval mode; it is kept for `transform`, not copied.
        loss_fn : callable
            (model, batch) -> scalar, a mean over the examples.
        batches : object, list, DataLoader or BatchStream
            Calibration data.

        Returns
        -------
        HAWQ
            Itself.
        """
        ties = [list(tie) for tie in self.ties]
        self.traces_ = layer_traces(
            module,
            loss_fn,
            batches,
            layers=self.layers,
            num_probes=self.num_probes,
            matrix=self.matrix,
            generator=self.generator,
        )
        self.table_ = sensitivity_table(module, self.traces_, self.bits, self.quantizer)
        self.frontier_ = pareto_frontier(self.table_, self.constraint, ties=ties)
        self.losses_ = None
        if self.validate:
            plans = candidate_plans(
                self.table_, self.budget, constraint=self.constraint, ties=ties, num_plans=self.num_candidates
            )
            self.losses_ = plan_losses(module, loss_fn, batches, plans, self.quantizer)
            self.plan_ = self.losses_.best
        else:
            self.plan_ = allocate_bits(
                self.table_, self.budget, constraint=self.constraint, ties=ties, solver=self.solver
            )
        self._module = module
        return self

    def transform(self, module: nn.Module | None = None) -> QuantizedModel:
        """Round the weights as the plan says.

        Parameters
        ----------
        module : nn.Module, optional
            Default: the model of `fit`.

        Returns
        -------
        QuantizedModel
            A copy.

        Raises
        ------
        ArgumentError
            If `fit` was not called.
        """
        if not hasattr(self, "plan_"):
            raise ArgumentError("HAWQ.transform: call fit(module, loss_fn, batches) first")
        return quantize_model(self._module if module is None else module, self.plan_, self.quantizer)
