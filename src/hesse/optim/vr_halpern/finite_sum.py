"""An operator that is a mean of n components, F = (1/n) Σ F_i, evaluated by samples and counted.

Shapes: D entries of u, n components, B of them in a sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from hesse._values import check_finite
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError

__all__ = ["ComponentSampler", "FiniteSumOperator", "check_point", "lipschitz_estimate"]

ComponentFn = Callable[[Tensor, Tensor], Tensor]
"""(u (D,), indices (B,)) ↦ (D,): the mean of the components named."""
BatchFn = Callable[[Tensor, Tensor], Tensor]
"""(u (D,), indices (B,)) ↦ (B, D): the components named, one a row."""


class FiniteSumOperator:
    """F(u) = (1/n) Σ_i F_i(u), and how many F_i have been evaluated so far.

    Parameters
    ----------
    component_fn : callable
        ``(u, index)`` ↦ (1/B) Σ_{i in index} F_i(u), for u of shape (D,) and an int64 ``index`` of shape (B,) on u's
        device; indices may repeat. Needs no derivative of its own; whatever graph it leaves is dropped.
    n : int
        Number of components.
    dim : int
        D, length of u.
    batch_fn : callable, optional
        ``(u, index)`` ↦ the F_i(u) one a row, (B, D). Importance sampling, the SAGA estimator and
        `lipschitz_estimate` need single components. Default: ``component_fn`` called once for each index, which is
        slow.
    full_fn : callable, optional
        u ↦ F(u), where it is cheaper than the mean over all indices, as for matrices. It counts as n evaluations all
        the same. Default: ``component_fn`` over all indices.
    chunk_size : int, optional
        Components to a call of the default full pass: bounds its memory. Default: all in one call.

    Attributes
    ----------
    evaluations : int
        Components evaluated since the operator was made; n for each full pass.

    Raises
    ------
    ArgumentError
        If ``n``, ``dim`` or ``chunk_size`` is below one.

    Examples
    --------
    >>> targets = torch.tensor([[0.0], [2.0]])
    >>> op = FiniteSumOperator(lambda u, i: u - targets[i].mean(0), n=2, dim=1)
    >>> op.full(torch.zeros(1)), op.evaluations
    (tensor([-1.]), 2)
    """

    def __init__(
        self,
        component_fn: ComponentFn,
        n: int,
        dim: int,
        batch_fn: BatchFn | None = None,
        *,
        full_fn: Callable[[Tensor], Tensor] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        for name, value in (("n", n), ("dim", dim), ("chunk_size", 1 if chunk_size is None else chunk_size)):
            if value < 1:
                raise ArgumentError(f"FiniteSumOperator: expected {name} >= 1, got {value}")
        self.n = n
        self.dim = dim
        self.chunk_size = chunk_size
        self.evaluations = 0
        self._component_fn = component_fn
        self._batch_fn = batch_fn
        self._full_fn = full_fn

    def full(self, u: Tensor) -> Tensor:
        """Evaluate F: n evaluations.

        Parameters
        ----------
        u : Tensor, shape (D,)
            A point.

        Returns
        -------
        Tensor, shape (D,)
            Without a graph.
        """
        self.evaluations += self.n
        if self._full_fn is not None:
            return self._checked("full_fn", self._full_fn(u), u, (self.dim,))
        size = self.n if self.chunk_size is None else self.chunk_size
        chunks = torch.arange(self.n, device=u.device).split(size)
        total = torch.zeros_like(u)
        for index in chunks:
            value = self._checked("component_fn", self._component_fn(u, index), u, (self.dim,))
            total += value * (len(index) / self.n)
        return total

    def mean(self, u: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
        """Average sampled components: B evaluations.

        Parameters
        ----------
        u : Tensor, shape (D,)
            A point.
        index : Tensor of int64, shape (B,)
            Which components; repeated ones count as often as they stand there.
        weights : Tensor, shape (B,), optional
            Factor of each component, as importance sampling has it. Default: one.

        Returns
        -------
        Tensor, shape (D,)
            (1/B) Σ_b weights_b F_{index_b}(u), without a graph.
        """
        if weights is not None:
            return weights @ self.each(u, index) / len(index)
        self.evaluations += len(index)
        return self._checked("component_fn", self._component_fn(u, index), u, (self.dim,))

    def each(self, u: Tensor, index: Tensor) -> Tensor:
        """Evaluate single components: B evaluations.

        Parameters
        ----------
        u : Tensor, shape (D,)
            A point.
        index : Tensor of int64, shape (B,)
            Which components.

        Returns
        -------
        Tensor, shape (B, D)
            One component a row, without a graph.
        """
        self.evaluations += len(index)
        if self._batch_fn is not None:
            return self._checked("batch_fn", self._batch_fn(u, index), u, (len(index), self.dim))
        rows = [self._checked("component_fn", self._component_fn(u, i), u, (self.dim,)) for i in index.split(1)]
        return torch.stack(rows)

    def _checked(self, name: str, value: Tensor, u: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if tuple(value.shape) != shape or value.dtype != u.dtype or value.device != u.device:
            raise ShapeError(
                f"{name}: expected shape {shape}, {u.dtype} on {u.device}, got {tuple(value.shape)}, {value.dtype} on "
                f"{value.device}"
            )
        return value.detach()


@dataclass(frozen=True, slots=True)
class ComponentSampler:
    """Draws component indices with replacement, uniformly or with given probabilities.

    Parameters
    ----------
    n : int
        Number of components.
    generator : torch.Generator
        Source of the numbers; on the CPU it gives the same indices for every device.
    device : torch.device
        Where indices are wanted.
    dtype : torch.dtype
        Of the weights.
    importance : Tensor, shape (n,), optional
        Positive numbers in proportion to which components are drawn. Default: uniform.

    Raises
    ------
    ShapeError
        If ``importance`` is not of shape (n,).
    ArgumentError
        If an entry is not positive and finite: a component that is never drawn would bias every estimate.
    """

    n: int
    generator: Generator
    device: torch.device
    dtype: torch.dtype
    importance: Tensor | None = None
    _cumulative: Tensor | None = field(init=False, repr=False, default=None)  # (n,): Σ_{j<=i} q_j, in float64

    def __post_init__(self) -> None:
        if self.importance is None:
            return
        if tuple(self.importance.shape) != (self.n,):
            raise ShapeError(f"importance: expected shape ({self.n},), got {tuple(self.importance.shape)}")
        weights = self.importance.detach().to(self.generator.device, torch.float64)
        if not bool((torch.isfinite(weights) & (weights > 0)).all()):
            raise ArgumentError("importance: expected positive finite numbers; a component never drawn biases all sums")
        object.__setattr__(self, "importance", weights / weights.sum())
        object.__setattr__(self, "_cumulative", self.importance.cumsum(0))

    def draw(self, size: int) -> tuple[Tensor, Tensor | None]:
        """Draw a sample.

        Parameters
        ----------
        size : int
            B.

        Returns
        -------
        index : Tensor of int64, shape (B,)
            With replacement.
        weights : Tensor, shape (B,), or None
            1 / (n q_i), which makes weighted means unbiased; None for uniform samples.
        """
        home = self.generator.device
        if self.importance is None or self._cumulative is None:
            index = torch.randint(self.n, (size,), generator=self.generator, device=home)
            return index.to(self.device), None
        points = torch.rand(size, generator=self.generator, device=home, dtype=torch.float64)
        index = torch.searchsorted(self._cumulative, points, right=True).clamp_max(self.n - 1)
        weights = 1 / (self.n * self.importance[index])
        return index.to(self.device), weights.to(self.device, self.dtype)


def check_point(call: str, name: str, u: Tensor, dim: int) -> Tensor:
    """Refuse what cannot be an iterate, and drop its graph.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    u : Tensor, shape (D,)
        What came.
    dim : int
        D.

    Returns
    -------
    Tensor, shape (D,)
        The same numbers without a graph.

    Raises
    ------
    ArgumentTypeError
        If it is not a tensor of float32 or float64: in half precision the anchor's weight 2 / (k + 4) is rounded away
        after some hundred steps.
    ShapeError
        If the shape is another.
    NumericalError
        If an entry is NaN or Inf.
    """
    if not isinstance(u, Tensor) or u.dtype not in (torch.float32, torch.float64):
        kind = u.dtype if isinstance(u, Tensor) else type(u).__name__
        raise ArgumentTypeError(f"{call}: expected {name} in float32 or float64, got {kind}")
    if tuple(u.shape) != (dim,):
        raise ShapeError(f"{call}: expected {name} of shape ({dim},), got {tuple(u.shape)}")
    check_finite(call, name, u)
    return u.detach()


def lipschitz_estimate(
    op: FiniteSumOperator,
    u: Tensor,
    *,
    num_pairs: int = 16,
    sample_size: int = 256,
    radius: float | None = None,
    importance: Tensor | None = None,
    generator: Generator | None = None,
) -> float:
    """Guess L with E‖F_i(u) - F_i(v)‖² <= L² ‖u - v‖² from pairs near a point: 1.5 times the largest quotient seen.

    A lower bound times a margin, not a bound. Every fourth pair lies in a random direction; the other three follow
    the operator's own difference F(v) - F(u), which turns towards the directions that it stretches most.

    Parameters
    ----------
    op : FiniteSumOperator
        The operator.
    u : Tensor, shape (D,)
        Where.
    num_pairs : int, default 16
        Pairs (u, v).
    sample_size : int, default 256
        Components that stand for all; all of them where n is not larger.
    radius : float, optional
        ‖v - u‖. Default: max(1, ‖u‖).
    importance : Tensor, shape (n,), optional
        Probabilities up to a factor, for the L of importance sampling, whose components are F_i / (n q_i).
    generator : torch.Generator, optional
        Source of directions and components. Default: torch's global generator of the CPU.

    Returns
    -------
    float
        L, of the setting "Lipschitz on average". The constant of cocoercivity on average is never smaller.

    Raises
    ------
    ArgumentError
        If a number is out of range, or the operator does not change near u.
    NumericalError
        If the operator is NaN or Inf there.

    Notes
    -----
    (num_pairs + 1) · min(n, sample_size) evaluations of single components.
    """
    for name, value in (("num_pairs", num_pairs), ("sample_size", sample_size)):
        if value < 1:
            raise ArgumentError(f"lipschitz_estimate: expected {name} >= 1, got {value}")
    u = check_point("lipschitz_estimate", "u", u, op.dim)
    reach = max(1.0, float(u.norm())) if radius is None else radius
    if not reach > 0:
        raise ArgumentError(f"lipschitz_estimate: expected radius > 0, got {radius}")
    source = torch.default_generator if generator is None else generator
    sampler = ComponentSampler(op.n, source, u.device, u.dtype, importance)
    if sampler.importance is None and op.n <= sample_size:
        index, weights = torch.arange(op.n, device=u.device), None
    else:
        index, weights = sampler.draw(min(op.n, sample_size))
    scale = torch.ones(len(index), 1, dtype=u.dtype, device=u.device) if weights is None else weights.unsqueeze(1)
    here = scale * op.each(u, index)
    largest, direction = 0.0, torch.zeros_like(u)
    for pair in range(num_pairs):
        if pair % 4 == 0 or not bool(direction.any()):
            direction = torch.randn(op.dim, generator=source, device=source.device, dtype=u.dtype).to(u.device)
        shift = direction * (reach / direction.norm())
        change = scale * op.each(u + shift, index) - here
        largest = max(largest, float(change.square().sum(1).mean().sqrt()) / reach)
        direction = change.mean(0)
        if not bool(torch.isfinite(direction).all()):
            raise NumericalError("lipschitz_estimate: the operator is NaN or Inf near u; give L or a smaller radius")
    if largest == 0:
        raise ArgumentError("lipschitz_estimate: the operator is constant near u, so that there is no L; give it")
    return 1.5 * largest
