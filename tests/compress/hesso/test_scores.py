"""Scores of groups against loops over groups and dense curvature."""

import pytest
import torch
from torch import nn

from benchmarks.compress._hesso_cases import F64, build, seeded
from hesse.compress.graph import DependencyGraph
from hesse.compress.hesso import combine_scores, fisher_scores, group_scores, joint_curvature_scores, obs_scores
from hesse.errors import ArgumentError, ShapeError


def flat_groups(graph, tensors):
    """Every group's producer entries of some named tensors, one flat vector a group."""
    found = []
    for group in graph.groups:
        parts = [
            tensors[s.name].index_select(s.dim, torch.tensor(s.places)).reshape(-1) for s in group.slices if s.producer
        ]
        found.append(torch.cat(parts))
    return found


def directions(module, seed=5):
    generator = seeded(seed)
    return {n: torch.randn(p.shape, dtype=F64, generator=generator) for n, p in module.named_parameters()}


@pytest.mark.parametrize("normalize", ["family", "global"])
@pytest.mark.parametrize("cosine_sign", [1, -1])
def test_scores_are_those_of_the_definition(normalize, cosine_sign):
    """Oracle: a loop over groups in float64."""
    module, x = build("concatenation")
    graph = DependencyGraph(module, x)
    v = directions(module)
    found = group_scores(graph, v, normalize=normalize, cosine_sign=cosine_sign)
    ws = flat_groups(graph, {n: p.detach() for n, p in module.named_parameters()})
    vs = flat_groups(graph, v)
    dots = torch.stack([w @ u for w, u in zip(ws, vs, strict=True)])
    norms, speeds = torch.stack([w.norm() for w in ws]), torch.stack([u.norm() for u in vs])
    raw = [
        norms,
        norms / torch.tensor([float(len(w)) for w in ws]),
        1 + cosine_sign * dots / (norms * speeds),
        dots.abs(),
        0.5 * dots**2,
    ]
    total = torch.zeros(graph.num_groups, dtype=F64)
    for criterion in raw:
        if normalize == "family":
            for family in graph.families:
                criterion[family.groups] /= criterion[family.groups].mean()
        total += 0.2 * criterion / (criterion.norm() + 1e-8)
    torch.testing.assert_close(found, total, rtol=1e-10, atol=1e-12)


def test_heads_are_scored_over_all_their_rows():
    """Oracle: a loop over groups: slices of several rows in one parameter."""
    module, x = build("transformer")
    graph = DependencyGraph(module, x)
    found = group_scores(graph, {}, {"magnitude": 1.0}, normalize="global")
    norms = torch.stack([w.norm() for w in flat_groups(graph, {n: p.detach() for n, p in module.named_parameters()})])
    torch.testing.assert_close(found, norms / (norms.norm() + 1e-8))


def test_missing_and_frozen_parameters():
    """Oracle: by hand: no direction means v = 0, frozen groups have nothing to be judged by, and nothing is NaN."""
    module, x = build("mlp")
    module[0].requires_grad_(False)
    graph = DependencyGraph(module, x)
    first = graph.family_of == graph.family_of[0]
    found = group_scores(graph, {})
    assert torch.isinf(found[first]).all()
    assert torch.isfinite(found[~first]).all()
    graph.zero_(torch.ones(graph.num_groups, dtype=torch.bool))
    assert torch.isfinite(group_scores(graph, directions(module))[~first]).all()
    module.requires_grad_(False)
    assert torch.isinf(group_scores(graph, {})).all()


def test_scores_of_your_own():
    """Oracle: by hand: the extra criterion alone, normalised."""
    graph = DependencyGraph(*build("mlp"))
    own = torch.arange(1.0, graph.num_groups + 1, dtype=F64)
    found = group_scores(graph, {}, {"mine": 2.0}, normalize="global", extra={"mine": own})
    torch.testing.assert_close(found, 2 * own / (own.norm() + 1e-8))


def test_bad_input_is_refused():
    """Oracle: the errors promised."""
    graph = DependencyGraph(*build("mlp"))
    for criteria in ({"size": 1.0}, {"taylor": -1.0}, {"taylor": float("nan")}, {}):
        with pytest.raises(ArgumentError, match="criteria"):
            group_scores(graph, {}, criteria)
    with pytest.raises(ArgumentError, match="normalize"):
        group_scores(graph, {}, normalize="layer")
    with pytest.raises(ArgumentError, match="cosine_sign"):
        group_scores(graph, {}, cosine_sign=0)
    with pytest.raises(ShapeError, match=r"0\.weight"):
        group_scores(graph, {"0.weight": torch.zeros(3)})
    with pytest.raises(ShapeError, match="mine"):
        group_scores(graph, {}, {"mine": 1.0}, extra={"mine": torch.zeros(2)})
    with pytest.raises(ShapeError, match="gradients"):
        fisher_scores(graph, torch.zeros(4, 3))
    with pytest.raises(ArgumentError, match="damping"):
        obs_scores(graph, torch.zeros(4, 3), 0.0)
    with pytest.raises(ArgumentError, match="criteria"):
        combine_scores({}, {}, graph.family_of)


def dense_case():
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    graph = DependencyGraph(module, torch.zeros(1, 3, dtype=F64))
    size = sum(p.numel() for p in module.parameters())
    columns = {}
    start = 0
    for name, p in module.named_parameters():
        columns[name] = torch.arange(start, start + p.numel()).reshape(p.shape)
        start += p.numel()
    w = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    return graph, size, flat_groups(graph, columns), w


def test_fisher_scores_are_those_of_the_dense_matrix():
    """Oracle: blocks of the dense float64 Fisher matrix."""
    graph, size, places, w = dense_case()
    G = torch.randn(7, size, dtype=F64, generator=seeded(2))
    F = G.mT @ G / 7
    wanted = torch.stack([0.5 * w[p] @ F[p][:, p] @ w[p] for p in places])
    torch.testing.assert_close(fisher_scores(graph, G), wanted, rtol=1e-10, atol=0)


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_obs_scores_are_those_of_the_dense_inverse(damping):
    """Oracle: blocks of the dense inverse; and a bound: making up for a group cannot cost more than not doing so."""
    graph, size, places, w = dense_case()
    G = torch.randn(7, size, dtype=F64, generator=seeded(2))
    inverse = torch.linalg.inv(damping * torch.eye(size, dtype=F64) + G.mT @ G / 7)
    wanted = torch.stack([0.5 * w[p] @ torch.linalg.solve(inverse[p][:, p], w[p]) for p in places])
    found = obs_scores(graph, G, damping)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    squares = torch.stack([w[p].square().sum() for p in places])
    assert (found <= fisher_scores(graph, G) + 0.5 * damping * squares + 1e-12).all()


def test_joint_scores_share_out_the_quadratic_form():
    """Oracle: a dense symmetric matrix, entry by entry; without coupling the shares are the groups' own forms."""
    graph, size, places, w = dense_case()
    m = torch.randn(size, size, dtype=F64, generator=seeded(3))
    m = m + m.mT
    found = joint_curvature_scores(graph, lambda x: m @ x)
    torch.testing.assert_close(found, torch.stack([0.5 * (w[p] @ (m @ w)[p]).abs() for p in places]))
    d = torch.rand(size, dtype=F64, generator=seeded(4))
    found = joint_curvature_scores(graph, lambda x: d * x)
    torch.testing.assert_close(found, torch.stack([0.5 * (d[p] * w[p] ** 2).sum() for p in places]))
    with pytest.raises(ShapeError, match="product"):
        joint_curvature_scores(graph, lambda x: x[1:])


def test_curvature_operators_serve():
    """Oracle: the dense Gauss-Newton matrix that the operator stands for."""
    from hesse.curvature import ggn

    graph, size, places, w = dense_case()
    x = torch.randn(6, 3, dtype=F64, generator=seeded(6))
    y = torch.randint(2, (6,), generator=seeded(7))
    operator = ggn(lambda model, batch: model(batch[0]), graph.module, [(x, y)])
    dense = operator @ torch.eye(size, dtype=F64)
    found = joint_curvature_scores(graph, operator.matvec)
    torch.testing.assert_close(found, torch.stack([0.5 * (w[p] @ (dense @ w)[p]).abs() for p in places]))
