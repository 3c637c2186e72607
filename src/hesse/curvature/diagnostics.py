"""Everything about the curvature of a loss at one point that a practitioner asks for, in one call.

Spectrum, trace and its share of every layer, sharpness, the spread between examples and the learning rates that follow
from it, and, where the point is a minimum of a small model, its stability under SGD.
Shapes: P parameters, N examples, K eigenvalues.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hesse.curvature._checkpoint import Folder
from hesse.curvature.batches import BatchStream, as_batches
from hesse.curvature.block_traces import block_traces
from hesse.curvature.hessian import CurvatureOperator, Function
from hesse.curvature.learning_rate import critical_batch_size, max_learning_rate
from hesse.curvature.mean_loss import mean_loss
from hesse.curvature.noise import CurvatureNoise, curvature_noise
from hesse.curvature.of_loss import Matrix, loss_curvature
from hesse.curvature.spectrum import eigenvalue_density, top_eigenpairs
from hesse.curvature.stability import LinearisedLoss, StabilityReport, stability_report
from hesse.errors import ArgumentError, ArgumentTypeError, MemoryLimitError
from hesse.linalg._arguments import at_least
from hesse.linalg.eigen.slq import SpectralDensity

__all__ = ["CurvatureReport", "LayerCurvature", "RateLimit", "curvature_report"]

_NOISE_DIRECTIONS = 4
_STABILITY_WORK = 1e8  # multiplications to one product with the second-moment operator, of which it takes hundreds


@dataclass(frozen=True, slots=True)
class LayerCurvature:
    """The diagonal block of one layer: parameters whose names differ in their last part only."""

    name: str
    num_parameters: int
    trace: float
    trace_error: float  # one standard error, over the probes
    largest: float | None  # eigenvalue of largest magnitude of the block; None where it was not asked for


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The largest learning rate of SGD that does not blow up along the leading eigenvector."""

    batch_size: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class CurvatureReport:
    """What `curvature_report` measured; ``print`` it for a summary, `to_dict` for JSON."""

    matrix: Matrix
    num_parameters: int
    num_examples: int
    loss: float
    gradient_norm: float
    eigenvalues: Tensor  # (K,), of largest magnitude, falling
    residuals: Tensor  # (K,), an eigenvalue lies within this distance
    converged: bool
    trace: float
    trace_error: float
    density: SpectralDensity
    layers: tuple[LayerCurvature, ...]
    noise: CurvatureNoise | None  # None where it was not asked for, of one example, or without positive curvature
    critical_batch: float | None
    rates: tuple[RateLimit, ...]
    lr: float | None
    batch_size: int
    momentum: float
    stability: StabilityReport | None
    stability_note: str  # why there is none, or how to read it

    @property
    def sharpness(self) -> float:
        """λ₁, the largest eigenvalue, in units of the loss per squared unit of a parameter."""
        return float(self.eigenvalues.max())

    @property
    def stable_at_edge(self) -> bool | None:
        """Whether full-batch gradient descent is stable along the leading eigenvector, η λ₁ <= 2 (1 + β)."""
        return None if self.lr is None else self.lr * self.sharpness <= 2 * (1 + self.momentum)

    def to_dict(self) -> dict[str, Any]:
        """Turn it into JSON values: numbers, texts, lists; what is not finite becomes None.

        Returns
        -------
        dict
            Eigenvectors are left out.
        """
        density = self.density
        noise = self.noise
        found: dict[str, Any] = {
            "matrix": self.matrix,
            "num_parameters": self.num_parameters,
            "num_examples": self.num_examples,
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "sharpness": self.sharpness,
            "eigenvalues": self.eigenvalues.tolist(),
            "residuals": self.residuals.tolist(),
            "converged": self.converged,
            "trace": {"value": self.trace, "standard_error": self.trace_error},
            "density": {
                "eigenvalue": density.grid.tolist(),
                "density": density.density.tolist(),
                "standard_error": density.standard_error.tolist(),
                "smallest": float(density.smallest),
                "largest": float(density.largest),
            },
            "layers": [asdict(layer) for layer in self.layers],
            "noise": None
            if noise is None
            else {
                "directional_variance": noise.directional.tolist(),
                "standard_error": noise.directional_error.tolist(),
                "num_samples": noise.num_samples,
            },
            "critical_batch_size": self.critical_batch,
            "learning_rates": [asdict(rate) for rate in self.rates],
            "lr": self.lr,
            "batch_size": self.batch_size,
            "momentum": self.momentum,
            "stable_gradient_descent": self.stable_at_edge,
            "stability": None if self.stability is None else _plain(self.stability),
            "stability_note": self.stability_note,
        }
        return _finite(found)

    def __str__(self) -> str:
        lines = [
            f"{self.matrix}, {self.num_parameters:,} parameters, {self.num_examples:,} examples",
            f"  loss            {self.loss:.6g}, gradient norm {self.gradient_norm:.3g}",
            f"  sharpness       {self.sharpness:.6g}{'' if self.converged else '  (not converged)'}",
            f"  eigenvalues     {', '.join(f'{float(v):.4g}' for v in self.eigenvalues)}",
            f"  trace           {self.trace:.5g} ± {self.trace_error:.2g}",
            f"  spectrum        {float(self.density.smallest):.4g} to {float(self.density.largest):.4g}",
        ]
        if self.critical_batch is not None:
            lines.append(f"  critical batch  {self.critical_batch:.4g} examples")
        lines += [f"  batch {rate.batch_size:<9,} learning rate below {rate.learning_rate:.4g}" for rate in self.rates]
        if self.lr is not None:
            word = "stable" if self.stable_at_edge else "unstable"
            product = self.lr * self.sharpness
            lines.append(f"  full batch      {word} at learning rate {self.lr:g}: η λ₁ = {product:.4g}")
        width = max((len(layer.name) for layer in self.layers), default=5)
        if self.layers:
            lines.append(f"  {'layer':<{width}}  parameters       trace         error     largest")
        for layer in self.layers:
            largest = "" if layer.largest is None else f"{layer.largest:12.4g}"
            count = f"{layer.num_parameters:>10,}"
            lines.append(f"  {layer.name:<{width}}  {count}{layer.trace:12.4g}{layer.trace_error:14.2g}{largest}")
        if self.stability is not None:
            lines.append(str(self.stability))
        if self.stability_note:
            lines.append(f"  note: {self.stability_note}")
        return "\n".join(lines)


def curvature_report(
    loss_fn: Function,
    model: nn.Module,
    data: Any,
    *,
    matrix: Matrix = "hessian",
    names: Iterable[str] | None = None,
    num_eigenvalues: int = 10,
    num_probes: int = 32,
    density_probes: int = 4,
    density_steps: int = 60,
    num_samples: int = 400,
    layer_eigenvalues: bool = True,
    lr: float | None = None,
    batch_size: int = 32,
    momentum: float = 0.0,
    stability_loss: LinearisedLoss | None = None,
    tol: float = 1e-4,
    seed: int = 0,
    run: Folder | None = None,
    show_progress: bool | None = None,
) -> CurvatureReport:
    """Measure spectrum, trace, layers, noise between examples, learning rates and stability at the present point.

    Parameters
    ----------
    loss_fn : callable
        (model, batch) -> scalar, the mean loss over the examples of the batch.
    model : nn.Module
        In evaluation mode. Its parameters that require a gradient are the coordinates.
    data : batch, list of batches, or DataLoader that does not shuffle
        All N examples. A loader is streamed, never held.
    matrix : {"hessian", "ggn"}, default "hessian"
        "ggn" for the Gauss-Newton matrix, the better choice with ReLU; see `loss_curvature`.
    names : iterable of str, optional
        Only these parameters. Default: all.
    num_eigenvalues : int, default 10
        K, of largest magnitude; at most P.
    num_probes : int, default 32
        Products behind the traces, of the whole and of every layer, see `block_traces`.
    density_probes, density_steps : int, default 4 and 60
        Of the stochastic Lanczos quadrature, see `eigenvalue_density`.
    num_samples : int, default 400
        Examples whose own curvature is measured along the leading eigenvectors, for the noise. 0: none, and no learning
        rates for mini-batches.
    layer_eigenvalues : bool, default True
        Find the largest eigenvalue of every layer's block too, some tens of products a layer.
    lr : float, optional
        The learning rate that the model is trained with, to be judged.
    batch_size : int, default 32
        B that it is trained with.
    momentum : float, default 0.0
        Of torch's SGD, 0 <= β < 1.
    stability_loss : {"mse", "half_mse", "cross_entropy"}, optional
        Say that ``loss_fn`` is this loss of model(inputs) and the batches are (inputs, targets): with ``lr`` the report
        then holds a `stability_report`, if its per-sample gradients fit in memory.
    tol : float, default 1e-4
        Of the eigenpairs, relative to the largest.
    seed : int, default 0
        Of all that is drawn.
    run : str or PathLike, optional
        Folder to save the steps of eigenpairs and density to, the longest parts; the same call after a crash goes on
        there. Default: nothing is saved.
    show_progress : bool, optional
        Default: whether stderr is a terminal.

    Returns
    -------
    CurvatureReport
        Traces, density and noise are estimates, with standard errors; eigenvalues are within their residuals.

    Raises
    ------
    ArgumentError
        If an option is out of range, the loader shuffles, or ``loss_fn`` does not average over examples.
    ArgumentTypeError
        If ``model`` is not a module.
    NumericalError
        If a product has NaN or Inf.

    Notes
    -----
    About 5 K + ``num_probes`` + ``density_probes`` · ``density_steps`` products with the whole data, tens more a layer,
    and some tens with each of ``num_samples`` examples. Memory: 2 K + 1 vectors of P float64, or ``density_probes`` ·
    ``density_steps`` if that is more.
    """
    call = "curvature_report"
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"{call}: expected a module, got {type(model).__name__}")
    for option, value, low in (
        ("num_eigenvalues", num_eigenvalues, 1),
        ("num_probes", num_probes, 2),
        ("num_samples", num_samples, 0),
        ("batch_size", batch_size, 1),
    ):
        at_least(call, option, value, low)
    if not 0 <= momentum < 1:
        raise ArgumentError(f"{call}: expected 0 <= momentum < 1, got {momentum}")
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise ArgumentError(f"{call}: expected a finite lr > 0, got {lr}")
    names = None if names is None else list(names)
    batches = as_batches(call, data)
    operator = loss_curvature(loss_fn, model, batches, matrix=matrix, names=names, reduction="weighted_mean")
    mean = mean_loss(loss_fn, model, batches, names=names)
    examples = mean.num_examples

    def part(name: str) -> Path | None:
        return None if run is None else Path(run) / name

    def seeded(offset: int) -> Generator:
        return torch.Generator().manual_seed(seed + offset)  # on the CPU: the same numbers on every device

    pairs = top_eigenpairs(
        operator,
        min(num_eigenvalues, operator.shape[0]),
        tol=tol,
        generator=seeded(0),
        run=part("eigenpairs"),
        show_progress=show_progress,
    )
    density = eigenvalue_density(
        operator,
        num_probes=density_probes,
        num_steps=density_steps,
        generator=seeded(1),
        run=part("density"),
        show_progress=show_progress,
    )
    blocks = operator.per_layer()
    traces = block_traces(
        operator,
        {name: block.layout.names for name, block in blocks.items()},
        num_probes=num_probes,
        rtol=0,
        generator=seeded(2),
        show_progress=show_progress,
    )
    largest = _layer_eigenvalues(blocks, tol, seeded(3)) if layer_eigenvalues else {}
    layers = tuple(
        LayerCurvature(name, blocks[name].shape[0], float(trace), float(error), largest.get(name))
        for name, trace, error in zip(traces.names, traces.trace, traces.standard_error, strict=True)
    )
    falling = pairs.eigenvalues.argsort(descending=True)
    values = pairs.eigenvalues[falling].cpu()
    noise = None
    if num_samples > 1 and examples > 1 and float(values[0]) > 0:
        leading = pairs.eigenvectors[:, falling[: min(_NOISE_DIRECTIONS, int((values > 0).sum()))]]
        noise = curvature_noise(
            loss_fn,
            model,
            batches,
            matrix=matrix,
            directions=leading.double(),
            num_samples=num_samples,
            edge_steps=0,
            names=names,
            generator=seeded(4),
        )
    rates, critical = _rates(noise, examples, batch_size, momentum)
    stability, note = _stability(model, batches, lr, batch_size, momentum, stability_loss, examples, seed)
    return CurvatureReport(
        matrix=matrix,
        num_parameters=operator.shape[0],
        num_examples=examples,
        loss=mean.value,
        gradient_norm=float(torch.linalg.vector_norm(mean.gradient)),
        eigenvalues=values,
        residuals=pairs.residuals[falling].cpu(),
        converged=pairs.converged,
        trace=traces.total,
        trace_error=traces.total_error,
        density=density,
        layers=layers,
        noise=noise,
        critical_batch=critical,
        rates=rates,
        lr=lr,
        batch_size=batch_size,
        momentum=momentum,
        stability=stability,
        stability_note=note,
    )


def _layer_eigenvalues(blocks: Mapping[str, CurvatureOperator], tol: float, generator: Generator) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, block in blocks.items():
        values = top_eigenpairs(block, 1, tol=max(tol, 1e-3), generator=generator, show_progress=False).eigenvalues
        found[name] = float(values[0])
    return found


def _rates(
    noise: CurvatureNoise | None, examples: int, batch_size: int, momentum: float
) -> tuple[tuple[RateLimit, ...], float | None]:
    if noise is None:
        return (), None
    sizes = sorted({min(batch_size, examples), examples, *(4**i for i in range(12) if 4**i < examples)})
    limits = max_learning_rate(noise, torch.tensor(sizes), momentum=momentum)
    critical = float(critical_batch_size(noise, momentum=momentum))
    return tuple(RateLimit(size, float(limit)) for size, limit in zip(sizes, limits, strict=True)), critical


def _stability(
    model: nn.Module,
    batches: list[Any] | BatchStream,
    lr: float | None,
    batch_size: int,
    momentum: float,
    loss: LinearisedLoss | None,
    examples: int,
    seed: int,
) -> tuple[StabilityReport | None, str]:
    if lr is None:
        return None, "no learning rate was given to judge"
    if loss is None:
        return None, "stability under SGD needs stability_loss: squared error or cross-entropy of model(inputs)"
    with torch.no_grad():
        outputs = examples * model(next(iter(batches))[0])[:1].numel()
    rank = min(outputs, sum(p.numel() for p in model.parameters() if p.requires_grad))
    if outputs * rank**2 > _STABILITY_WORK:
        return None, (
            f"stability under SGD was left out: {outputs:,} outputs of rank up to {rank:,} would take long; "
            "give a part of the examples, or freeze layers"
        )
    with warnings.catch_warnings(record=True) as said:  # they go into the note, where the reader of the report is
        warnings.simplefilter("always")
        try:
            found = stability_report(
                model,
                batches,
                lr,
                min(batch_size, examples),
                loss=loss,
                momentum=momentum,
                generator=torch.Generator().manual_seed(seed + 5),
            )
        except MemoryLimitError as error:
            return None, f"stability under SGD was left out: {error}"
    return found, "; ".join(str(warning.message) for warning in said)


def _plain(report: StabilityReport) -> dict[str, Any]:
    found = asdict(report)
    found["layer_traces"] = dict(report.layer_traces)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
