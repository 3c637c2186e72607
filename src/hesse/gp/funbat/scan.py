"""All prefixes of an associative operation in logarithmic depth, each level one batched call."""

from collections.abc import Callable

from torch import Tensor

__all__ = ["Elements", "prefix_scan"]

Elements = tuple[Tensor, ...]
"""Tensors with one leading axis in common: the sequence."""


def prefix_scan(combine: Callable[[Elements, Elements], Elements], elements: Elements) -> Elements:
    """Return e_1, e_1 ∘ e_2, …, e_1 ∘ … ∘ e_T.

    Neighbours are paired, the half as long sequence of pairs is scanned, and the places between are filled in: some
    2T operations in 2 log2 T calls.

    Parameters
    ----------
    combine : callable
        Two equally long stretches of elements to their products, place by place; the earlier one is the left argument.
    elements : tuple of Tensor, shapes (T, ...)
        T >= 1 elements.

    Returns
    -------
    tuple of Tensor, shapes (T, ...)
        Differentiable.
    """
    length = len(elements[0])
    if length == 1:
        return elements
    pairs = combine(tuple(e[0 : length - 1 : 2] for e in elements), tuple(e[1::2] for e in elements))
    at_odd = prefix_scan(combine, pairs)
    out = tuple(e.new_empty(e.shape) for e in elements)
    rest = (length - 1) // 2
    at_even = combine(tuple(e[:rest] for e in at_odd), tuple(e[2::2] for e in elements)) if rest else ()
    for place, element in enumerate(elements):
        out[place][0] = element[0]
        out[place][1::2] = at_odd[place]
        if rest:
            out[place][2::2] = at_even[place]
    return out
