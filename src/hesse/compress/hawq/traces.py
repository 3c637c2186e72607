"""Hessian trace of every layer's weights, all layers from the same products with the whole matrix.

    Tr(H_i) = E z_iᵀ (H z)_i        for random signs z over all weights, z_i those of layer i

Shapes: L layers, K probes, P weights in all.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from hesse._progress import Advance, progress
from hesse.compress.hawq.layers import quantizable_weights
from hesse.curvature.batches import as_batches, batch_size, to_device
from hesse.curvature.hessian import CurvatureOperator, Function
from hesse.curvature.of_loss import Matrix, loss_curvature
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least
from hesse.linalg._random import sign_columns

__all__ = ["LayerTraces", "TraceProbing", "layer_traces"]

TraceProbing = Literal["auto", "common", "hutch++"]
_FIRST_LOOK = 10  # probes before a standard error is believed, as elsewhere in hesse
_OWN_CHUNK = 10
_DEFLATION_PROBES, _DEFLATION_NUMBERS = 6, 1e8


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

    One sign vector over all weights gives a sample for every layer: the cross terms z_iᵀ H_ij z_j have mean zero. They
    add variance, ‖H_ij‖² for every other layer j, so that a layer that stays uncertain gets probes of its own, zero
    outside it. Better still, where memory allows it, the few directions of large curvature are taken out first
    (``probing``).

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
        "common": the signs above. "hutch++" spends a third of the products each on finding the directions Q of large
        curvature, on H Q, which gives their share of every layer's trace exactly, and on probes of the rest. Curvature
        of networks lies mostly in few directions, so that the standard error falls several-fold (ten-fold on networks
        for digits). It keeps 2 K P / 3 doubles, and gives no own probes. If K >= P the diagonal is read off exactly,
        with P products. "auto": "hutch++" up to K P = 1e8, for which that is half a gigabyte, and where K >= 6; else
        "common".
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
    call = "layer_traces"
    at_least(call, "num_probes", num_probes, _DEFLATION_PROBES if probing == "hutch++" else 2)
    at_least(call, "rtol", rtol, 0)
    at_least(call, "num_own_probes", num_own_probes, 0)
    at_least(call, "chunk_size", chunk_size, 1)
    if probing not in ("auto", "common", "hutch++"):
        raise ArgumentError(f"{call}: probing must be 'auto', 'common' or 'hutch++', got {probing!r}")
    weights = quantizable_weights(module, layers)
    if probing == "auto":
        is_small = num_probes * sum(weight.numel for weight in weights) <= _DEFLATION_NUMBERS
        probing = "hutch++" if is_small and num_probes >= _DEFLATION_PROBES else "common"
    names = tuple(weight.name for weight in weights)
    held = as_batches(call, batches)
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
    gradient_norm = _gradient_norms(module, loss_fn, held, names)
    with torch.no_grad(), progress("layer traces", num_probes, unit="products", enabled=show_progress) as advance:
        if probing == "hutch++":
            moments = _deflated(operator, num_probes, rtol, chunk_size, generator, advance)
        else:
            draw = _Draw(operator, chunk_size, generator, advance)
            samples_KL = _until_settled(lambda signs: _samples(operator, signs), draw, num_probes, rtol)
            moments = _refined(operator, samples_KL, num_own_probes, rtol, chunk_size, generator)
    return LayerTraces(
        names,
        tuple(weight.numel for weight in weights),
        torch.tensor([m.mean for m in moments], dtype=torch.float64),
        torch.tensor([m.standard_error for m in moments], dtype=torch.float64),
        tuple(m.count for m in moments),
        gradient_norm,
    )


@dataclass(frozen=True, slots=True)
class _Moments:
    mean: float
    standard_error: float
    count: int

    def misses(self, rtol: float) -> bool:
        return self.standard_error > rtol * abs(self.mean)

    def relative_error(self) -> float:
        return self.standard_error / abs(self.mean) if self.mean else math.inf if self.standard_error else 0.0


def _moments_of(samples: Sequence[float] | Tensor) -> _Moments:
    values = torch.as_tensor(samples, dtype=torch.float64)
    spread = float(values.std()) if len(values) > 1 else math.inf
    return _Moments(float(values.mean()), spread / len(values) ** 0.5, len(values))


def _pooled(common: _Moments, own: _Moments) -> _Moments:
    # weighted by number, not by estimated certainty: of few samples the spread is often found too small by chance, and
    # the reported error then falls short by a fifth, for no gain in the real one
    count = common.count + own.count
    mean = (common.mean * common.count + own.mean * own.count) / count
    error = math.hypot(common.standard_error * common.count, own.standard_error * own.count) / count
    return _Moments(mean, error, count)


@dataclass(frozen=True, slots=True)
class _Draw:
    """Sign vectors for an operator, a chunk at a time."""

    operator: CurvatureOperator
    chunk_size: int
    generator: Generator | None
    advance: Advance

    def chunks(self, total: int) -> Iterator[Tensor]:
        operator = self.operator
        for width in _widths(total, self.chunk_size):
            yield sign_columns(
                operator.shape[0], width, dtype=operator.dtype, device=operator.device, generator=self.generator
            )
            self.advance(width)


def _until_settled(sample: Callable[[Tensor], Tensor], draw: _Draw, num_probes: int, rtol: float) -> Tensor:
    blocks: list[Tensor] = []  # each (k, L)
    for signs_PK in draw.chunks(num_probes):
        blocks.append(sample(signs_PK))
        drawn = sum(map(len, blocks))
        if drawn >= _FIRST_LOOK:
            values_KL = torch.cat(blocks)
            if bool((values_KL.std(0) / drawn**0.5 <= rtol * values_KL.mean(0).abs()).all()):
                break
    return torch.cat(blocks)


def _deflated(
    operator: CurvatureOperator,
    num_products: int,
    rtol: float,
    chunk_size: int,
    generator: Generator | None,
    advance: Advance,
) -> list[_Moments]:
    # with the projector P = QQᵀ: H = PH + (I - P)HP + (I - P)H(I - P). The diagonals of the first two follow from HQ,
    # only the last is sampled
    n, k = operator.shape[0], num_products // 3
    draw = _Draw(operator, chunk_size, generator, advance)
    if num_products >= n:
        eye = torch.eye(n, dtype=operator.dtype, device=operator.device)
        diagonal = torch.cat([_product(operator, e).diagonal(-start) for start, e in _columns(eye, chunk_size)])
        exact = _layer_sums(operator, diagonal.unsqueeze(1))[0]
        return [_Moments(value, 0.0, n) for value in exact.tolist()]
    Q = torch.linalg.qr(torch.cat([_product(operator, signs) for signs in draw.chunks(k)], dim=1)).Q
    HQ = torch.cat([_product(operator, q) for _, q in _columns(Q, chunk_size)], dim=1)
    advance(k)
    shares = (Q * HQ).sum(1) + (Q * (HQ - Q @ (Q.mT @ HQ))).sum(1)
    known_L = _layer_sums(operator, shares.unsqueeze(1))[0]

    def rest(signs: Tensor) -> Tensor:
        wide = signs.double()
        products = _product(operator, wide - Q @ (Q.mT @ wide))
        return _layer_sums(operator, wide * (products - Q @ (Q.mT @ products)))

    samples_KL = _until_settled(rest, draw, num_products - 2 * k, rtol)
    found = [_moments_of(samples_KL[:, i]) for i in range(samples_KL.shape[1])]
    return [
        _Moments(known + m.mean, m.standard_error, m.count + 2 * k)
        for known, m in zip(known_L.tolist(), found, strict=True)
    ]


def _columns(block: Tensor, chunk_size: int) -> Iterator[tuple[int, Tensor]]:
    return ((start, block[:, start : start + chunk_size]) for start in range(0, block.shape[1], chunk_size))


def _product(operator: CurvatureOperator, columns: Tensor) -> Tensor:
    # (P, K) in double precision, whatever the operator's
    found = operator.matmat(columns.to(operator.dtype)).double()
    if not bool(found.isfinite().all()):
        raise NumericalError(
            "layer_traces: a product with the curvature holds NaN or Inf; look at the loss and the data"
        )
    return found


def _layer_sums(operator: CurvatureOperator, terms_PK: Tensor) -> Tensor:
    layout = operator.layout
    return torch.stack([terms_PK[layout.slice(name)].sum(0) for name in layout.names], dim=1).cpu()


def _samples(operator: CurvatureOperator, signs_PK: Tensor) -> Tensor:
    # (K, L): zᵀ(Hz) summed over each layer apart
    return _layer_sums(operator, signs_PK.double() * _product(operator, signs_PK))


def _refined(
    operator: CurvatureOperator,
    samples_KL: Tensor,
    budget: int,
    rtol: float,
    chunk_size: int,
    generator: Generator | None,
) -> list[_Moments]:
    names = operator.layout.names
    common = [_moments_of(samples_KL[:, i]) for i in range(len(names))]
    moments, own = list(common), [[] for _ in names]
    while budget >= _OWN_CHUNK:
        worst = max(range(len(names)), key=lambda i: moments[i].relative_error())
        if not moments[worst].misses(rtol):
            break
        block = operator.block([names[worst]])
        for signs in _Draw(block, chunk_size, generator, lambda _count: None).chunks(_OWN_CHUNK):
            own[worst] += _samples(block, signs).flatten().tolist()
        budget -= _OWN_CHUNK
        moments[worst] = _pooled(common[worst], _moments_of(own[worst]))
    return moments


def _widths(total: int, chunk_size: int) -> list[int]:
    return [min(chunk_size, total - start) for start in range(0, total, chunk_size)]


def _gradient_norms(module: nn.Module, loss_fn: Function, batches: Iterable[Any], names: Sequence[str]) -> Tensor:
    parameters = dict(module.named_parameters())
    chosen = [parameters[name] for name in names]
    totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in chosen]
    examples = 0
    for batch in batches:
        here = to_device(batch, chosen[0].device)
        with torch.enable_grad():
            loss = loss_fn(module, here)
            gradients = torch.autograd.grad(loss, chosen, allow_unused=True, materialize_grads=True)
        weight = batch_size(here)
        examples += weight
        for total, gradient in zip(totals, gradients, strict=True):
            total.add_(gradient, alpha=weight)
    return torch.tensor([float(total.norm()) / examples for total in totals], dtype=torch.float64)
