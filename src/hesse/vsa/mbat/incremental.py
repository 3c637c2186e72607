"""A document's vector kept up to date while single values change, in O(D depth) a change.   Shapes: D dimension."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.vsa.mbat.algebra import unit
from hesse.vsa.mbat.encoder import JSONEncoder
from hesse.vsa.mbat.recipe import BAG, ENDS, ORDERED, pointer, position_role, step_pattern

__all__ = ["IncrementalEncoder"]

Step = str | int


@dataclass(slots=True)
class _Node:
    """An object or array that was touched: its sums before they are brought to length 1."""

    pattern: str
    ordered: Tensor  # of an object the only sum
    bag: Tensor
    parts: dict[Step, Tensor]  # vectors of its values
    below: "dict[Step, _Node]" = field(default_factory=dict)


class IncrementalEncoder:
    """Hold a document and its vector; `set` and `remove` change both.

    The sums of an object are made when it is touched first, which costs as much as encoding it; later changes below it
    take the old value out of every sum on the way up and put the new one in. Sums are kept in float64, so that
    thousands of changes leave no trace.

    Parameters
    ----------
    encoder : JSONEncoder
        How to encode.
    document : object
        JSON, with lists as arrays; copied.

    Raises
    ------
    ArgumentTypeError
        If the document is no JSON.

    Examples
    --------
    >>> record = IncrementalEncoder(JSONEncoder(), {"name": "Anna", "age": 41})
    >>> record.set("/age", 42)
    >>> bool(torch.allclose(record.vector, JSONEncoder().encode(record.document), atol=1e-6))
    True
    """

    def __init__(self, encoder: JSONEncoder, document: Any) -> None:
        self._encoder = encoder
        self._wide = copy.copy(encoder)  # same settings and statistics, sums in float64
        self._wide.set_params(dtype=torch.float64)
        self._document = copy.deepcopy(document)
        self._vector = self._wide.encode(self._document)
        self._root: _Node | None = None

    @property
    def document(self) -> Any:
        """The document as it is now; a copy."""
        return copy.deepcopy(self._document)

    @property
    def vector(self) -> Tensor:
        """Its vector, shape (D,), as `JSONEncoder.encode` would make it, up to rounding."""
        return self._vector.to(self._encoder.dtype)

    def set(self, path: str | Sequence[Step], value: Any) -> None:
        """Put a value in place of another, or under a new key, or behind the last item of an array.

        Parameters
        ----------
        path : str or sequence of str and int
            A JSON pointer, or keys and positions one by one. All but its last step must be there.
        value : object
            JSON; copied.

        Raises
        ------
        ArgumentError
            If the path leads nowhere; nothing is changed then.
        ArgumentTypeError
            If the value is no JSON; nothing is changed then.
        """
        self._change("set", pointer(path), copy.deepcopy(value), remove=False)

    def remove(self, path: str | Sequence[Step]) -> None:
        """Take a key out of an object.

        Parameters
        ----------
        path : str or sequence of str and int
            As of `set`; its last step is a key.

        Raises
        ------
        ArgumentError
            If the path leads nowhere, or to an item of an array.
        """
        self._change("remove", pointer(path), None, remove=True)

    def _change(self, caller: str, steps: list[Step], value: Any, *, remove: bool) -> None:
        if not steps:
            if remove:
                raise ArgumentError("IncrementalEncoder.remove: the whole document cannot be removed")
            vector = self._wide.encode(value)  # before anything is changed: it may be refused
            self._document, self._vector, self._root = value, vector, None
            return
        holders = self._holders(caller, steps, remove=remove)
        last: Any = steps[-1]  # a key or a position, as fits its holder
        holder = holders[-1]
        if self._shape_changes(holder, last, remove=remove):
            # an empty object has a code of its own, and in a long array every place near the end moves: encode it anew
            changed: Any = copy.copy(holder)
            if remove:
                del changed[last]
            elif isinstance(changed, list):
                changed.append(value)
            else:
                changed[last] = value
            self._change(caller, steps[:-1], changed, remove=False)
            return
        nodes = self._nodes(steps, holders)
        pattern = nodes[-1].pattern + step_pattern(last)
        # weights and scales go by pattern: a value is encoded as it would be at its place
        vector = None if remove else self._wide.encode(value, at=pattern)
        if remove:
            del holder[last]
        elif isinstance(holder, list) and last == len(holder):
            holder.append(value)
        else:
            holder[last] = value
        nodes[-1].below.pop(last, None)
        for i in reversed(range(len(nodes))):
            self._replace(nodes[i], holders[i], steps[i], vector)
            vector = self._sum_of(nodes[i], holders[i])
        self._vector = self._vector if vector is None else vector

    def _holders(self, caller: str, steps: list[Step], *, remove: bool) -> list[Any]:
        # the objects and arrays that the steps lead through
        holders: list[Any] = [self._document]
        for i, step in enumerate(steps):
            holder: Any = holders[-1]
            final = i == len(steps) - 1
            if isinstance(holder, list) and isinstance(step, int):
                there = 0 <= step < len(holder) + (final and not remove)
                if final and remove:
                    raise ArgumentError(
                        f"IncrementalEncoder.remove: step {step!r} is an item of an array; set the array"
                    )
            else:
                there = (
                    isinstance(holder, dict) and isinstance(step, str) and (step in holder or (final and not remove))
                )
            if not there:
                raise ArgumentError(f"IncrementalEncoder.{caller}: step {step!r} of {steps!r} is not in the document")
            if not final:
                below: Any = holder  # an object by a key, or an array by a position: checked above
                holders.append(below[step])
        return holders

    @staticmethod
    def _shape_changes(holder: Any, last: Step, *, remove: bool) -> bool:
        if remove:
            return len(holder) == 1
        return not holder or (isinstance(holder, list) and last == len(holder) >= 2 * ENDS)

    def _nodes(self, steps: list[Step], holders: list[Any]) -> list[_Node]:
        if self._root is None:
            self._root = self._new_node(holders[0], "")
        nodes = [self._root]
        for step, holder in zip(steps, holders[1:], strict=False):
            node = nodes[-1].below.get(step)
            if node is None:
                node = nodes[-1].below[step] = self._new_node(holder, nodes[-1].pattern + step_pattern(step))
            nodes.append(node)
        return nodes

    def _new_node(self, holder: Any, pattern: str) -> _Node:
        zero = torch.zeros(self._wide.dim, dtype=torch.float64, device=self._wide.device)
        node = _Node(pattern, zero, zero.clone(), {})
        for step, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            self._replace(node, holder, step, self._wide.encode(value, at=pattern + step_pattern(step)))
        return node

    def _replace(self, node: _Node, holder: Any, step: Step, vector: Tensor | None) -> None:
        old = node.parts.pop(step, None)
        if vector is not None:
            node.parts[step] = vector
        zero = torch.zeros_like(node.bag)
        difference = (zero if vector is None else vector) - (zero if old is None else old)
        binding, recipe = self._wide.binding, self._wide.recipe
        if isinstance(step, str):
            for role, weight in recipe.key_terms(step, node.pattern + step_pattern(step)):
                node.ordered += weight * binding.bind(role, difference)
            return
        node.bag += difference
        role = position_role(step, len(holder))
        if role is not None:
            node.ordered += binding.bind(role, difference)

    def _sum_of(self, node: _Node, holder: Any) -> Tensor:
        if isinstance(holder, dict):
            return unit(node.ordered)
        binding = self._wide.binding
        ordered, bag = self._wide.recipe.array
        return unit(ordered * binding.bind(ORDERED, unit(node.ordered)) + bag * binding.bind(BAG, unit(node.bag)))
