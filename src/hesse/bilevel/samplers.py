"""Random batches of a data set, from a generator of their own, whose position can be saved and restored.

Shapes: N examples, B a batch.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import DataLoader, RandomSampler

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["LoaderSampler", "NoiseSampler", "Sampler", "TensorSampler"]


@runtime_checkable
class Sampler(Protocol):
    """What a solver asks of a source of batches."""

    def draw(self) -> Any:
        """Give the next random batch."""
        ...

    def full(self) -> Any:
        """Give all data as one batch: exact values and gradients are taken on it."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Give all that the next draws depend on."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to a saved position."""
        ...


class TensorSampler:
    """Batches of tensors held in memory, drawn without replacement within an epoch.

    Parameters
    ----------
    data : pytree of Tensor, shapes (N, ...)
        Examples along the leading axis.
    batch_size : int
        B; an epoch is the N // B whole batches of a permutation, the rest waits for the next.
    seed : int, default 0
        Of this sampler's own generator.

    Raises
    ------
    ArgumentTypeError
        If a leaf is no tensor.
    ShapeError
        If leading axes differ.
    ArgumentError
        If there are fewer than ``batch_size`` examples, or ``batch_size < 1``.
    """

    def __init__(self, data: Any, batch_size: int, *, seed: int = 0) -> None:
        leaves = tree_flatten(data)[0]
        if not leaves or not all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves):
            raise ArgumentTypeError("TensorSampler: expected data of tensors with a leading axis of examples")
        sizes = {leaf.shape[0] for leaf in leaves}
        if len(sizes) != 1:
            raise ShapeError(f"TensorSampler: leading axes of data differ: {sorted(sizes)}")
        self.size: int = sizes.pop()
        if not 1 <= batch_size <= self.size:
            raise ArgumentError(f"TensorSampler: expected 1 <= batch_size <= {self.size} examples, got {batch_size}")
        self.data = data
        self.batch_size = batch_size
        self._generator = Generator().manual_seed(seed)
        self._order = torch.randperm(self.size, generator=self._generator)
        self._position = 0

    def draw_index(self) -> Tensor:
        """Draw the numbers of the next batch's examples.

        Returns
        -------
        Tensor of int64, shape (B,)
            On the CPU.
        """
        if self._position + self.batch_size > self.size:
            self._order, self._position = torch.randperm(self.size, generator=self._generator), 0
        start = self._position
        self._position += self.batch_size
        return self._order[start : self._position]

    def take(self, index: Tensor) -> Any:
        """Pick examples by number.

        Parameters
        ----------
        index : Tensor of int64, shape (B,)
            Which.

        Returns
        -------
        pytree of Tensor, shapes (B, ...)
            Copies.
        """
        return tree_map(lambda leaf: leaf[index.to(leaf.device)], self.data)

    def draw(self) -> Any:
        """Draw the next batch.

        Returns
        -------
        pytree of Tensor, shapes (B, ...)
            Nested as the data.
        """
        return self.take(self.draw_index())

    def full(self) -> Any:
        """Hand out all data.

        Returns
        -------
        pytree of Tensor, shapes (N, ...)
            The data themselves, not a copy.
        """
        return self.data

    def state_dict(self) -> dict[str, Tensor]:
        """Save the position.

        Returns
        -------
        dict of Tensor
            State of the generator, the permutation, and how much of it was used.
        """
        return {
            "generator": self._generator.get_state(),
            "order": self._order.clone(),
            "position": torch.tensor(self._position),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a position.

        Parameters
        ----------
        state : dict of Tensor
            From `state_dict` of a sampler of as many examples.

        Raises
        ------
        ShapeError
            If it is of another number of examples.
        """
        if len(state["order"]) != self.size:
            raise ShapeError(f"TensorSampler: the state is of {len(state['order'])} examples, the data of {self.size}")
        self._generator.set_state(state["generator"])
        self._order, self._position = state["order"].clone(), int(state["position"])


class NoiseSampler:
    """Batches of one sample of standard normal noise: for objectives that are known exactly and observed with errors.

    Parameters
    ----------
    sizes : tuple of int
        Length of each vector of a batch.
    seed : int, default 0
        Of this sampler's own generator.
    dtype : torch.dtype, default torch.float64
        Of the noise, on the CPU.
    """

    def __init__(self, sizes: tuple[int, ...], *, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        self.sizes, self.dtype = sizes, dtype
        self._generator = Generator().manual_seed(seed)

    def draw(self) -> tuple[Tensor, ...]:
        """Draw noise.

        Returns
        -------
        tuple of Tensor, shapes (1, size)
            Independent of all before.
        """
        return tuple(torch.randn(1, size, dtype=self.dtype, generator=self._generator) for size in self.sizes)

    def full(self) -> tuple[Tensor, ...]:
        """Give what the noise averages to.

        Returns
        -------
        tuple of Tensor, shapes (1, size)
            Zeros.
        """
        return tuple(torch.zeros(1, size, dtype=self.dtype) for size in self.sizes)

    def state_dict(self) -> dict[str, Tensor]:
        """Save the position.

        Returns
        -------
        dict of Tensor
            State of the generator.
        """
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a position.

        Parameters
        ----------
        state : dict of Tensor
            From `state_dict`.
        """
        self._generator.set_state(state["generator"])


class LoaderSampler:
    """Batches of a `DataLoader`, epoch after epoch.

    Parameters
    ----------
    loader : DataLoader
        Of batches that are pytrees of tensors. Where it shuffles, give it a ``generator``: from its state a saved
        position is found again, by reading the epoch anew up to it.

    Raises
    ------
    ArgumentTypeError
        If it is no DataLoader.
    ArgumentError
        If it has no batch, or shuffles without a generator of its own.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        if not isinstance(loader, DataLoader):
            raise ArgumentTypeError(f"LoaderSampler: expected a DataLoader, got {type(loader).__name__}")
        if len(loader) == 0:
            raise ArgumentError("LoaderSampler: the loader has no batch; are there fewer examples than batch_size?")
        if isinstance(loader.sampler, RandomSampler) and loader.generator is None:
            raise ArgumentError("LoaderSampler: a loader that shuffles needs DataLoader(..., generator=)")
        self.loader = loader
        self._begin()

    def _begin(self) -> None:
        generator = self.loader.generator
        self._start = torch.zeros(0, dtype=torch.uint8) if generator is None else generator.get_state()
        self._batches, self._position = iter(self.loader), 0

    def draw(self) -> Any:
        """Draw the next batch, of the next epoch if this one is over.

        Returns
        -------
        pytree of Tensor
            As the loader gives it.
        """
        if self._position == len(self.loader):
            self._begin()
        self._position += 1
        return next(self._batches)

    def full(self) -> Any:
        """Read one whole epoch into memory; the position of the draws is kept.

        Returns
        -------
        pytree of Tensor
            All batches, laid end to end.
        """
        generator = self.loader.generator
        before = None if generator is None else generator.get_state()
        batches = [tree_flatten(batch) for batch in self.loader]
        if generator is not None and before is not None:
            generator.set_state(before)
        spec = batches[0][1]
        return spec.unflatten([torch.cat(leaves) for leaves in zip(*(flat for flat, _ in batches), strict=True)])

    def state_dict(self) -> dict[str, Tensor]:
        """Save the position.

        Returns
        -------
        dict of Tensor
            State of the generator at the start of the epoch, and the batches read since.
        """
        return {"generator": self._start.clone(), "position": torch.tensor(self._position)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a position by reading the epoch up to it.

        Parameters
        ----------
        state : dict of Tensor
            From `state_dict`.
        """
        if self.loader.generator is not None:
            self.loader.generator.set_state(state["generator"])
        self._begin()
        for _ in range(int(state["position"])):
            self.draw()
