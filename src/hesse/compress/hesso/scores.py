"""How redundant each group looks: low scores are cut first.   Shapes: G groups, P parameters, M gradients."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from hesse.compress.graph import DependencyGraph, GroupAxis
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import ParameterLayout

__all__ = [
    "CRITERIA",
    "Normalization",
    "combine_scores",
    "fisher_scores",
    "group_scores",
    "joint_curvature_scores",
    "obs_scores",
]

Normalization = Literal["family", "global"]
CRITERIA: dict[str, float] = {
    "magnitude": 0.2,
    "mean_magnitude": 0.2,
    "cosine": 0.2,
    "taylor": 0.2,
    "taylor_squared": 0.2,
}
"""Names of the criteria that `group_scores` knows, with their default weights."""


@torch.no_grad()
def group_scores(
    graph: DependencyGraph,
    directions: Mapping[str, Tensor],
    criteria: Mapping[str, float] | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
    normalize: Normalization = "family",
    cosine_sign: int = 1,
    extra: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Score every group by its parameters w_g and a direction v_g in which they are about to change, as w - lr v.

    magnitude ‖w_g‖,   mean_magnitude ‖w_g‖ / |g|,   cosine 1 ± cos(w_g, v_g),   taylor |w_g·v_g|,
    taylor_squared ½ (w_g·v_g)²;   each normalised by `combine_scores`, weighted and summed

    Parameters
    ----------
    graph : DependencyGraph
        Of the network; its trainable producers make up w_g.
    directions : mapping of str to Tensor
        v by parameter name: gradients, or the optimiser's updates. A parameter that is missing has v = 0.
    criteria : mapping of str to float, optional
        Weights >= 0 by name; a name that is none of the five must be in ``extra``. Default: 0.2 each of the five.
    weights : mapping of str to Tensor, optional
        Values to take for w. Default: those of the module.
    normalize : {"family", "global"}, default "family"
        See `combine_scores`.
    cosine_sign : {1, -1}, default 1
        Sign of the cosine. cos > 0 says that the step itself takes the group towards zero; with +1, as the authors'
        code has it, that speaks for keeping the group.
    extra : mapping of str to Tensor, shape (G,), optional
        Further criteria, such as `obs_scores`.

    Returns
    -------
    Tensor, shape (G,)
        On the device of the parameters, float64 for float64 parameters, else float32. Never NaN for finite input;
        infinite for groups without trainable parameters, which have nothing to be judged by.

    Raises
    ------
    ArgumentError
        If a criterion is unknown, a weight negative or not finite, or ``normalize`` or ``cosine_sign`` out of range.
    ShapeError
        If a direction or an extra score does not fit.

    Notes
    -----
    One pass over the parameters, O(P). Sums run in float32 or wider.

    References
    ----------
    T. Chen et al. (2024), arXiv 2409.09085.
    """
    chosen = check_criteria("group_scores", criteria, extra or ())
    check_options("group_scores", normalize, cosine_sign)
    sums, reference = _Sums(graph), None
    for axis, parameter in graph.producers():
        if not parameter.requires_grad:
            continue
        w = parameter if weights is None else weights[axis.name]
        v = directions.get(axis.name)
        if v is not None and v.shape != w.shape:
            raise ShapeError(
                f"group_scores: the direction of {axis.name} has shape {tuple(v.shape)}, the parameter {tuple(w.shape)}"
            )
        sums.add(axis, w, v)
        reference = w
    if reference is None:
        return torch.full((graph.num_groups,), torch.inf)
    length, speed = sums.square.sqrt(), sums.direction_square.sqrt()
    known = sums.count > 0
    raw = {
        "magnitude": length,
        "mean_magnitude": length / sums.count.clamp_min(1),
        "cosine": 1 + cosine_sign * sums.dot / (length * speed).clamp_min(torch.finfo(length.dtype).tiny),
        "taylor": sums.dot.abs(),
        "taylor_squared": 0.5 * sums.dot.square(),
    }
    for name, value in (extra or {}).items():
        if value.shape != (graph.num_groups,):
            raise ShapeError(f"group_scores: expected {name} of shape ({graph.num_groups},), got {tuple(value.shape)}")
        raw[name] = value.to(length)
    found = combine_scores({name: raw[name] for name in chosen}, chosen, graph.family_of, normalize=normalize)
    return torch.where(known, found, torch.inf)


def combine_scores(
    raw: Mapping[str, Tensor],
    criteria: Mapping[str, float],
    family_of: Tensor,
    *,
    normalize: Normalization = "family",
) -> Tensor:
    """Add criteria of different units up: each is divided by its L2 norm over all groups.

    Parameters
    ----------
    raw : mapping of str to Tensor, shape (G,)
        Criteria, none negative.
    criteria : mapping of str to float
        Weight of each.
    family_of : Tensor, shape (G,)
        Family of every group.
    normalize : {"family", "global"}, default "family"
        "family" first divides a criterion by its mean within the family, so that families of few large groups and of
        many small ones are cut evenly; "global", the published rule, compares them as they are.

    Returns
    -------
    Tensor, shape (G,)
        The weighted sum.

    Raises
    ------
    ArgumentError
        If there is no criterion.
    """
    total = None
    for name, weight in criteria.items():
        value = raw[name]
        if normalize == "family":
            families = family_of.to(value.device)
            count = torch.bincount(families)
            mean = torch.zeros(len(count), dtype=value.dtype, device=value.device).index_add(0, families, value) / count
            value = value / mean.clamp_min(torch.finfo(value.dtype).tiny)[families]
        value = weight * value / (torch.linalg.vector_norm(value) + 1e-8)
        total = value if total is None else total + value
    if total is None:
        raise ArgumentError("combine_scores: criteria is empty")
    return total


@torch.no_grad()
def fisher_scores(graph: DependencyGraph, gradients: Tensor) -> Tensor:
    """½ w_gᵀ F_gg w_g, F = (1/M) Σ_i g_i g_iᵀ the empirical Fisher matrix: what zeroing a group would cost.

    Parameters
    ----------
    graph : DependencyGraph
        Of the network.
    gradients : Tensor, shape (M, P)
        Gradients as rows, of single examples or batches, in the order of the module's parameters that require one (see
        `hesse.curvature.gradient_rows`).

    Returns
    -------
    Tensor, shape (G,)
        In units of the loss. Exact for F; no matrix is formed, O(M P).

    Raises
    ------
    ShapeError
        If ``gradients`` has not P columns.
    """
    groups = _group_columns(graph, gradients, "fisher_scores")
    dots = torch.zeros(len(gradients), graph.num_groups + 1, dtype=gradients.dtype, device=gradients.device)
    for columns, index, w in groups:
        dots.index_add_(1, index, gradients[:, columns] * w)
    return 0.5 * dots[:, :-1].square().mean(0)


@torch.no_grad()
def obs_scores(graph: DependencyGraph, gradients: Tensor, damping: float = 1e-3) -> Tensor:
    """½ w_gᵀ ([F⁻¹]_gg)⁻¹ w_g: the loss that a group costs if all other parameters are moved to make up for it.

    With F = λI + (1/M) GᵀG, a_g = G_g w_g and S = MλI + GGᵀ the inverse of the block is closed:
    w_gᵀ ([F⁻¹]_gg)⁻¹ w_g = λ (‖w_g‖² + a_gᵀ (S - G_g G_gᵀ)⁻¹ a_g)

    Parameters
    ----------
    graph : DependencyGraph
        Of the network.
    gradients : Tensor, shape (M, P)
        G, as for `fisher_scores`.
    damping : float, default 1e-3
        λ > 0, in the units of a squared gradient.

    Returns
    -------
    Tensor, shape (G,)
        In units of the loss; at most `fisher_scores` plus ½ λ ‖w_g‖².

    Raises
    ------
    ArgumentError
        If ``damping`` is not positive.
    ShapeError
        If ``gradients`` has not P columns.

    Notes
    -----
    O(M² P) for all blocks and O(M³) for each group: keep M in the hundreds.

    References
    ----------
    B. Hassibi, D. G. Stork (1992), NeurIPS, for a single weight; E. Kurtic et al. (2022), arXiv 2203.07259, for blocks.
    """
    if not (damping > 0 and math.isfinite(damping)):
        raise ArgumentError(f"obs_scores: expected damping > 0, got {damping}")
    groups = _group_columns(graph, gradients, "obs_scores")
    columns = torch.cat([c for c, _, _ in groups])
    index = torch.cat([i for _, i, _ in groups])
    w = torch.cat([v for _, _, v in groups])
    m = len(gradients)
    whole = gradients @ gradients.mT + m * damping * torch.eye(m, dtype=gradients.dtype, device=gradients.device)
    order = torch.argsort(index, stable=True)
    counts = torch.bincount(index, minlength=graph.num_groups + 1)[:-1].tolist()
    found = []
    start = int((index < 0).sum())
    for count in counts:
        places = order[start : start + count]
        start += count
        block, w_g = gradients[:, columns[places]], w[places]
        a = block @ w_g
        rest = torch.linalg.solve(whole - block @ block.mT, a)
        found.append(0.5 * damping * (w_g.square().sum() + a @ rest))
    return torch.stack(found)


@torch.no_grad()
def joint_curvature_scores(graph: DependencyGraph, product: Callable[[Tensor], Tensor]) -> Tensor:
    """½ |w_g · (H w)_g|: a group's share in ½ wᵀHw, from one product with a curvature matrix H.

    Shares of all groups that cover the parameters once add up to ½ wᵀHw (before the absolute value), couplings between
    groups being split evenly; they equal ½ w_gᵀ H_gg w_g only where H has no entries between groups.

    Parameters
    ----------
    graph : DependencyGraph
        Of the network.
    product : callable
        (P,) -> (P,), such as ``operator.matvec`` of `hesse.curvature.ggn` over the parameters that require a gradient.

    Returns
    -------
    Tensor, shape (G,)
        In units of the loss.

    Raises
    ------
    ShapeError
        If the product does not give P numbers.
    """
    trainable = {n: p.detach() for n, p in graph.module.named_parameters() if p.requires_grad}
    layout = ParameterLayout.of(trainable)
    flat = layout.flatten(trainable)
    image = product(flat)
    if image.shape != flat.shape:
        raise ShapeError(f"joint_curvature_scores: the product gives {tuple(image.shape)}, not {tuple(flat.shape)}")
    sums, parts = _Sums(graph), layout.unflatten(image)
    for axis, parameter in graph.producers():
        if parameter.requires_grad:
            sums.add(axis, parameter, parts[axis.name])
    return 0.5 * sums.dot.abs()


def check_criteria(caller: str, criteria: Mapping[str, float] | None, extra: Collection[str]) -> dict[str, float]:
    """Refuse criteria that are unknown or weighted wrongly.

    Parameters
    ----------
    caller : str
        For the message.
    criteria : mapping of str to float, optional
        As given by the user.
    extra : collection of str
        Names of further criteria.

    Returns
    -------
    dict of str to float
        Weights, the defaults filled in.

    Raises
    ------
    ArgumentError
        If a name or weight is wrong.
    """
    chosen = dict(CRITERIA if criteria is None else criteria)
    names = {*CRITERIA, *extra}
    if criteria is None:
        chosen |= dict.fromkeys(names - set(CRITERIA), 0.2)
    if not chosen:
        raise ArgumentError(f"{caller}: criteria is empty")
    for name, weight in chosen.items():
        if name not in names:
            raise ArgumentError(
                f"{caller}: criteria names no criterion: {name!r}; there are {', '.join(sorted(names))}"
            )
        if not (weight >= 0 and math.isfinite(weight)):
            raise ArgumentError(f"{caller}: expected criteria[{name!r}] >= 0, got {weight}")
    return chosen


def check_options(caller: str, normalize: str, cosine_sign: int) -> None:
    """Refuse options that have no such value.

    Parameters
    ----------
    caller : str
        For the message.
    normalize, cosine_sign
        As given by the user.

    Raises
    ------
    ArgumentError
        If one is out of range.
    """
    if normalize not in ("family", "global"):
        raise ArgumentError(f'{caller}: normalize must be "family" or "global", got {normalize!r}')
    if cosine_sign not in (1, -1):
        raise ArgumentError(f"{caller}: cosine_sign must be 1 or -1, got {cosine_sign}")


class _Sums:
    # inner products of every group, gathered parameter by parameter; the last place is where -1 points
    def __init__(self, graph: DependencyGraph) -> None:
        dtype, device = torch.float32, torch.device("cpu")
        for _, parameter in graph.producers():
            dtype = torch.promote_types(dtype, parameter.dtype)
            device = parameter.device
        self._total = torch.zeros(4, graph.num_groups + 1, dtype=dtype, device=device)

    def add(self, axis: GroupAxis, w: Tensor, v: Tensor | None) -> None:
        index = axis.groups.to(self._total.device) % self._total.shape[1]
        wide = w.detach().to(self._total).movedim(axis.dim, 0).reshape(len(index), -1)
        other = torch.zeros_like(wide) if v is None else v.to(self._total).movedim(axis.dim, 0).reshape(len(index), -1)
        each = torch.stack(
            [
                wide.square().sum(1),
                (wide * other).sum(1),
                other.square().sum(1),
                torch.full_like(wide[:, 0], wide.shape[1]),
            ]
        )
        self._total.index_add_(1, index, each)

    @property
    def square(self) -> Tensor:
        return self._total[0, :-1]

    @property
    def dot(self) -> Tensor:
        return self._total[1, :-1]

    @property
    def direction_square(self) -> Tensor:
        return self._total[2, :-1]

    @property
    def count(self) -> Tensor:
        return self._total[3, :-1]


def _group_columns(graph: DependencyGraph, gradients: Tensor, caller: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    # for every producer the columns of its entries, the group of each (-1 for none) and its value
    trainable = {n: p.detach() for n, p in graph.module.named_parameters() if p.requires_grad}
    layout = ParameterLayout.of(trainable)
    if gradients.ndim != 2 or gradients.shape[1] != layout.size:
        raise ShapeError(f"{caller}: expected gradients of shape (M, {layout.size}), got {tuple(gradients.shape)}")
    found = []
    for axis, parameter in graph.producers():
        if parameter.requires_grad:
            place = [1] * parameter.ndim
            place[axis.dim] = -1
            index = axis.groups.to(gradients.device).reshape(place).expand(parameter.shape).reshape(-1)
            span = layout.slice(axis.name)
            columns = torch.arange(span.start, span.stop, device=gradients.device)
            found.append((columns, index, parameter.detach().reshape(-1).to(gradients)))
    return found
