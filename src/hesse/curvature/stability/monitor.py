"""Stability during training: how close to its edge does the optimiser run?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hesse.curvature._binding import evaluation_mode
from hesse.curvature.hessian import hessian
from hesse.curvature.stability.coordinates import batch_noise_factor, range_coordinates
from hesse.curvature.stability.linearise import LinearisedLoss, join_data, linearise
from hesse.curvature.stability.radius import second_moment_radius
from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["OptimizerDynamics", "StabilityMonitor", "StabilityRecord", "batch_sharpness", "optimizer_dynamics"]


@dataclass(frozen=True, slots=True)
class OptimizerDynamics:
    """An optimiser's step as heavy ball: v ← β v + g, θ ← θ - η D⁻¹ v."""

    lr: float  # η
    momentum: float  # β
    preconditioner: dict[str, Tensor] | None  # D; None: the identity


@dataclass(frozen=True, slots=True)
class StabilityRecord:
    """One look at the training."""

    step: int
    loss: float
    lr: float  # η of the heavy ball that the optimiser amounts to
    lr_lambda_max: float  # η λ₁
    lr_trace: float  # η Tr H
    radius: float
    batch_sharpness: float  # E[g·H_B g / ‖g‖²] over batches; SGD at its edge of stability has it near 2/η
    interpolation_residual: float


class StabilityMonitor:
    """Log η λ₁, η Tr H, the second-moment radius and the batch sharpness as an optimiser goes.

    Far from a minimum the numbers describe the Gauss-Newton matrix at the moment, not what SGD will do.

    Parameters
    ----------
    optimizer : torch.optim.SGD, Adam or AdamW
        Its learning rate and momentum are read at every look, Adam's preconditioner too.
    module : nn.Module
        What it trains.
    loss : {"mse", "half_mse", "cross_entropy"}, default "mse"
        What it minimises; see `linearise`.
    replacement : bool, default False
        Whether samples are drawn into a batch with replacement.
    num_batches : int, default 16
        Batches that the sharpness averages over.
    generator : torch.Generator, optional
        Source of these batches. Default: torch's global generator.

    Raises
    ------
    ArgumentTypeError
        If the optimiser is of another kind.
    ArgumentError
        If it uses Nesterov's momentum, several learning rates, or another option that is not heavy ball.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        module: nn.Module,
        *,
        loss: LinearisedLoss = "mse",
        replacement: bool = False,
        num_batches: int = 16,
        generator: Generator | None = None,
    ) -> None:
        if num_batches < 1:
            raise ArgumentError(f"StabilityMonitor: expected num_batches >= 1, got {num_batches}")
        optimizer_dynamics(optimizer, module)
        self.optimizer = optimizer
        self.module = module
        self.loss: LinearisedLoss = loss
        self.replacement = replacement
        self.num_batches = num_batches
        self.generator = generator
        self.records: list[StabilityRecord] = []

    def measure(self, data: Any, batch_size: int, *, step: int | None = None) -> StabilityRecord:
        """Take one look, and keep it in ``records``.

        Parameters
        ----------
        data : (inputs, targets), or an iterable of such pairs
            The samples SGD draws from, or a part of them that stands for all.
        batch_size : int
            B.
        step : int, optional
            Goes into the record. Default: one more than the last.

        Returns
        -------
        StabilityRecord
            It costs C + 4 ``num_batches`` B / N backward passes over the data, and a Gram matrix.
        """
        dynamics = optimizer_dynamics(self.optimizer, self.module)
        with evaluation_mode(self.module):
            at = linearise(self.module, data, self.loss, preconditioner=dynamics.preconditioner)
            sharpness = batch_sharpness(
                self.module,
                data,
                batch_size,
                loss=self.loss,
                replacement=self.replacement,
                num_batches=self.num_batches,
                generator=self.generator,
            )
        coordinates = range_coordinates(at.features)
        radius = second_moment_radius(
            coordinates, dynamics.lr, batch_size, momentum=dynamics.momentum, replacement=self.replacement
        )
        values = coordinates.eigenvalues
        last = self.records[-1].step if self.records else -1
        record = StabilityRecord(
            step=last + 1 if step is None else step,
            loss=at.loss,
            lr=dynamics.lr,
            lr_lambda_max=dynamics.lr * float(values[0]) if len(values) else 0.0,
            lr_trace=dynamics.lr * float(values.sum()),
            radius=radius.value,
            batch_sharpness=sharpness,
            interpolation_residual=at.interpolation_residual,
        )
        self.records.append(record)
        return record


def batch_sharpness(
    module: nn.Module,
    data: Any,
    batch_size: int,
    *,
    loss: LinearisedLoss = "mse",
    replacement: bool = False,
    num_batches: int = 16,
    generator: Generator | None = None,
) -> float:
    """E[g·H_B g / ‖g‖²], the curvature of a batch's loss along its own gradient g, over random batches.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode, if its layers couple samples or draw random numbers.
    data : (inputs, targets), or an iterable of such pairs
        Tensors, as `linearise` takes them.
    batch_size : int
        B.
    loss : {"mse", "half_mse", "cross_entropy"}, default "mse"
        See `linearise`.
    replacement : bool, default False
        Whether samples are drawn into a batch with replacement.
    num_batches : int, default 16
        Batches.
    generator : torch.Generator, optional
        Source of them. Default: torch's global generator.

    Returns
    -------
    float
        With the Hessian of the loss itself, not Gauss-Newton. Batches without gradient are left out; NaN if all are.

    Raises
    ------
    ArgumentError
        If ``batch_size`` or ``num_batches`` is out of range.

    References
    ----------
    A. Andreyev, P. Beneventano (2024), arXiv 2412.20553.
    """
    inputs, targets = join_data("batch_sharpness", data)
    n = len(inputs)
    batch_noise_factor(n, batch_size, replacement=replacement)
    if num_batches < 1:
        raise ArgumentError(f"batch_sharpness: expected num_batches >= 1, got {num_batches}")
    device = inputs.device if generator is None else generator.device
    quotients: list[float] = []
    parameters = [p for p in module.parameters() if p.requires_grad]

    def loss_fn(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return _batch_loss(model(batch[0]), batch[1], loss)

    for _ in range(num_batches):
        if replacement:
            index = torch.randint(n, (batch_size,), generator=generator, device=device)
        else:
            index = torch.randperm(n, generator=generator, device=device)[:batch_size]
        batch = (inputs[index.to(inputs.device)], targets[index.to(targets.device)])
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_fn(module, batch), parameters)])
        square = float(gradient @ gradient)
        if square > 0:
            quotients.append(float((gradient @ (hessian(loss_fn, module, batch) @ gradient)).detach()) / square)
    return sum(quotients) / len(quotients) if quotients else float("nan")


def optimizer_dynamics(optimizer: torch.optim.Optimizer, module: nn.Module) -> OptimizerDynamics:
    """Read an optimiser's step as heavy ball with a diagonal preconditioner. Weight decay is not part of it.

    Adam's averages m, v after t steps make η = lr (1 - β₁) / (1 - β₁ᵗ), β = β₁ and D = √(v / (1 - β₂ᵗ)) + eps.

    Parameters
    ----------
    optimizer : torch.optim.SGD, Adam or AdamW
        With one learning rate for all.
    module : nn.Module
        Gives the parameters their names.

    Returns
    -------
    OptimizerDynamics
        A copy of the state.

    Raises
    ------
    ArgumentTypeError
        If the optimiser is of another kind.
    ArgumentError
        If it uses Nesterov's momentum, AMSGrad, several settings, or maximises.
    """
    call = "optimizer_dynamics"
    if not isinstance(optimizer, torch.optim.SGD | torch.optim.Adam):
        raise ArgumentTypeError(f"{call}: expected SGD, Adam or AdamW, got {type(optimizer).__name__}")
    groups = optimizer.param_groups
    kept = ("lr", "momentum", "dampening", "betas", "eps")
    if any(group.get(key) != groups[0].get(key) for group in groups for key in kept):
        raise ArgumentError(
            f"{call}: the parameter groups have different settings; stability is about one learning rate"
        )
    group = groups[0]
    for option in ("nesterov", "amsgrad", "maximize"):
        if group.get(option):
            raise ArgumentError(f"{call}: {option}=True is not heavy ball")
    if isinstance(optimizer, torch.optim.SGD):
        momentum = float(group["momentum"])
        # dampening scales all gradients but the first
        return OptimizerDynamics(float(group["lr"]) * (1 - float(group["dampening"]) * (momentum > 0)), momentum, None)
    return _adam_dynamics(group, optimizer.state, module)


def _adam_dynamics(group: Mapping[str, Any], state: Mapping[Any, Any], module: nn.Module) -> OptimizerDynamics:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    scales: dict[str, Tensor] = {}
    correction = 1 - beta1
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        own = state.get(parameter)
        if not own:
            raise ArgumentError(f"optimizer_dynamics: {name} has no state yet; make a step of Adam first")
        steps = float(own["step"])
        correction = (1 - beta1) / (1 - beta1**steps)
        scales[name] = (own["exp_avg_sq"] / (1 - beta2**steps)).sqrt() + float(group["eps"])
    return OptimizerDynamics(float(group["lr"]) * correction, beta1, scales)


def _batch_loss(outputs: Tensor, targets: Tensor, loss: LinearisedLoss) -> Tensor:
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(outputs, targets)
    gap = outputs.reshape(len(targets), -1) - targets.reshape(len(targets), -1)
    return gap.square().mean() if loss == "mse" else gap.square().sum() / (2 * len(targets))
