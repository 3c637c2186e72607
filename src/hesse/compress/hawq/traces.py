"""Hessian trace of every layer's weights, by `hesse.curvature.block_traces`.   Shapes: L layers, P weights in all."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hesse.compress.hawq.layers import quantizable_weights
from hesse.curvature.batches import as_batches
from hesse.curvature.block_traces import TraceProbing, block_traces
from hesse.curvature.hessian import Function
from hesse.curvature.mean_loss import mean_loss
from hesse.curvature.of_loss import Matrix, loss_curvature

__all__ = ["LayerTraces", "TraceProbing", "layer_traces"]


@dataclass(frozen=True, slots=True)
class LayerTraces:
    """Traces of the diagonal blocks, with the spread that sampling left in them.   Shapes: L blocks."""

    names: tuple[str, ...]
    numel: tuple[int, ...]  # entries of each block
    trace: Tensor  # (L,), float64, on the CPU; may be negative for a Hessian
    standard_error: Tensor  # (L,)
    num_probes: tuple[int, ...]  # products that went into each
    gradient_norm: Tensor  # (L,), of the loss itself: near zero at a minimum

    @property
    def average(self) -> Tensor:
        """Trace over entries, shape (L,): what HAWQ-V2 ranks layers by."""
        return self.trace / torch.tensor(self.numel, dtype=torch.float64)

    def unsettled(self, rtol: float = 0.05) -> tuple[str, ...]:
        """Name the blocks whose standard error is above a share of the trace.

        Parameters
        ----------
        rtol : float, default 0.05
            The share.

        Returns
        -------
        tuple of str
            Empty if all are known well enough.
        """
        loose = self.standard_error > rtol * self.trace.abs()
        return tuple(name for name, is_loose in zip(self.names, loose.tolist(), strict=True) if is_loose)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a block, ready for a table (`pandas.DataFrame` takes the list).

        Returns
        -------
        list of dict
            name, numel, trace, average, standard_error, num_probes, gradient_norm.
        """
        columns = zip(
            self.names,
            self.numel,
            self.trace.tolist(),
            self.average.tolist(),
            self.standard_error.tolist(),
            self.num_probes,
            self.gradient_norm.tolist(),
            strict=True,
        )
        keys = ("name", "numel", "trace", "average", "standard_error", "num_probes", "gradient_norm")
        return [dict(zip(keys, values, strict=True)) for values in columns]


def layer_traces(
    module: nn.Module,
    loss_fn: Function,
    batches: Any,
    *,
    layers: Iterable[str] | None = None,
    num_probes: int = 50,
    rtol: float = 0.05,
    num_own_probes: int = 50,
    matrix: Matrix = "hessian",
    probing: TraceProbing = "auto",
    chunk_size: int = 5,
    keep_graph: bool = False,
    generator: Generator | None = None,
    show_progress: bool | None = None,
) -> LayerTraces:
    """Estimate Tr(H_i) of every quantisable weight W_i, H_i = ∂²L/∂W_i².

    All layers share their products with the whole matrix; see `hesse.curvature.block_traces`.

    Parameters
    ----------
    module : nn.Module
        The trained model, in eval mode where that matters (dropout, batch norm).
    loss_fn : callable
        (model, batch) -> scalar, the mean over the examples.
    batches : object, list, DataLoader or BatchStream
        Calibration data; 512 examples are usual. Batches of unequal size are weighted by their examples.
    layers : iterable of str, optional
        As in `quantizable_weights`. Default: all.
    num_probes : int, default 50
        K >= 2 products with the whole matrix at most; at least 6 for "hutch++".
    rtol : float, default 0.05
        Stop when every standard error is below this share of its trace, looked at from 10 probes on. 5 % is far finer
        than the factors that traces of layers differ by.
    num_own_probes : int, default 50
        Products with single blocks at most, handed ten at a time to the layer that is least certain, while any misses
        ``rtol``. With the default the work at most doubles. 0: none.
    matrix : {"hessian", "ggn"}, default "hessian"
        "ggn" is positive semi-definite for convex losses, so that no trace is negative (an estimate from few common
        probes may be), and takes less time and memory; it is the Hessian without the curvature of the network itself.
    probing : {"auto", "common", "hutch++"}, default "auto"
        How the products are spent, see `hesse.curvature.block_traces`. "hutch++" finds the few directions of large
        curvature first: on networks for digits the standard error falls ten-fold.
    chunk_size : int, default 5
        Probes to a vectorised pass; memory grows with it. 1 for large models.
    keep_graph : bool, default False
        As in `CurvatureOperator`: faster, in the memory of the graph of every batch.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.
    show_progress : bool, optional
        Default: whether stderr is a terminal.

    Returns
    -------
    LayerTraces
        In the units of the loss per squared unit of the weights. Unbiased for a fixed number of probes; stopping by
        ``rtol`` biases by less than a standard error.

    Raises
    ------
    ArgumentError
        If a number is out of range, a layer is unknown or does not require a gradient, or a layer in training mode
        would draw random numbers.
    NumericalError
        If a product holds NaN or Inf.

    Notes
    -----
    A product costs about three gradients over the data. The signs take P numbers a probe.

    References
    ----------
    Z. Dong, Z. Yao, Y. Cai, D. Arfeen, A. Gholami, M. W. Mahoney, K. Keutzer (2020), NeurIPS, arXiv 1911.03852.
    """
    weights = quantizable_weights(module, layers)
    names = tuple(weight.name for weight in weights)
    held = as_batches("layer_traces", batches)
    operator = loss_curvature(
        loss_fn,
        module,
        held,
        matrix=matrix,
        names=names,
        reduction="weighted_mean",
        block_size=chunk_size,
        keep_graph=keep_graph,
    )
    found = block_traces(
        operator,
        {name: [name] for name in names},
        num_probes=num_probes,
        rtol=rtol,
        num_own_probes=num_own_probes,
        probing=probing,
        chunk_size=chunk_size,
        generator=generator,
        show_progress=show_progress,
    )
    mean = mean_loss(loss_fn, module, held, names=names)
    return LayerTraces(
        names,
        tuple(weight.numel for weight in weights),
        found.trace,
        found.standard_error,
        found.num_probes,
        torch.tensor([float(mean.gradient[mean.layout.slice(name)].norm()) for name in names], dtype=torch.float64),
    )
