"""A module at a point as linearised SGD sees it: gradients of its outputs, scaled by the curvature of the loss.

    H = (1/N) Σ_i a_i a_iᵀ,    ∇L_i = a_i e_i

a_i = J_iᵀ S_i with S_i S_iᵀ the Hessian of sample i's loss in its outputs: H is the Gauss-Newton matrix, and where all
residuals are zero it is the Hessian.

Shapes: N samples, C outputs (all axes but the first, flattened), P parameters.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hesse.curvature.per_sample import per_sample_gradients
from hesse.errors import ArgumentError, ArgumentTypeError, MemoryLimitError, ShapeError
from hesse.linalg.layout import ParameterLayout

__all__ = ["Linearisation", "LinearisedLoss", "join_data", "linearise"]

LinearisedLoss = Literal["mse", "half_mse", "cross_entropy"]
"""torch's MSELoss, mean over samples and outputs; (1/2N) Σ ‖f - y‖²; torch's CrossEntropyLoss."""
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Linearisation:
    """Per-sample gradients of a module's outputs at its present parameters, in the metric of its loss."""

    features: Tensor  # (N, C, P), a_iᵀ
    residuals: Tensor  # (N, C), e_i; for squared errors the loss of sample i is ‖e_i‖² / 2
    loss: float  # mean over the samples
    interpolation_residual: float  # root mean square of f - y over the targets' spread; 1 - p(label) for classes
    layout: ParameterLayout  # of the columns


def linearise(
    module: nn.Module,
    data: Any,
    loss: LinearisedLoss = "mse",
    *,
    preconditioner: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    max_gib: float = 8.0,
) -> Linearisation:
    """Compute a_i, the gradients of the outputs of every sample, such that (1/N) Σ a_i a_iᵀ is the curvature.

    Parameters
    ----------
    module : nn.Module
        Called with the inputs alone; what requires a gradient is differentiated. In evaluation mode, if it has dropout
        or batch normalisation.
    data : (inputs, targets), or an iterable of such pairs
        The samples SGD draws from, all of them; a loader is run through once and joined. Targets have the shape of the
        outputs, or are class numbers (N,) for cross-entropy.
    loss : {"mse", "half_mse", "cross_entropy"}, default "mse"
        Of which loss the learning rate takes gradients. "mse" is torch's, whose Hessian is 2/C times that of
        "half_mse", the convention of the literature: learning rates differ by that factor.
    preconditioner : mapping of str to Tensor, optional
        Positive D, of the shapes of the parameters, if the step is θ ← θ - η D⁻¹ g: gradients are divided by √D, and
        everything is about D^{-1/2} H D^{-1/2}. `optimizer_dynamics` reads Adam's.
    chunk_size : int, optional
        Samples a pass; default: all.
    max_gib : float, default 8.0
        Refuse what would need more memory: 24 bytes a feature at worst.

    Returns
    -------
    Linearisation
        In the dtype of the parameters, without a graph. A kink, as of ReLU at zero, is taken as torch takes it.

    Raises
    ------
    ArgumentError
        If the loss is unknown, the layers couple the samples of a batch or draw random numbers, the data are empty, or
        the preconditioner does not fit.
    ArgumentTypeError
        If ``module`` is not a module, or the data are no pairs of tensors.
    ShapeError
        If targets and outputs do not go together.
    MemoryLimitError
        If the features would need more than ``max_gib``.

    Notes
    -----
    C backward passes over the data. The trace of H is exact then; estimating it from 64 probes would take more passes
    as long as C is below a hundred or so.
    """
    call = "linearise"
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(f"{call}: expected a module, got {type(module).__name__}")
    if loss not in ("mse", "half_mse", "cross_entropy"):
        raise ArgumentError(f"{call}: loss must be mse, half_mse or cross_entropy, got {loss!r}")
    _refuse_coupled_samples(call, module)
    inputs, targets = join_data(call, data)
    layout = ParameterLayout.of({name: p for name, p in module.named_parameters() if p.requires_grad})
    with torch.no_grad():
        outputs = cast(Tensor, module(inputs))
        if outputs.shape[0] != len(inputs):
            raise ShapeError(f"{call}: {len(inputs)} inputs gave outputs of shape {tuple(outputs.shape)}")
        outputs = outputs.reshape(len(inputs), -1)
        gib = outputs.numel() * layout.size * 24 / _GIB
        if gib > max_gib:
            raise MemoryLimitError(
                f"{call}: {outputs.numel()} outputs times {layout.size} parameters need {gib:.1f} GiB, more than "
                f"max_gib={max_gib:g}; take a part of the samples, freeze layers, or pass hesse.curvature.jacobian to "
                "max_stable_learning_rate with method='low_rank'"
            )
        metric, residuals, value, interpolation = _loss_geometry(call, outputs, targets, loss)
        jacobians = [_output_gradients(module, inputs, k, chunk_size) for k in range(outputs.shape[1])]
        features = torch.stack(jacobians, dim=1)
        features = features * metric if metric.ndim == 0 else metric.mT @ features
        if preconditioner is not None:
            features = features * _inverse_root(call, preconditioner, layout)
    return Linearisation(features, residuals, value, interpolation, layout)


def _output_gradients(module: nn.Module, inputs: Tensor, output: int, chunk_size: int | None) -> Tensor:
    def one(model: Any, sample: Tensor) -> Tensor:
        return model(sample).reshape(-1)[output]

    return per_sample_gradients(one, module, inputs, chunk_size=chunk_size)


def _loss_geometry(
    call: str, outputs: Tensor, targets: Tensor, loss: LinearisedLoss
) -> tuple[Tensor, Tensor, float, float]:
    # S with S Sᵀ the Hessian in the outputs (a number, or (N, C, C)), e with S e the gradient, loss, residual
    if loss == "cross_entropy":
        if targets.shape != outputs.shape[:1] or targets.is_floating_point():
            raise ShapeError(f"{call}: cross-entropy needs class numbers of shape ({len(outputs)},)")
        p = outputs.softmax(1)
        root = p.sqrt()
        metric = torch.diag_embed(root) - p.unsqueeze(2) * root.unsqueeze(1)  # S Sᵀ = diag(p) - p pᵀ
        own = p.gather(1, targets.unsqueeze(1))
        residuals = torch.zeros_like(p).scatter(1, targets.unsqueeze(1), -own.rsqrt())  # S e = p - onehot
        return metric, residuals, float(-own.log().mean()), float((1 - own).mean())
    if targets.numel() != outputs.numel() or len(targets) != len(outputs):
        raise ShapeError(f"{call}: targets of shape {tuple(targets.shape)} for outputs {tuple(outputs.shape)}")
    scale = (2 / outputs.shape[1]) ** 0.5 if loss == "mse" else 1.0
    gap = outputs - targets.reshape(outputs.shape).to(outputs.dtype)
    residuals = scale * gap
    size, spread = float(gap.square().mean().sqrt()), float(targets.to(outputs.dtype).std(unbiased=False))
    relative = size / spread if spread > 0 else (0.0 if size == 0 else float("inf"))
    return outputs.new_tensor(scale), residuals, float(residuals.square().sum(1).mean() / 2), relative


def join_data(call: str, data: Any) -> tuple[Tensor, Tensor]:
    """Take a pair of tensors as it is, and join the pairs of a loader.

    Parameters
    ----------
    call : str
        The caller, for messages.
    data : (inputs, targets), or an iterable of such pairs
        Run through once.

    Returns
    -------
    inputs, targets : Tensor
        With equal leading axes.

    Raises
    ------
    ArgumentError
        If there are no pairs.
    ArgumentTypeError
        If something else than pairs of tensors comes.
    ShapeError
        If their leading axes differ, or there are no samples.
    """
    pair = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    pairs: list[Any] = [data] if pair else list(cast(Iterable[Any], data)) if isinstance(data, Iterable) else []
    if not pairs:
        raise ArgumentError(
            f"{call}: expected (inputs, targets), or an iterable of such pairs, got {type(data).__name__}"
        )
    for one in pairs:
        if not isinstance(one, tuple | list) or len(one) != 2 or not all(isinstance(part, Tensor) for part in one):
            raise ArgumentTypeError(f"{call}: expected pairs of tensors (inputs, targets)")
    inputs, targets = (torch.cat([one[i] for one in pairs]) for i in (0, 1))
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ShapeError(
            f"{call}: expected as many targets as inputs and at least one, got {len(inputs)}, {len(targets)}"
        )
    return inputs, targets


def _refuse_coupled_samples(call: str, module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            raise ArgumentError(
                f"{call}: {name or 'the module'} normalises by its batch, so that a sample has no gradient of its own; "
                "call model.eval(), with track_running_stats=True"
            )


def _inverse_root(call: str, preconditioner: Mapping[str, Tensor], layout: ParameterLayout) -> Tensor:
    flat = layout.flatten({name: preconditioner[name] for name in layout.names if name in preconditioner})
    if not bool((flat > 0).all()):
        raise ArgumentError(f"{call}: the preconditioner must be positive")
    return flat.rsqrt()
