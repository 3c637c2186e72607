"""The batches a curvature matrix sums over: held in a list, or streamed from a loader that must give the same again."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.io import hash_tensors

__all__ = ["BatchStream", "as_batches", "batch_size", "to_device"]

_RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class BatchStream:
    """Batches read anew from a loader in every pass, one in memory at a time.

    A matrix must be the same in every product, so every pass must give the same batches in the same order. A loader
    that shuffles is refused at once; any other that changes (augmentation, a sampler of its own) is caught in its
    second pass, because the checksum of every batch is compared with that of the first.

    Parameters
    ----------
    loader : iterable
        A `torch.utils.data.DataLoader`, or anything else that can be iterated more than once.

    Raises
    ------
    ArgumentError
        If the loader shuffles.
    ArgumentTypeError
        If it cannot be iterated, or only once.

    Examples
    --------
    >>> stream = BatchStream([torch.zeros(2), torch.ones(2)])
    >>> [float(batch.sum()) for batch in stream]
    [0.0, 2.0]
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        if not isinstance(loader, Iterable):
            raise ArgumentTypeError(f"BatchStream: expected an iterable of batches, got {type(loader).__name__}")
        if isinstance(loader, Iterator):
            raise ArgumentTypeError(
                f"BatchStream: a {type(loader).__name__} can be read once only, and every product reads all batches; "
                "pass the loader itself, or a list"
            )
        samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
        if any(isinstance(sampler, _RANDOM_SAMPLERS) for sampler in samplers):
            raise ArgumentError(
                "BatchStream: the loader shuffles, so that every product would sum other batches; build it with "
                "shuffle=False (a fixed subset: torch.utils.data.Subset)"
            )
        self.loader = loader
        self._checksums: list[str] = []
        self._complete = False  # whether a whole pass has been seen

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for batch in self.loader:
            checksum = _checksum(batch)
            if count == len(self._checksums) and not self._complete:
                self._checksums.append(checksum)
            elif count >= len(self._checksums) or self._checksums[count] != checksum:
                raise ArgumentError(
                    f"BatchStream: batch {count} is not the one of the first pass; the loader must give the same "
                    "batches in every pass (no shuffling, no random augmentation, a fixed seed)"
                )
            count += 1
            yield batch
        if count == 0:
            raise ArgumentError("BatchStream: the loader gave no batch")
        if count < len(self._checksums):
            raise ArgumentError(
                f"BatchStream: the loader gave {count} batches, {len(self._checksums)} in an earlier pass; it must "
                "give the same in every pass"
            )
        self._complete = True


def as_batches(call: str, batches: Any) -> list[Any] | BatchStream:
    """Read the ``batches`` argument of an operator.

    Parameters
    ----------
    call : str
        The caller, for messages.
    batches : object
        A list, a BatchStream, a DataLoader (streamed), or anything else, which is one batch.

    Returns
    -------
    list or BatchStream
        The list is a copy.

    Raises
    ------
    ArgumentError
        If the list is empty, or the loader shuffles.
    ArgumentTypeError
        If it is an iterator, which can be read once only.
    """
    if isinstance(batches, BatchStream):
        return batches
    if isinstance(batches, DataLoader | Iterator):
        return BatchStream(batches)
    held = list(batches) if isinstance(batches, list) else [batches]
    if not held:
        raise ArgumentError(f"{call}: the list of batches is empty")
    return held


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a streamed batch to the parameters' device.

    Parameters
    ----------
    batch : tensor, or tuples, lists and dictionaries of tensors
        As the loader gave it.
    device : torch.device
        Where to.

    Returns
    -------
    object
        Of the same structure; tensors that are there already are not copied.
    """
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


def batch_size(batch: Any) -> int:
    """Count the examples of a batch: the leading axis of its first tensor.

    Parameters
    ----------
    batch : tensor, or tuples, lists and dictionaries of tensors
        Examples along the leading axis.

    Returns
    -------
    int
        How many.

    Raises
    ------
    ArgumentError
        If there is no tensor with an axis.
    """
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.shape[0]
    raise ArgumentError(
        "reduction: 'weighted_mean' counts examples along the leading axis, and the batch has no tensor"
    )


def _checksum(batch: Any) -> str:
    leaves = tree_flatten(batch)[0]
    tensors = {str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    return hash_tensors(tensors)
