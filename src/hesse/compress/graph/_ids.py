"""Channel identities: a partition of numbers that only grows coarser, and codes that say what every element is worth.

A code is one int64 an element of a tensor: NONE (any value), ZERO (always zero), or 2 i + z for channel i, where z = 1
if the element is zero whenever channel i is.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["NONE", "ZERO", "Channels", "encode", "ids_of", "is_zero"]

NONE, ZERO = -1, -2


def encode(ids: Tensor, zero: Tensor | bool) -> Tensor:
    # codes of elements that belong to channels; negative ids (NONE, ZERO) stay as they are
    return torch.where(ids >= 0, 2 * ids + torch.as_tensor(zero).long(), ids)


def ids_of(codes: Tensor) -> Tensor:
    # the channel of every element; NONE and ZERO stay as they are
    return torch.where(codes >= 0, codes >> 1, codes)


def is_zero(codes: Tensor) -> Tensor:
    # whether an element is zero once its channel is (or always)
    return ((codes >= 0) & (codes & 1 == 1)) | (codes == ZERO)


class Channels:
    """A union-find structure over channels, in whole arrays, with the reasons why some may not be cut."""

    def __init__(self) -> None:
        self._parent = np.empty(0, dtype=np.int64)
        self._pins: list[tuple[np.ndarray, str]] = []

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Tensor:
        # make new channels, each alone
        start = len(self._parent)
        new = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, new])
        return torch.from_numpy(new.copy())

    def roots(self, ids: Tensor) -> Tensor:
        # the smallest channel of each one's class; negative ids stay as they are
        flat = ids.contiguous().numpy()
        known = flat >= 0
        found = self._find(flat[known])
        out = flat.copy()
        out[known] = found
        return torch.from_numpy(out)

    def unite(self, left: Tensor, right: Tensor) -> None:
        # put pairs of channels into one class each; pairs with a negative id are passed over
        left, right = torch.broadcast_tensors(left, right)
        both = (left >= 0) & (right >= 0)
        pairs = np.unique(np.stack([left[both].numpy(), right[both].numpy()], axis=1), axis=0)
        a, b = pairs[:, 0], pairs[:, 1]
        while True:
            a, b = self._find(a), self._find(b)
            apart = a != b
            if not apart.any():
                return
            a, b = a[apart], b[apart]
            # of several lower roots offered to one higher root the lowest wins; the next round unites the rest
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def pin(self, ids: Tensor, reason: str) -> None:
        # forbid that these channels, and so their classes, are ever cut
        known = np.unique(ids[ids >= 0].numpy())
        if len(known):
            self._pins.append((known, reason))

    def pinned(self) -> dict[int, str]:
        # roots of the classes that may not be cut, each with the first reason given
        reasons: dict[int, str] = {}
        for ids, reason in self._pins:
            for root in np.unique(self._find(ids)).tolist():
                reasons.setdefault(root, reason)
        return reasons

    def varies(self, codes: Tensor, dim: int) -> bool:
        # whether the class of an element depends on its place along ``dim``
        if codes.shape[dim] < 2:
            return False
        roots = self.roots(ids_of(codes))
        return not torch.equal(roots, roots.narrow(dim, 0, 1).expand_as(roots))

    def varying(self, codes: Tensor) -> list[int]:
        # dimensions along which classes vary
        roots = self.roots(ids_of(codes))
        return [
            d
            for d, size in enumerate(roots.shape)
            if size > 1 and not torch.equal(roots, roots.narrow(d, 0, 1).expand_as(roots))
        ]

    def tie(self, codes: Tensor, dim: int) -> None:
        # unite along a dimension: its places can then be cut together only
        ids = ids_of(codes)
        self.unite(ids, ids.amax(dim, keepdim=True).expand_as(ids))

    def box(self, codes: Tensor, *, keep: int | None = None) -> bool:
        # make classes vary along one dimension at most, so that whatever is cut leaves a box; whether anything changed.
        # ``keep`` names the dimension that stays free; by default it is the one with most classes
        dims = self.varying(codes)
        if len(dims) < 2:
            return False
        if keep is None:
            roots = self.roots(ids_of(codes))
            keep = max(dims, key=lambda d: len(torch.unique(roots.movedim(d, 0).reshape(roots.shape[d], -1)[:, 0])))
        for dim in dims:
            if dim != keep:
                self.tie(codes, dim)
        return True

    def _find(self, ids: np.ndarray) -> np.ndarray:
        found = self._parent[ids]
        while True:
            higher = self._parent[found]
            if np.array_equal(higher, found):
                break
            found = higher
        self._parent[ids] = found
        return found
