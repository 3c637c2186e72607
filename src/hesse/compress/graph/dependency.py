"""Which slices of which parameters make up each channel of a network, and which channels may be cut."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hesse.compress.graph._flow import Axis, Flow
from hesse.compress.graph._ids import ids_of
from hesse.compress.graph._propagate import propagate
from hesse.compress.graph._trace import call_arguments, shadow_copy, trace
from hesse.errors import ArgumentError, NumericalError

__all__ = ["DependencyGraph", "Family", "Group", "GroupAxis", "Slice", "output_difference"]


@dataclass(frozen=True, slots=True)
class GroupAxis:
    """One dimension of a parameter or buffer, with the group that every place along it belongs to."""

    name: str
    dim: int
    groups: Tensor  # (size of the dimension,), int64: number of the group, -1 where nothing may be cut
    producer: bool  # zeroed with its group; if not, only cut with it


@dataclass(frozen=True, slots=True)
class Slice:
    """Places along one dimension of a parameter or buffer."""

    name: str
    dim: int
    places: tuple[int, ...]
    producer: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A pruning-zero-invariant group: once its producers are zero, all of its slices can be cut out."""

    index: int
    family: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Groups that are slices of the same parameters."""

    index: int
    groups: Tensor  # (size,), int64
    axes: tuple[tuple[str, int], ...]  # (parameter, dimension) of its producers


class DependencyGraph:
    """Groups of parameter slices that can be removed together without a change of the output once they are zero.

    The module is traced once. Every entry of every tensor carries the number of the channel it belongs to; operators
    unite numbers (a sum), move them (a reshape) or end them (a linear layer, which reads them by its columns and
    writes new ones by its rows). A group is what has become one number. It may be cut if its zeros arrive as zeros
    wherever it is read: through ReLU, GELU, SiLU, tanh, pooling and norms with a scale, not through a sigmoid.

    Parameters
    ----------
    module : nn.Module
        The network. It is not modified, nor its mode changed.
    example_inputs : Tensor, tuple, or mapping of str
        Arguments of one call, positional or by keyword; small ones serve best.
    skip : sequence of str, default ()
        Names of modules or parameters whose outputs shall not be cut, with ``*`` as wildcard.
    head_mode : {"head", "dim"}, default "head"
        Attention: whole heads are cut, or the same entries of every head.

    Attributes
    ----------
    module : nn.Module
        As given.
    axes : tuple of GroupAxis
        The groups by parameters: what zeroing, scores and `slim` work on.
    num_groups : int
        G.
    family_of : Tensor, shape (G,)
        Number of each group's family.
    pinned : dict of str to str
        "parameter[dimension]" whose channels, some or all, may not be cut, with a reason.

    Raises
    ------
    ArgumentError
        If the module cannot be traced, nothing may be cut (the message says why), or ``skip`` or ``head_mode`` is
        out of range.
    ArgumentTypeError
        If ``module`` or ``example_inputs`` is of another kind.

    Notes
    -----
    A pass costs a few integer operations an entry of each activation. Operators it does not know, data-dependent
    indexing, softmax over channels and slices of literal size keep their channels from being cut. A parameter is a
    part of the model for this purpose wherever it is used: tied ones are one.

    References
    ----------
    T. Chen et al. (2024), arXiv 2409.09085, for the groups.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> graph = DependencyGraph(net, torch.zeros(1, 4))
    >>> graph.num_groups, [(s.name, s.dim, s.producer) for s in graph.groups[0].slices]
    (8, [('0.weight', 0, True), ('0.bias', 0, True), ('2.weight', 1, False)])
    """

    def __init__(
        self,
        module: nn.Module,
        example_inputs: Any,
        skip: Sequence[str] = (),
        head_mode: Literal["head", "dim"] = "head",
    ) -> None:
        if head_mode not in ("head", "dim"):
            raise ArgumentError(f'DependencyGraph: head_mode must be "head" or "dim", got {head_mode!r}')
        self.module = module
        self.example_inputs = example_inputs
        self.skip = tuple(skip)
        self.head_mode: Literal["head", "dim"] = head_mode
        args, kwargs = call_arguments(example_inputs)
        traced = trace(module, args, kwargs)
        shapes = {n: tuple(t.shape) for n, t in [*module.named_parameters(), *module.named_buffers()]}
        flow = propagate(traced, shapes, head_mode)
        _pin_skipped(flow, skip, shapes)
        _settle(flow)
        axes, pinned = _axes(flow)
        self.axes, self.family_of, self._family_axes = _number(axes)
        self.pinned = pinned
        self.num_groups = len(self.family_of)
        self._uses = flow.uses
        # kept for slim: sizes that code may hold, and the norms that go on counting what is cut
        numbers = _group_numbers(flow, axes, self.axes)
        self._moved = [(owner, flow.channels.roots(ids_of(codes)), numbers) for owner, codes in flow.moved]
        self._norms = [(owner, flow.channels.roots(ids), numbers) for owner, ids in flow.norms]
        if self.num_groups == 0:
            reasons = "; ".join(f"{key}: {why}" for key, why in sorted(pinned.items())[:12])
            raise ArgumentError(f"DependencyGraph: no channel of the module may be cut. {reasons or 'It has none.'}")

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups with their slices, for reading; work on many is done through ``axes``."""
        slices: list[list[Slice]] = [[] for _ in range(self.num_groups)]
        for axis in self.axes:
            places: dict[int, list[int]] = {}
            for place, group in enumerate(axis.groups.tolist()):
                if group >= 0:
                    places.setdefault(group, []).append(place)
            for group, found in places.items():
                slices[group].append(Slice(axis.name, axis.dim, tuple(found), axis.producer))
        families = self.family_of.tolist()
        return tuple(Group(g, families[g], tuple(found)) for g, found in enumerate(slices))

    @property
    def families(self) -> tuple[Family, ...]:
        """Groups by the parameters they are slices of."""
        return tuple(
            Family(f, (self.family_of == f).nonzero().squeeze(1), keys) for f, keys in enumerate(self._family_axes)
        )

    def tensor(self, name: str) -> Tensor:
        """Look a parameter or buffer of the module up by its name.

        Parameters
        ----------
        name : str
            As in ``GroupAxis``.

        Returns
        -------
        Tensor
            The module's own.

        Raises
        ------
        ArgumentError
            If there is no such name.
        """
        found = self._tensors().get(name)
        if found is None:
            raise ArgumentError(f"DependencyGraph: the module has no parameter or buffer {name!r} any more")
        return found

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

    def producers(self) -> Iterator[tuple[GroupAxis, Tensor]]:
        """Go through the dimensions that are zeroed with their groups.

        Yields
        ------
        GroupAxis, Tensor
            And the parameter it belongs to.
        """
        tensors = self._tensors()
        for axis in self.axes:
            if axis.producer:
                yield axis, tensors[axis.name]

    def costs(self, kind: Literal["groups", "parameters", "flops"] = "groups") -> Tensor:
        """Count what the removal of each group alone saves.

        Parameters
        ----------
        kind : {"groups", "parameters", "flops"}, default "groups"
            One each; parameters, those of the columns that read the group included; or multiplications and additions
            of linear layers and convolutions on the example inputs.

        Returns
        -------
        Tensor, shape (G,)
            float64. Savings of groups that share entries (rows of one, columns of the other) overlap.

        Raises
        ------
        ArgumentError
            If ``kind`` is unknown.
        """
        if kind not in ("groups", "parameters", "flops"):
            raise ArgumentError(f'costs: kind must be "groups", "parameters" or "flops", got {kind!r}')
        if kind == "groups":
            return torch.ones(self.num_groups, dtype=torch.float64)
        total = torch.zeros(self.num_groups + 1, dtype=torch.float64)
        parameters = dict(self.module.named_parameters())
        for axis in self.axes:
            if axis.name in parameters:
                entries = parameters[axis.name].numel() / len(axis.groups)
                each = entries if kind == "parameters" else 2 * entries * self._uses.get(axis.name, 0.0)
                total.index_add_(0, axis.groups, torch.full((len(axis.groups),), each, dtype=torch.float64))
        return total[:-1]  # the last is where -1 points

    def sizes(self) -> Tensor:
        """Count the parameter entries that are zeroed with each group.

        Returns
        -------
        Tensor, shape (G,)
            float64.
        """
        total = torch.zeros(self.num_groups + 1, dtype=torch.float64)
        for axis, tensor in self.producers():
            each = torch.full((len(axis.groups),), tensor.numel() / len(axis.groups), dtype=torch.float64)
            total.index_add_(0, axis.groups, each)
        return total[:-1]

    @torch.no_grad()
    def zero_groups(self) -> Tensor:
        """Find groups whose producers are exactly zero now.

        Returns
        -------
        Tensor, shape (G,)
            bool, on the CPU.
        """
        alive = torch.zeros(self.num_groups + 1, dtype=torch.bool)
        for axis, tensor in self.producers():
            places = (tensor != 0).movedim(axis.dim, 0).reshape(len(axis.groups), -1).any(1).cpu()
            alive[axis.groups[places]] = True
        return ~alive[:-1]

    @torch.no_grad()
    def zero_(self, groups: Tensor) -> None:
        """Set the producers of some groups to zero, in place.

        Parameters
        ----------
        groups : Tensor, shape (G,)
            bool.
        """
        marked = self._marks(groups)
        for axis, tensor in self.producers():
            places = marked[axis.groups].to(tensor.device)
            shape = [1] * tensor.ndim
            shape[axis.dim] = -1
            tensor.masked_fill_(places.reshape(shape), 0)

    def _marks(self, groups: Tensor) -> Tensor:
        if groups.shape != (self.num_groups,) or groups.dtype != torch.bool:
            raise ArgumentError(
                f"groups: expected a bool tensor of shape ({self.num_groups},), got {groups.dtype} of shape "
                f"{tuple(groups.shape)}"
            )
        return torch.cat([groups.cpu(), torch.zeros(1, dtype=torch.bool)])

    def check_zero_invariance(self, *, fraction: float = 0.5, generator: torch.Generator | None = None) -> float:
        """Zero random groups in a copy and fill what reads them with noise: the output must not notice.

        Parameters
        ----------
        fraction : float, default 0.5
            Share of the groups zeroed.
        generator : torch.Generator, optional
            Source of choice and noise, on the CPU. Default: torch's global generator.

        Returns
        -------
        float
            The largest change of an output, relative to the largest output; the copy is in evaluation mode.

        Raises
        ------
        NumericalError
            If an output is not finite.
        """
        copy = shadow_copy(self.module).eval()
        args, kwargs = call_arguments(self.example_inputs)
        chosen = torch.rand(self.num_groups, generator=generator) < fraction
        marked = self._marks(chosen)
        tensors = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        for axis in self.axes:
            if axis.producer:
                _fill(tensors[axis.name], axis, marked, None)
        with torch.no_grad():
            before = torch.func.functional_call(copy, tensors, args, kwargs)
            for axis in self.axes:
                if not axis.producer and axis.name in self._uses:
                    _fill(tensors[axis.name], axis, marked, generator)
            for axis in self.axes:
                if axis.producer:
                    _fill(tensors[axis.name], axis, marked, None)
            after = torch.func.functional_call(copy, tensors, args, kwargs)
        return output_difference(before, after)

    def summary(self) -> str:
        """List the families, and what may not be cut.

        Returns
        -------
        str
            Several lines.
        """
        sizes = self.sizes()
        lines = [f"{self.num_groups} groups in {len(self._family_axes)} families"]
        for family in self.families:
            names = ", ".join(f"{name}[{dim}]" for name, dim in family.axes[:3])
            more = f" and {len(family.axes) - 3} more" if len(family.axes) > 3 else ""
            lines.append(
                f"  {len(family.groups):6d} groups of {float(sizes[family.groups[0]]):.0f} entries  {names}{more}"
            )
        lines += [f"  not cut  {key}: {why}" for key, why in self.pinned.items()]
        return "\n".join(lines)


def output_difference(left: Any, right: Any) -> float:
    """Compare two outputs of a model, over all their tensors.

    Parameters
    ----------
    left, right : Tensor, or nested containers of them
        Of equal structure.

    Returns
    -------
    float
        Largest difference, relative to the largest entry of ``left``.

    Raises
    ------
    NumericalError
        If a shape differs, or an entry is not finite.
    """
    pairs = [
        (a.double(), b.double())
        for a, b in zip(tree_leaves(left), tree_leaves(right), strict=True)
        if isinstance(a, Tensor) and a.is_floating_point()
    ]
    if any(a.shape != b.shape for a, b in pairs):
        raise NumericalError("the outputs differ in shape")
    if not all(bool(torch.isfinite(a).all() and torch.isfinite(b).all()) for a, b in pairs):
        raise NumericalError("the output of the model has NaN or Inf")
    gap = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    scale = max((float(a.abs().max()) for a, _ in pairs if a.numel()), default=0.0)
    return gap / scale if scale else gap


def _fill(tensor: Tensor, axis: GroupAxis, marked: Tensor, generator: torch.Generator | None) -> None:
    places = marked[axis.groups].nonzero().squeeze(1).to(tensor.device)
    if generator is None and axis.producer:
        tensor.index_fill_(axis.dim, places, 0)
        return
    shape = list(tensor.shape)
    shape[axis.dim] = len(places)
    tensor.index_copy_(axis.dim, places, torch.randn(shape, generator=generator).to(tensor))


def _pin_skipped(flow: Flow, skip: Sequence[str], shapes: Mapping[str, Any]) -> None:
    if isinstance(skip, str):
        raise ArgumentError(f"DependencyGraph: skip must be a sequence of names, got the single string {skip!r}")
    for pattern in skip:
        names = [n for n in shapes if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, f"{pattern}.*")]
        if not names:
            raise ArgumentError(f"DependencyGraph: skip={pattern!r} names no module or parameter")
        for name in names:
            for key, ids in flow.axes.items():
                if key[0] == name and key in flow.producers:
                    flow.channels.pin(ids, f"skip={pattern!r}")
            if name in flow.elements:
                flow.channels.pin(flow.elements[name], f"skip={pattern!r}")


def _settle(flow: Flow) -> None:
    # unite further until every tensor stays a box whichever groups are cut, then place element-wise parameters
    codes = [*flow.boxes, *(2 * ids for ids in flow.elements.values())]
    changed = True
    while changed:
        changed = False
        for tensor in reversed(codes):  # later ones first: an attention head is formed after its projections
            changed |= flow.channels.box(tensor)
    for name, ids in flow.elements.items():
        dims = flow.channels.varying(2 * ids)
        used_otherwise = [key for key in flow.axes if key[0] == name]
        if len(dims) != 1 or used_otherwise:
            flow.channels.pin(ids, "a parameter is used in ways that leave no dimension to cut")
            for key in used_otherwise:
                flow.channels.pin(flow.axes[key], "a parameter is used in ways that leave no dimension to cut")
            continue
        key = (name, dims[0])
        flow.axes[key] = ids.movedim(dims[0], 0).reshape(len(ids.movedim(dims[0], 0)), -1)[:, 0]
        if name in flow.trainable:
            flow.producers.add(key)


def _axes(flow: Flow) -> tuple[list[tuple[Axis, Tensor, bool]], dict[str, str]]:
    # roots along every dimension met, -1 where they may not be cut, and the reasons
    pins = flow.channels.pinned()
    made = {root for key in flow.producers for root in flow.channels.roots(flow.axes[key]).tolist()}
    found: list[tuple[Axis, Tensor, bool]] = []
    reasons: dict[str, str] = {}
    for key, ids in flow.axes.items():
        roots = flow.channels.roots(ids)
        kept = torch.tensor([root not in pins and root in made for root in roots.tolist()])
        if key in flow.producers and not bool(kept.all()):
            reasons[f"{key[0]}[{key[1]}]"] = pins[int(roots[~kept][0])]
        found.append((key, torch.where(kept, roots, -1), key in flow.producers))
    return found, reasons


def _number(
    axes: list[tuple[Axis, Tensor, bool]],
) -> tuple[tuple[GroupAxis, ...], Tensor, list[tuple[Axis, ...]]]:
    # give groups numbers in the order in which their producers come, and families by the dimensions they share
    numbers: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for place, (_, roots, _) in enumerate(axes):
        for root in torch.unique(roots).tolist():
            if root >= 0:
                numbers.setdefault(root, len(numbers))
                members.setdefault(root, []).append(place)
    families: dict[tuple[int, ...], int] = {}
    family_of = torch.tensor(
        [families.setdefault(tuple(members[root]), len(families)) for root in numbers], dtype=torch.int64
    )
    table = tuple(
        GroupAxis(key[0], key[1], torch.tensor([numbers.get(r, -1) for r in roots.tolist()], dtype=torch.int64), made)
        for key, roots, made in axes
        if bool((roots >= 0).any())
    )
    named = [tuple(axes[place][0] for place in places if axes[place][2]) for places in families]
    return table, family_of, named


def _group_numbers(flow: Flow, axes: list[tuple[Axis, Tensor, bool]], table: tuple[GroupAxis, ...]) -> dict[int, int]:
    by_key = {(axis.name, axis.dim): axis.groups for axis in table}
    numbers: dict[int, int] = {}
    for key, roots, _ in axes:
        if key in by_key:
            numbers.update(zip(roots.tolist(), by_key[key].tolist(), strict=True))
    numbers.pop(-1, None)
    return numbers
