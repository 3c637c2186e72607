"""Documents as layers of bound sums, and the vectors of whole batches of them, layer by layer.

Every inner node, an object, the order of an array, its bag, or the two together, is the sum of its bound children
brought to length 1. Nodes of one depth and one role are bound in one gather.

Shapes: L distinct leaves, C inner nodes, D dimension.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.vsa.mbat.algebra import unit
from hesse.vsa.mbat.binding import OrthogonalBinding
from hesse.vsa.mbat.leaves import LeafCoder, LeafKey
from hesse.vsa.mbat.recipe import BAG, ORDERED, Recipe, RolePath, position_role, step_pattern

__all__ = ["Graph", "Term", "build_graph", "leaf_terms", "node_vectors", "root_vectors"]


@dataclass(slots=True)
class Edges:
    """Children of one role at one depth; the four lists run side by side."""

    children: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)  # of patterns; "" where the pattern stays


@dataclass(slots=True)
class Graph:
    """A batch of documents. A leaf is referred to by its number, inner node i by -1-i."""

    leaves: dict[LeafKey, int] = field(default_factory=dict)
    roots: list[int] = field(default_factory=list)
    levels: list[dict[RolePath, Edges]] = field(default_factory=list)  # by depth of the parent
    nodes: list[list[int]] = field(default_factory=list)  # by depth
    num_nodes: int = 0

    def new_node(self, depth: int) -> int:
        """Add an inner node."""  # noqa: DOC201
        while len(self.nodes) <= depth:
            self.nodes.append([])
            self.levels.append({})
        self.nodes[depth].append(self.num_nodes)
        self.num_nodes += 1
        return self.num_nodes - 1

    def add_edge(self, depth: int, role: RolePath, parent: int, child: int, weight: float, step: str) -> None:
        """Put a child under a parent of the depth given."""
        edges = self.levels[depth].get(role)
        if edges is None:
            edges = self.levels[depth][role] = Edges()
        edges.children.append(child)
        edges.parents.append(parent)
        edges.weights.append(weight)
        edges.steps.append(step)


Link = tuple[int, RolePath, float, str]  # parent, role, weight, step of the pattern


def build_graph(documents: Iterable[Any], recipe: Recipe, pattern: str = "") -> Graph:
    """Take documents apart, without recursion, so that their depth is bounded by memory alone.

    Parameters
    ----------
    documents : iterable
        JSON values.
    recipe : Recipe
        Roles, weights and leaf codes.
    pattern : str, default ""
        Where the documents stand, if they are parts of others.

    Returns
    -------
    Graph
        Equal leaves are one. O(size of the documents).
    """
    graph = Graph()
    for document in documents:
        graph.roots.append(_add_document(graph, document, recipe, pattern))
    return graph


def _add_document(graph: Graph, document: Any, recipe: Recipe, top: str) -> int:
    root = 0
    first = True
    leaves, ordered_weight, bag_weight = graph.leaves, *recipe.array
    stack: list[tuple[Any, str, int, list[Link]]] = [(document, top, 0, [])]  # value, pattern, its depth, its parents
    while stack:
        value, pattern, depth, links = stack.pop()
        key = recipe.leaf(value, pattern)
        reference = leaves.setdefault(key, len(leaves)) if key is not None else -1 - graph.new_node(depth)
        for parent, role, weight, step in links:
            graph.add_edge(depth - 1, role, parent, reference, weight, step)
        if first:
            root, first = reference, False
        if key is not None:
            continue
        node = -1 - reference
        if isinstance(value, dict):
            for name, below in value.items():
                place = pattern + step_pattern(name) if isinstance(name, str) else pattern
                terms = recipe.key_terms(name, place)
                if terms:
                    step = step_pattern(name)
                    stack.append((below, place, depth + 1, [(node, role, weight, step) for role, weight in terms]))
            continue
        ordered = graph.new_node(depth + 1) if ordered_weight else None
        bag = graph.new_node(depth + 1) if bag_weight else None
        if ordered is not None:
            graph.add_edge(depth, ORDERED, node, -1 - ordered, ordered_weight, "")
        if bag is not None:
            graph.add_edge(depth, BAG, node, -1 - bag, bag_weight, "")
        place = pattern + "/*"
        for i, below in enumerate(value):
            links: list[Link] = [] if bag is None else [(bag, (), 1.0, "/*")]
            role = position_role(i, len(value))
            if ordered is not None and role is not None:
                links.append((ordered, role, 1.0, "/*"))
            if links:
                stack.append((below, place, depth + 2, links))
    return root


def node_vectors(graph: Graph, coder: LeafCoder, binding: OrthogonalBinding) -> tuple[Tensor, Tensor]:
    """Compute the vector of every leaf and node, the deepest first.

    Parameters
    ----------
    graph : Graph
        From `build_graph`.
    coder : LeafCoder
        Codes of leaves.
    binding : OrthogonalBinding
        The matrices.

    Returns
    -------
    vectors : Tensor, shape (L + C, D)
        Leaves, then nodes, each of length 1 (0 for a node all of whose weights are 0).
    lengths : Tensor, shape (C,)
        Of the nodes' sums before.
    """
    num_leaves = len(graph.leaves)
    codes = coder.codes(list(graph.leaves))
    vectors = codes.new_zeros(num_leaves + graph.num_nodes, binding.dim)
    vectors[:num_leaves] = codes
    lengths = codes.new_zeros(graph.num_nodes)
    for edges_by_role, nodes in zip(reversed(graph.levels), reversed(graph.nodes), strict=True):
        for role in sorted(edges_by_role):  # one order of summation, whatever the order of keys
            edges = edges_by_role[role]
            rows = [child if child >= 0 else num_leaves - 1 - child for child in edges.children]
            bound = binding.bind(role, vectors[torch.tensor(rows, device=vectors.device)])
            if any(weight != 1 for weight in edges.weights):
                bound = bound * bound.new_tensor(edges.weights).unsqueeze(1)
            parents = torch.tensor(edges.parents, device=vectors.device) + num_leaves
            vectors.index_add_(0, parents, bound)
        places = torch.tensor(nodes, device=vectors.device)
        sums = vectors[places + num_leaves]
        lengths[places] = torch.linalg.vector_norm(sums, dim=-1)
        vectors[places + num_leaves] = unit(sums)
    return vectors, lengths


def root_vectors(graph: Graph, vectors: Tensor) -> Tensor:
    """Pick the vectors of the documents.

    Parameters
    ----------
    graph : Graph
        From `build_graph`.
    vectors : Tensor, shape (L + C, D)
        From `node_vectors`.

    Returns
    -------
    Tensor, shape (documents, D)
        In their order.
    """
    num_leaves = len(graph.leaves)
    rows = [root if root >= 0 else num_leaves - 1 - root for root in graph.roots]
    return vectors[torch.tensor(rows, dtype=torch.int64, device=vectors.device)]


@dataclass(frozen=True, slots=True)
class Term:
    """One leaf's share of a document's vector."""

    pattern: str
    part: str  # which of the terms at that pattern: the roles on the way to it
    leaf: int
    roles: RolePath
    coefficient: float


def leaf_terms(graph: Graph, lengths: Tensor) -> Iterator[Term]:
    """Write the vector of a batch's only document as a sum over its leaves.

    Parameters
    ----------
    graph : Graph
        Of one document.
    lengths : Tensor, shape (C,)
        From `node_vectors`.

    Yields
    ------
    Term
        ``coefficient`` times the product of the matrices of ``roles`` times the leaf's code.
    """
    children: dict[int, list[tuple[RolePath, int, float, str]]] = {}
    for edges_by_role in graph.levels:
        for role, edges in edges_by_role.items():
            for child, parent, weight, step in zip(
                edges.children, edges.parents, edges.weights, edges.steps, strict=True
            ):
                children.setdefault(parent, []).append((role, child, weight, step))
    sizes = lengths.tolist()
    stack: list[tuple[int, str, RolePath, float]] = [(graph.roots[0], "", (), 1.0)]
    while stack:
        reference, pattern, roles, coefficient = stack.pop()
        if reference >= 0:
            yield Term(pattern, " ".join(roles), reference, roles, coefficient)
            continue
        size = sizes[-1 - reference] or 1.0
        for role, child, weight, step in children.get(-1 - reference, ()):
            stack.append((child, pattern + step, (*roles, *role), coefficient * weight / size))
