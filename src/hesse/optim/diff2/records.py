"""Sums of clipped per-record gradients and of clipped gradient differences: all that a private method may see of data.

Shapes: N records, D parameters in one vector, F inputs and K outputs of a linear model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_map

from hesse.curvature import per_sample_gradients
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import ParameterLayout

__all__ = ["ClippedSum", "LinearRecords", "LossRecords", "Records", "clip_rows", "module_loss"]

RecordLoss = Callable[[Mapping[str, Tensor], Any], Tensor]


class ClippedSum(NamedTuple):
    """A sum over records; the two counts depend on the data without noise and are for debugging only."""

    total: Tensor  # (D,)
    num_clipped: int
    num_nonfinite: int


class Records(Protocol):
    """Data and a loss of each record, seen through clipped sums."""

    @property
    def num_records(self) -> int:
        """N, which is taken to be public."""
        ...

    def gradient_sum(self, point: Tensor, clip: float, index: Tensor | None = None) -> ClippedSum:
        """Σ clip(∇l(x, z), clip) over the records z, or those of an index.

        Parameters
        ----------
        point : Tensor, shape (D,)
            x.
        clip : float
            Largest norm that a record may contribute.
        index : Tensor, shape (b,), optional
            Which records; default all.
        """
        ...

    def difference_sum(self, point: Tensor, previous: Tensor, clip: float, index: Tensor | None = None) -> ClippedSum:
        """Σ clip(∇l(x, z) - ∇l(x', z), clip) over the records z, or those of an index.

        Parameters
        ----------
        point, previous : Tensor, shape (D,)
            x and x'.
        clip : float
            Largest norm that a record may contribute.
        index : Tensor, shape (b,), optional
            Which records; default all.
        """
        ...


def clip_rows(rows: Tensor, clip: float, scales: Tensor | None = None) -> tuple[Tensor, Tensor, int, int]:
    """Shorten every row to a norm of at most ``clip``: v min(1, clip / ‖v‖).

    Parameters
    ----------
    rows : Tensor, shape (B, D)
        One record a row. Rows with NaN or Inf count as zero, since 0 · Inf would be NaN in the sum.
    clip : float
        C >= 0; ``math.inf`` leaves rows as they are.
    scales : Tensor, shape (B,), optional
        The records' vectors are ``scales`` times as long as the rows. Default: 1.

    Returns
    -------
    rows : Tensor, shape (B, D)
        With zeros in place of rows that were not finite; not yet shortened.
    factors : Tensor, shape (B,)
        min(1, C / ‖v‖), 1 for v = 0.
    num_clipped : int
        Rows that were too long.
    num_nonfinite : int
        Rows that were not finite.
    """
    norms = torch.linalg.vector_norm(rows, dim=1)
    if scales is not None:
        norms = norms * scales
    good = norms.isfinite()
    num_nonfinite = len(good) - int(good.sum())
    if num_nonfinite:
        rows = torch.where(good.unsqueeze(1), rows, 0.0)
        norms = torch.where(good, norms, 0.0)
    too_long = norms > clip
    factors = torch.where(too_long, clip / norms, 1.0)
    return rows, factors, int(too_long.sum()), num_nonfinite


@dataclass(frozen=True, slots=True, eq=False)
class LossRecords:
    """Records of any shape under any differentiable loss.

    Parameters
    ----------
    loss_fn : callable
        (parameters by name, batch of one) -> scalar; the leading axis of the batch, of length 1, is kept. For a module:
        `module_loss`.
    layout : ParameterLayout
        Which entries of the vector belong to which parameter.
    data : tensor, or tuples, lists and dictionaries of tensors
        Every tensor has the leading axis N.
    micro_batch : int, default 256
        Records whose gradients are held at once: O(micro_batch · D) memory, twice that for differences. The numbers
        stay the same to rounding.

    Raises
    ------
    ArgumentError
        If ``micro_batch < 1``, or there is no record.
    ShapeError
        If the tensors of the data differ in their leading axis.

    Notes
    -----
    A gradient sum costs one backward pass over the records, a difference sum two. In half precision norms are as coarse
    as the gradients, and with them the bound on a record's contribution; use float32 or float64.

    Examples
    --------
    >>> layout = ParameterLayout.of({"w": torch.zeros(2)})
    >>> loss_fn = lambda p, z: (z @ p["w"]).sum()
    >>> LossRecords(loss_fn, layout, torch.tensor([[3.0, 4.0], [0.3, 0.4]])).gradient_sum(torch.zeros(2), 1.0).total
    tensor([0.9000, 1.2000])
    """

    loss_fn: RecordLoss
    layout: ParameterLayout
    data: Any
    micro_batch: int = 256
    num_records: int = field(init=False)

    def __post_init__(self) -> None:
        _check_micro_batch("LossRecords", self.micro_batch)
        object.__setattr__(self, "num_records", _leading_axis("LossRecords", self.data))

    def gradient_sum(self, point: Tensor, clip: float, index: Tensor | None = None) -> ClippedSum:
        """Σ clip(∇l(x, z), clip) over the records z, or those of an index.

        Parameters
        ----------
        point : Tensor, shape (D,)
            x.
        clip : float
            Largest norm that a record may contribute.
        index : Tensor, shape (b,), optional
            Which records; default all.

        Returns
        -------
        ClippedSum
            In the units of the gradient.
        """
        return self._sum(point, clip, index, lambda batch: self._rows(point, batch))

    def difference_sum(self, point: Tensor, previous: Tensor, clip: float, index: Tensor | None = None) -> ClippedSum:
        """Σ clip(∇l(x, z) - ∇l(x', z), clip) over the records z, or those of an index.

        Parameters
        ----------
        point, previous : Tensor, shape (D,)
            x and x'.
        clip : float
            Largest norm that a record may contribute.
        index : Tensor, shape (b,), optional
            Which records; default all.

        Returns
        -------
        ClippedSum
            In the units of the gradient.
        """
        return self._sum(point, clip, index, lambda batch: self._rows(point, batch) - self._rows(previous, batch))

    def _rows(self, point: Tensor, batch: Any) -> Tensor:
        return per_sample_gradients(self.loss_fn, self.layout.unflatten(point), batch)

    @torch.no_grad()
    def _sum(self, point: Tensor, clip: float, index: Tensor | None, rows_of: Callable[[Any], Tensor]) -> ClippedSum:
        total, num_clipped, num_nonfinite = torch.zeros_like(point), 0, 0
        for piece in _pieces(self.num_records, self.micro_batch, index):
            batch = tree_map(lambda leaf, at=piece: leaf[at] if isinstance(leaf, Tensor) else leaf, self.data)
            rows, factors, clipped, nonfinite = clip_rows(rows_of(batch), clip)
            total += factors @ rows
            num_clipped, num_nonfinite = num_clipped + clipped, num_nonfinite + nonfinite
        return ClippedSum(total, num_clipped, num_nonfinite)


@dataclass(frozen=True, slots=True, eq=False)
class LinearRecords:
    """Records of a linear model, l(x, z) = h(Wa, y): a gradient is a short vector times a, and no N x D array is made.

    Parameters
    ----------
    inputs : Tensor, shape (N, F)
        a of every record. Append a column of ones for a bias.
    targets : Tensor, shape (N, ...)
        y of every record.
    slope_fn : callable
        (outputs (B, K), targets (B, ...)) -> ∂h/∂output, (B, K); row by row, without a look at other rows. Logistic
        loss with y in {-1, 1}: ``lambda u, y: -y[:, None] * torch.sigmoid(-y[:, None] * u)``.
    num_outputs : int, default 1
        K. The vector of parameters is W row by row, D = KF, as ``nn.Linear(F, K).weight`` has it.
    micro_batch : int, default 8192
        Records to a pass; O(micro_batch · (F + K)) memory.

    Raises
    ------
    ArgumentError
        If ``micro_batch`` or ``num_outputs`` is below 1, or there is no record.
    ShapeError
        If ``inputs`` is no matrix or ``targets`` has another number of rows.

    Notes
    -----
    ‖∇l(x) - ∇l(x')‖ = ‖s - s'‖ ‖a‖ with s the slopes: exact, in O(N F K) time a sum.
    """

    inputs: Tensor
    targets: Tensor
    slope_fn: Callable[[Tensor, Tensor], Tensor]
    num_outputs: int = 1
    micro_batch: int = 8192
    input_norms: Tensor = field(init=False)

    def __post_init__(self) -> None:
        _check_micro_batch("LinearRecords", self.micro_batch)
        if self.num_outputs < 1:
            raise ArgumentError(f"LinearRecords: expected num_outputs >= 1, got {self.num_outputs}")
        if self.inputs.ndim != 2 or len(self.targets) != len(self.inputs):
            raise ShapeError(
                f"LinearRecords: expected inputs (N, F) and targets (N, ...), got {tuple(self.inputs.shape)} and "
                f"{tuple(self.targets.shape)}"
            )
        _leading_axis("LinearRecords", self.inputs)
        object.__setattr__(self, "input_norms", torch.linalg.vector_norm(self.inputs, dim=1))

    @property
    def num_records(self) -> int:
        """N."""
        return len(self.inputs)

    def gradient_sum(self, point: Tensor, clip: float, index: Tensor | None = None) -> ClippedSum:
        """Σ clip(∇l(x, z), clip) over the records z, or those of an index.

        Parameters
        ----------
        point : Tensor, shape (D,)
            x.
        clip : float
            Largest norm that a record may contribute.
        index : Tensor, shape (b,), optional
            Which records; default all.

        Returns
        -------
        ClippedSum
            In the units of the gradient.
        """
        return self._sum((point,), clip, index)

    def difference_sum(self, point: Tensor, previous: Tensor, clip: float, index: Tensor | None = None) -> ClippedSum:
        """Σ clip(∇l(x, z) - ∇l(x', z), clip) over the records z, or those of an index.

        Parameters
        ----------
        point, previous : Tensor, shape (D,)
            x and x'.
        clip : float
            Largest norm that a record may contribute.
        index : Tensor, shape (b,), optional
            Which records; default all.

        Returns
        -------
        ClippedSum
            In the units of the gradient.
        """
        return self._sum((point, previous), clip, index)

    @torch.no_grad()
    def _sum(self, points: tuple[Tensor, ...], clip: float, index: Tensor | None) -> ClippedSum:
        K, width = self.num_outputs, self.num_outputs * self.inputs.shape[1]
        if any(point.shape != (width,) for point in points):
            raise ShapeError(f"LinearRecords: expected points of shape ({width},), got {tuple(points[0].shape)}")
        weights = torch.cat([point.reshape(K, -1) for point in points])  # both points in one product
        total, num_clipped, num_nonfinite = torch.zeros_like(points[0]).reshape(K, -1), 0, 0
        for piece in _pieces(self.num_records, self.micro_batch, index):
            inputs, targets = self.inputs[piece], self.targets[piece]
            outputs = inputs @ weights.T
            slopes = self.slope_fn(outputs[:, :K], targets)
            if len(points) == 2:
                slopes = slopes - self.slope_fn(outputs[:, K:], targets)
            slopes, factors, clipped, nonfinite = clip_rows(slopes, clip, self.input_norms[piece])
            if nonfinite:  # a zero slope does not undo an infinite input
                inputs = torch.where(inputs.isfinite().all(1, keepdim=True), inputs, 0.0)
            total += (factors.unsqueeze(1) * slopes).T @ inputs
            num_clipped, num_nonfinite = num_clipped + clipped, num_nonfinite + nonfinite
        return ClippedSum(total.reshape(-1), num_clipped, num_nonfinite)


def module_loss(model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor]) -> RecordLoss:
    """Turn a module and a loss on its outputs into a loss of one record by parameters.

    Parameters
    ----------
    model : nn.Module
        Called with the first part of a record. Its parameters enter by name: build the optimiser from
        ``model.named_parameters()``.
    loss_fn : callable
        (outputs, targets) -> scalar, as ``nn.functional.cross_entropy``; targets are the second part of a record.

    Returns
    -------
    callable
        (parameters by name, (inputs, targets)) -> scalar.

    Raises
    ------
    ArgumentError
        If a layer normalises over the batch, which mixes records and has no per-record gradient. In evaluation mode
        with running statistics it is a fixed map and passes: those must come from public data.
    """
    for name, part in model.named_modules():
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
            raise ArgumentError(
                f"module_loss: {name or 'the model'} is a {type(part).__name__}, which mixes records, so that one of "
                "them moves the gradients of all; use GroupNorm or LayerNorm, or eval() where its statistics are public"
            )

    def record_loss(parameters: Mapping[str, Tensor], record: Any) -> Tensor:
        inputs, targets = record
        return loss_fn(torch.func.functional_call(model, dict(parameters), (inputs,)), targets)

    return record_loss


def _pieces(num_records: int, micro_batch: int, index: Tensor | None) -> Iterator[slice | Tensor]:
    if index is not None:
        yield from index.split(micro_batch)
        return
    for start in range(0, num_records, micro_batch):
        yield slice(start, min(start + micro_batch, num_records))


def _check_micro_batch(call: str, micro_batch: int) -> None:
    if isinstance(micro_batch, bool) or not isinstance(micro_batch, int) or micro_batch < 1:
        raise ArgumentError(f"{call}: expected an integer micro_batch >= 1, got {micro_batch!r}")


def _leading_axis(call: str, data: Any) -> int:
    leaves = [leaf for leaf in tree_flatten(data)[0] if isinstance(leaf, Tensor)]
    if not leaves:
        raise ArgumentTypeError(f"{call}: the data hold no tensor")
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in leaves}
    if len(sizes) != 1 or -1 in sizes:
        raise ShapeError(
            f"{call}: every tensor needs one leading axis of records, got {[tuple(x.shape) for x in leaves]}"
        )
    count = sizes.pop()
    if count == 0:
        raise ArgumentError(f"{call}: there are no records")
    return count
