"""A dictionary that forgets what was not asked for longest."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["LRU"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRU(Generic[K, V]):
    """At most ``capacity`` values by key.

    Parameters
    ----------
    capacity : int
        At least 0; with 0 nothing is kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        """Look a value up, and count that as a use.

        Parameters
        ----------
        key : hashable
            Its key.

        Returns
        -------
        object or None
            None if it is not there.
        """
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: K, value: V) -> None:
        """Keep a value, and drop the oldest beyond the capacity.

        Parameters
        ----------
        key : hashable
            Its key.
        value : object
            Not None.
        """
        self._kept[key] = value
        self._kept.move_to_end(key)
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Look a value up, or make and keep it.

        Parameters
        ----------
        key : hashable
            Its key.
        make : callable
            Called without arguments if it is not there.

        Returns
        -------
        object
            The value.
        """
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found
