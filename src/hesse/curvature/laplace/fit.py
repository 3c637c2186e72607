"""Fits a Laplace posterior: the Gauss-Newton matrix of the data at a model's weights, in one pass over a loader.

    θ | D ~ N(θ*, P⁻¹),   P = τH + δI,   H = Σ_n J_nᵀ Λ_n J_n,   τ = 1/σ² for regression, else 1

Shapes: B examples, C outputs, P weights in all, L layers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.curvature._binding import choose_parameters
from hesse.curvature.batches import to_device
from hesse.curvature.capture import Captured, LayerStream, dgrad_only
from hesse.curvature.ekfac import sequence_gradients
from hesse.curvature.fisher import Likelihood
from hesse.curvature.kfac import InputFactor, OutputFactor, add_gram_, eigendecompose, mirror_
from hesse.curvature.laplace._common import (
    OutputsFn,
    Structure,
    call_model,
    matrix_outputs,
    parameter_names,
    positive,
)
from hesse.curvature.laplace.posterior import Laplace
from hesse.curvature.laplace.precision import DensePrecision, LayerwisePrecision, Precision
from hesse.curvature.layers import TrackedLayer, select_layers
from hesse.curvature.output_roots import output_hessian_columns
from hesse.errors import ArgumentError, ArgumentTypeError, MemoryLimitError, NumericalError, ShapeError
from hesse.linalg.layout import ParameterLayout

__all__ = ["laplace"]

_DENSE_LIMIT = 30_000  # weights; H and its Cholesky factor then take 14 GiB


def laplace(
    model: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    likelihood: Likelihood,
    *,
    subset: str | Callable[[str, nn.Module], bool] = "last_layer",
    structure: Structure = "kron",
    prior_precision: Tensor | float = 1.0,
    sigma_noise: Tensor | float = 1.0,
    outputs_fn: OutputsFn | None = None,
) -> Laplace:
    """Fit H at the model's present weights, in one pass over the data.

    Parameters
    ----------
    model : nn.Module
        At the optimum of loss plus ½ δ ‖θ‖²; in evaluation mode if it has dropout or batch normalisation.
    loader : iterable of (inputs, targets)
        Batches; the order does not matter, hence shuffling does no harm. Targets are class numbers (B,), yes-no answers
        (B, C) or numbers (B, C) by the likelihood; for one output (B,) will do.
    likelihood : {"categorical", "bernoulli", "gaussian"}
        Softmax, a sigmoid of each output, or noise of standard deviation σ around each output.
    subset : {"last_layer", "all"} or str or callable, default "last_layer"
        Which weights are uncertain; the others are held. "last_layer": the Linear, Conv1d, Conv2d or Conv1D layer that
        the model lists last. "all": every such layer. Else as ``modules`` of `select_layers`. Only those whose weight
        requires a gradient count.
    structure : {"kron", "full", "diag"}, default "kron"
        What is kept of H: Kronecker factors of every layer's block (exact for a single linear layer with "gaussian";
        the damping is exact), all of it, or its diagonal.
    prior_precision : Tensor or float, shape () or (L,), default 1.0
        δ of the prior N(0, I/δ): of the weight decay η of a mean loss over N examples, N η.
    sigma_noise : Tensor or float, shape (), default 1.0
        σ of a Gaussian likelihood.
    outputs_fn : callable, optional
        (model, inputs) -> outputs (B, C) or (B,). Default: ``model(inputs)``.

    Returns
    -------
    Laplace
        Statistics in float64, eigenbases in the dtype of the parameters (float32 at least), on their device.

    Raises
    ------
    ArgumentError
        If an option is unknown or out of range, no layer is left, the loader is empty, or a layer is in training mode
        that would draw random numbers or change its buffers.
    ArgumentTypeError
        If a batch is no pair, or parameters are not real floating tensors.
    ShapeError
        If outputs are not (B, C), targets do not fit, or parameters differ in dtype or device.
    MemoryLimitError
        If ``structure="full"`` is asked for more than 30,000 weights.
    NumericalError
        If the outputs or the factors hold NaN or Inf.

    Notes
    -----
    C backward passes a batch through activations alone: the expectation over labels is exact. "kron" needs
    2 (m² + p²) + p m numbers a layer (m inputs with the bias, p outputs) and an eigendecomposition each, "full" P²
    numbers and P² N C multiplications. Convolutions and shared weights count positions as independent in "kron" (the
    "expand" setting), exactly in the others.

    Examples
    --------
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> x = torch.tensor([[1.0], [2.0], [2.0]])
    >>> posterior = laplace(net, [(x, 3 * x)], "gaussian", structure="full")
    >>> float(posterior.predictive(torch.ones(1, 1)).covariance)  # 1 / (1 + 4 + 4 + δ)
    0.10000000149011612

    References
    ----------
    D. J. C. MacKay (1992), Neural Computation 4(3). H. Ritter, A. Botev, D. Barber (2018), ICLR.
    A. Immer, M. Korzepa, M. Bauer (2021), AISTATS, arXiv 2008.08400.
    E. Daxberger, A. Kristiadi, A. Immer et al. (2021), NeurIPS, arXiv 2106.14806.
    """
    if likelihood not in ("categorical", "bernoulli", "gaussian"):
        raise ArgumentError(f"laplace: likelihood must be categorical, bernoulli or gaussian; got {likelihood!r}")
    if structure not in ("kron", "full", "diag"):
        raise ArgumentError(f"laplace: structure must be kron, full or diag; got {structure!r}")
    if likelihood != "gaussian" and not (isinstance(sigma_noise, float | int) and sigma_noise == 1):
        raise ArgumentError(f"laplace: sigma_noise has no meaning for {likelihood!r}")
    layers = _chosen_layers(model, subset)
    names = [name for layer in layers.values() for name in parameter_names(layer)]
    chosen = choose_parameters("laplace", model, names)
    layout, device = ParameterLayout.of(chosen), next(iter(chosen.values())).device
    if structure == "full" and layout.size > _DENSE_LIMIT:
        raise MemoryLimitError(
            f'laplace: structure="full" would take {layout.size**2 * 16 / 2**30:.0f} GiB for {layout.size:,} weights; '
            'use "kron" or "diag", or fewer layers'
        )
    with torch.no_grad():
        norms = torch.stack(
            [
                torch.stack([chosen[name].double().square().sum() for name in parameter_names(layer)]).sum()
                for layer in layers.values()
            ]
        )
    wide = torch.float64 if next(iter(chosen.values())).dtype == torch.float64 else torch.float32
    sums = _Sums(layers, structure, wide, device)
    call = outputs_fn or call_model
    fit, observations = _accumulate(model, loader, likelihood, sums, call, device)
    posterior = Laplace(
        model=model,
        layers=layers,
        layout=layout,
        likelihood=likelihood,
        structure=structure,
        precision=sums.precision(),
        log_likelihood=fit,
        num_observations=observations,
        squared_norms=norms,
        prior_precision=positive("prior_precision", prior_precision, norms),
        sigma_noise=positive("sigma_noise", sigma_noise, norms),
        outputs_fn=call,
    )
    posterior._priors(posterior.prior_precision)  # its shape
    return posterior


@dataclass(slots=True)
class _Sums:
    """H while it is being summed; ``first`` is true for the first column of a batch."""

    layers: Mapping[str, TrackedLayer]
    structure: Structure
    dtype: torch.dtype
    device: torch.device
    first: bool = True
    inputs: dict[str, InputFactor] = field(default_factory=dict)
    outputs: dict[str, OutputFactor] = field(default_factory=dict)
    tables: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    matrix: Tensor | None = None

    def consume(self, rows: Captured) -> None:
        name, layer = rows.layer.name, rows.layer
        if self.structure == "kron":
            if name not in self.inputs:
                self.inputs[name] = InputFactor.zeros(layer.columns, dtype=self.dtype, device=self.device)
                self.outputs[name] = OutputFactor.zeros(layer.out_features, dtype=self.dtype, device=self.device)
            if self.first:
                self.inputs[name].add_(rows)
            self.outputs[name].add_(rows, count=self.first)
        elif self.structure == "diag":
            squares = sequence_gradients(rows).double().square().sum(0)
            self.tables[name] = self.tables[name] + squares if name in self.tables else squares
        else:
            self.rows[name] = sequence_gradients(rows).double().flatten(1)

    def end_of_column(self) -> None:
        self.first = False
        if self.structure != "full":
            return
        rows = torch.cat([self.rows[name] for name in self.layers], 1)
        if self.matrix is None:
            self.matrix = rows.new_zeros(rows.shape[1], rows.shape[1])
        add_gram_(self.matrix, rows)

    def precision(self) -> Precision:
        if self.matrix is not None:
            shapes = {name: (layer.out_features, layer.columns) for name, layer in self.layers.items()}
            return DensePrecision(mirror_(self.matrix), shapes)
        if self.structure == "diag":
            return LayerwisePrecision({name: self.tables[name] for name in self.layers}, {})
        tables, bases = {}, {}
        for name in self.layers:
            a, s = self.inputs[name], self.outputs[name]
            right = eigendecompose(mirror_(a.total), a.count, name=f"{name}.A")
            left = eigendecompose(mirror_(s.total), s.count, name=f"{name}.S")
            tables[name] = a.count * torch.outer(left.values, right.values)
            bases[name] = left.vectors.to(self.dtype), right.vectors.to(self.dtype)
        return LayerwisePrecision(tables, bases)


def _accumulate(
    model: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    likelihood: Likelihood,
    sums: _Sums,
    outputs_fn: OutputsFn,
    device: torch.device,
) -> tuple[Tensor, int]:
    # the data term of the evidence, and how many numbers were observed
    fit, observations = torch.zeros((), dtype=torch.float64, device=device), 0
    stream = LayerStream(sums.layers, sums.consume)
    with dgrad_only(model), stream:
        for batch in loader:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ArgumentTypeError("laplace: the loader must give pairs (inputs, targets)")
            inputs, targets = to_device(tuple(batch), device)
            with stream.batch():
                outputs = matrix_outputs(outputs_fn(model, inputs))
                term = _log_likelihood(outputs.detach(), targets, likelihood)
                if not bool(torch.isfinite(term)):
                    raise NumericalError("laplace: the log-likelihood of a batch is NaN or Inf")
                fit, observations, sums.first = fit + term, observations + outputs.numel(), True
                for column in output_hessian_columns(outputs, likelihood):
                    stream.backward(outputs, column, keep=True)
                    sums.end_of_column()
    if observations == 0:
        raise ArgumentError("laplace: the loader gave no batch")
    return fit, observations


def _log_likelihood(outputs: Tensor, targets: Tensor, likelihood: Likelihood) -> Tensor:
    z = outputs.double()
    if likelihood == "categorical":
        if targets.shape != z.shape[:1] or targets.dtype.is_floating_point:
            raise ShapeError(
                f"laplace: expected class numbers of shape {tuple(z.shape[:1])}, got {targets.dtype} "
                f"{tuple(targets.shape)}"
            )
        return -F.cross_entropy(z, targets.long(), reduction="sum")
    y = targets.unsqueeze(-1) if targets.ndim == 1 else targets
    if y.shape != z.shape:
        raise ShapeError(f"laplace: outputs are {tuple(z.shape)}, targets {tuple(targets.shape)}")
    if likelihood == "bernoulli":
        return -F.binary_cross_entropy_with_logits(z, y.double(), reduction="sum")
    return -(z - y.double()).square().sum() / 2


def _chosen_layers(model: nn.Module, subset: str | Callable[[str, nn.Module], bool]) -> dict[str, TrackedLayer]:
    every = subset in ("last_layer", "all")
    found = select_layers(model, "all-linear" if every else subset, allow_head=True)
    trained = {
        name: replace(layer, has_bias=layer.has_bias and _requires_grad(layer, "bias"))
        for name, layer in found.items()
        if _requires_grad(layer, "weight")
    }
    if not trained:
        raise ArgumentError(f"laplace: subset {subset!r} holds no layer whose weight requires a gradient")
    return dict([next(reversed(trained.items()))]) if subset == "last_layer" else trained


def _requires_grad(layer: TrackedLayer, name: str) -> bool:
    return getattr(layer.module, name).requires_grad
