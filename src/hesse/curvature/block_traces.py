"""Traces of the diagonal blocks of a curvature matrix, all blocks from the same products with the whole of it.

    Tr(H_i) = E z_iᵀ (H z)_i        for random signs z over all parameters, z_i those of block i

Shapes: L blocks, K probes, P parameters in all.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse._progress import Advance, progress
from hesse.curvature._resumable import Moments
from hesse.curvature.hessian import CurvatureOperator
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least
from hesse.linalg._random import sign_columns

__all__ = ["BlockTraces", "TraceProbing", "block_traces"]

TraceProbing = Literal["auto", "common", "hutch++"]
_FIRST_LOOK = 10  # probes before a standard error is believed, as elsewhere in hesse
_OWN_CHUNK = 10
_DEFLATION_PROBES, _DEFLATION_NUMBERS = 6, 1e8


@dataclass(frozen=True, slots=True)
class BlockTraces:
    """Traces, with the spread that sampling left in them."""

    names: tuple[str, ...]
    trace: Tensor  # (L,), float64, on the CPU; may be negative for a Hessian
    standard_error: Tensor  # (L,)
    num_probes: tuple[int, ...]  # products that went into each
    total: float  # trace of the whole matrix
    total_error: float  # its standard error; the blocks' samples are not independent of each other


def block_traces(
    operator: CurvatureOperator,
    blocks: Mapping[str, Sequence[str]] | None = None,
    *,
    num_probes: int = 50,
    rtol: float = 0.05,
    num_own_probes: int = 0,
    probing: TraceProbing = "auto",
    chunk_size: int = 5,
    generator: Generator | None = None,
    show_progress: bool | None = None,
) -> BlockTraces:
    """Estimate the trace of every block.

    One sign vector over all parameters gives a sample for every block: the cross terms z_iᵀ H_ij z_j have mean zero.
    They add variance, ‖H_ij‖² for every other block j, so that a block that stays uncertain gets probes of its own,
    zero outside it. Better still, where memory allows it, the few directions of large curvature are taken out first
    (``probing``).

    Parameters
    ----------
    operator : CurvatureOperator, shape (P, P)
        H.
    blocks : mapping of str to sequence of str, optional
        Names of blocks, and the parameters of each; every parameter of the operator in one block. Default: a block a
        parameter.
    num_probes : int, default 50
        K >= 2 products with the whole matrix at most; at least 6 for "hutch++".
    rtol : float, default 0.05
        Stop when every standard error is below this share of its trace, looked at from 10 probes on. 0: use all.
    num_own_probes : int, default 0
        Products with single blocks at most, handed ten at a time to the block that is least certain, while any misses
        ``rtol``. They sharpen the blocks, not the total.
    probing : {"auto", "common", "hutch++"}, default "auto"
        "common": the signs above. "hutch++" spends a third of the products each on finding the directions Q of large
        curvature, on H Q, which gives their share of every block's trace exactly, and on probes of the rest. Curvature
        of networks lies mostly in few directions, so that the standard error falls several-fold. It keeps 2 K P / 3
        doubles, and gives no own probes. If K >= P the diagonal is read off exactly, with P products. "auto": "hutch++"
        up to K P = 1e8, for which that is half a gigabyte, and where K >= 6; else "common".
    chunk_size : int, default 5
        Probes to a product.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.
    show_progress : bool, optional
        Default: whether stderr is a terminal.

    Returns
    -------
    BlockTraces
        Unbiased for a fixed number of probes; stopping by ``rtol`` biases by less than a standard error.

    Raises
    ------
    ArgumentError
        If a number is out of range, or the blocks do not cover the parameters once.
    NumericalError
        If a product holds NaN or Inf.

    References
    ----------
    R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff (2021), SOSA, arXiv 2010.09649, for the split in thirds.
    """
    call = "block_traces"
    at_least(call, "num_probes", num_probes, _DEFLATION_PROBES if probing == "hutch++" else 2)
    at_least(call, "rtol", rtol, 0)
    at_least(call, "num_own_probes", num_own_probes, 0)
    at_least(call, "chunk_size", chunk_size, 1)
    if probing not in ("auto", "common", "hutch++"):
        raise ArgumentError(f"{call}: probing must be 'auto', 'common' or 'hutch++', got {probing!r}")
    layout = operator.layout
    named = {name: [name] for name in layout.names} if blocks is None else {k: list(v) for k, v in blocks.items()}
    if sorted(name for names in named.values() for name in names) != sorted(layout.names):
        raise ArgumentError(f"{call}: blocks must hold every parameter of the operator once, got {named}")
    if probing == "auto":
        is_small = num_probes * layout.size <= _DEFLATION_NUMBERS
        probing = "hutch++" if is_small and num_probes >= _DEFLATION_PROBES else "common"
    sampler = _Sampler(operator, named, chunk_size, generator)
    with torch.no_grad(), progress("block traces", num_probes, unit="products", enabled=show_progress) as advance:
        if probing == "hutch++":
            means, errors, counts = sampler.deflated(num_probes, rtol, advance)
        else:
            moments = sampler.until_settled(sampler.samples, num_probes, rtol, advance)
            means, errors = moments.mean, moments.standard_error()
            counts = [moments.count] * (len(named) + 1)
        total = float(means[-1]), float(errors[-1])
        if probing == "common":
            means, errors, counts = sampler.refined(means, errors, counts, num_own_probes, rtol)
    return BlockTraces(tuple(named), means[:-1], errors[:-1], tuple(counts[:-1]), *total)


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Draws signs and sums their products by block; the whole matrix is the last row of everything."""

    operator: CurvatureOperator
    blocks: Mapping[str, Sequence[str]]
    chunk_size: int
    generator: Generator | None

    def signs(self, total: int, advance: Advance, operator: CurvatureOperator | None = None) -> Iterator[Tensor]:
        of = self.operator if operator is None else operator
        for start in range(0, total, self.chunk_size):
            width = min(self.chunk_size, total - start)
            yield sign_columns(of.shape[0], width, dtype=of.dtype, device=of.device, generator=self.generator)
            advance(width)

    def samples(self, signs_PK: Tensor) -> Tensor:
        return self.sums(signs_PK.double() * _product(self.operator, signs_PK))

    def sums(self, terms_PK: Tensor) -> Tensor:
        layout = self.operator.layout
        of_blocks = torch.stack(
            [torch.stack([terms_PK[layout.slice(n)].sum(0) for n in names]).sum(0) for names in self.blocks.values()]
        )
        return torch.cat([of_blocks, of_blocks.sum(0, keepdim=True)]).cpu()

    def until_settled(
        self, sample: Callable[[Tensor], Tensor], num_probes: int, rtol: float, advance: Advance
    ) -> Moments:
        zero = torch.zeros(len(self.blocks) + 1, dtype=torch.float64)
        moments = Moments(zero, zero, 0)
        for signs_PK in self.signs(num_probes, advance):
            moments.add(sample(signs_PK))
            if moments.count >= _FIRST_LOOK and bool(
                (moments.standard_error()[:-1] <= rtol * moments.mean[:-1].abs()).all()
            ):
                break
        return moments

    def deflated(self, num_products: int, rtol: float, advance: Advance) -> tuple[Tensor, Tensor, list[int]]:
        # with the projector P = QQᵀ: H = PH + (I - P)HP + (I - P)H(I - P). The diagonals of the first two follow from
        # HQ, only the last is sampled
        operator = self.operator
        n, k = operator.shape[0], num_products // 3
        if num_products >= n:
            eye = torch.eye(n, dtype=operator.dtype, device=operator.device)
            diagonal = torch.cat([_product(operator, e).diagonal(-start) for start, e in self._columns(eye)])
            exact = self.sums(diagonal.unsqueeze(1))[:, 0]
            return exact, torch.zeros_like(exact), [n] * len(exact)
        Q = torch.linalg.qr(torch.cat([_product(operator, signs) for signs in self.signs(k, advance)], dim=1)).Q
        HQ = torch.cat([_product(operator, q) for _, q in self._columns(Q)], dim=1)
        advance(k)
        shares = (Q * HQ).sum(1) + (Q * (HQ - Q @ (Q.mT @ HQ))).sum(1)
        known = self.sums(shares.unsqueeze(1))[:, 0]

        def rest(signs: Tensor) -> Tensor:
            wide = signs.double()
            products = _product(operator, wide - Q @ (Q.mT @ wide))
            return self.sums(wide * (products - Q @ (Q.mT @ products)))

        moments = self.until_settled(rest, num_products - 2 * k, rtol, advance)
        return known + moments.mean, moments.standard_error(), [moments.count + 2 * k] * len(known)

    def refined(
        self, means: Tensor, errors: Tensor, counts: list[int], budget: int, rtol: float
    ) -> tuple[Tensor, Tensor, list[int]]:
        means, errors, counts = means.clone(), errors.clone(), list(counts)
        common = means.clone(), errors.clone(), list(counts)
        zero = torch.zeros((), dtype=torch.float64)
        own = [Moments(zero, zero, 0) for _ in self.blocks]
        while budget >= _OWN_CHUNK:
            relative = (errors[:-1] / means[:-1].abs()).nan_to_num(0.0, posinf=math.inf)
            worst = int(relative.argmax())
            if not bool(errors[worst] > rtol * means[worst].abs()):
                break
            block = self.operator.block(list(self.blocks.values())[worst])
            for signs in self.signs(_OWN_CHUNK, lambda _count: None, block):
                own[worst].add((signs.double() * _product(block, signs)).sum(0).cpu())
            budget -= _OWN_CHUNK
            # weighted by number, not by estimated certainty: of few samples the spread is often found too small by
            # chance, and the reported error then falls short by a fifth, for no gain in the real one
            first, second = common[2][worst], own[worst].count
            counts[worst] = first + second
            means[worst] = (common[0][worst] * first + own[worst].mean * second) / counts[worst]
            errors[worst] = (
                math.hypot(float(common[1][worst]) * first, float(own[worst].standard_error()) * second) / counts[worst]
            )
        return means, errors, counts

    def _columns(self, block: Tensor) -> Iterator[tuple[int, Tensor]]:
        return (
            (start, block[:, start : start + self.chunk_size]) for start in range(0, block.shape[1], self.chunk_size)
        )


def _product(operator: CurvatureOperator, columns: Tensor) -> Tensor:
    # (P, K) in double precision, whatever the operator's
    found = operator.matmat(columns.to(operator.dtype)).double()
    if not bool(found.isfinite().all()):
        raise NumericalError(
            "block_traces: a product with the curvature holds NaN or Inf; look at the loss and the data"
        )
    return found
