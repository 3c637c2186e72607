"""The head against the conformance suite, a loop over classes, and its invariances."""

import copy
import math

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import GrassmannParameter, orthonormalize, principal_angles
from hesse.nn import GrassmannLinear
from hesse.testing import check_layer

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(subspace_dim=3, **options) -> GrassmannLinear:
    return GrassmannLinear(9, 4, subspace_dim, generator=seeded(), dtype=F64, **options)


def features(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 9, dtype=F64, generator=seeded(1))


@pytest.mark.parametrize(
    "options", [{}, {"learn_gamma": True}, {"subspace_dim": [1, 4, 2, 3]}], ids=["plain", "gamma", "unequal"]
)
def test_the_layer_keeps_its_promises(options):
    """Oracle: the conformance suite."""
    assert len(check_layer(lambda: GrassmannLinear(9, 4, **({"subspace_dim": 3} | options)), (9,))) == 14


@pytest.mark.parametrize("dims", [3, [1, 4, 2, 3]])
def test_logits(dims):
    """Oracle: a loop over rows and classes."""
    layer, f = head(dims, eps=0.0), features()
    logits = layer(f).detach()
    for c in range(4):
        S = layer.subspace(c).detach()
        torch.testing.assert_close(S.mT @ S, torch.eye(S.shape[1], dtype=F64), rtol=0, atol=1e-14)
        torch.testing.assert_close(layer.projector(c), S @ S.mT)
        for row, found in zip(f, logits[:, c], strict=True):
            assert float(found) == pytest.approx(25 * float((S.mT @ row).norm() / row.norm()), abs=1e-10)
    assert float(logits.max()) <= 25
    torch.testing.assert_close(layer.open_set_score(f).detach(), logits.amax(1) / 25)
    torch.testing.assert_close(layer.principal_angles(0, 1), principal_angles(layer.subspace(0), layer.subspace(1)))


def test_only_the_span_and_the_direction_count():
    """Oracle: invariance under rotations of a basis and lengths of features; at k = 1 the absolute cosine."""
    layer, f = head(eps=0.0), features()
    before = layer(f)
    with torch.no_grad():
        layer.weight.copy_(layer.weight @ orthonormalize(torch.randn(4, 3, 3, dtype=F64, generator=seeded(2))))
    torch.testing.assert_close(layer(f), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(-7 * f), before, rtol=0, atol=1e-12)
    line = head(1, eps=0.0)
    cosines = nn.functional.cosine_similarity(f[:, None], line.weight.detach().squeeze(-1), dim=-1)
    torch.testing.assert_close(line(f), 25 * cosines.abs(), rtol=0, atol=1e-12)


def test_all_derivatives_at_a_zero_feature_are_finite():
    """Oracle: no NaN or Inf in gradient and Hessian."""
    layer = head()
    zero = torch.zeros(9, dtype=F64)
    value = nn.functional.cross_entropy
    hessian = torch.autograd.functional.hessian(lambda f: value(layer(f), torch.tensor(1)), zero)
    assert bool(torch.isfinite(hessian).all())
    torch.testing.assert_close(layer(zero), torch.full((4,), 25e-6, dtype=F64))


def test_padding_columns_have_no_gradient():
    """Oracle: exact zeros, which is what keeps them zero while training."""
    layer = head([1, 4, 2, 3])
    nn.functional.cross_entropy(layer(features()), torch.tensor([0, 1, 2, 3, 0, 1])).backward()
    for c, k in enumerate(layer.subspace_dims):
        assert not bool(layer.weight.grad[c, :, k:].any())
        assert bool(layer.weight.grad[c, :, :k].any())


def test_mixed_precision_stays_wide():
    """Oracle: the float32 logits of the rounded features, inside autocast and without it."""
    layer = GrassmannLinear(9, 4, 3, generator=seeded())
    f = features().bfloat16()
    expected = layer(f.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(f), expected)
    assert torch.equal(layer(f), expected)
    with pytest.raises(ShapeError, match="float64 features"):
        layer(features())


def test_the_weight_stays_a_subspace_parameter():
    """Oracle: its type after everything torch does to parameters."""
    for moved in (
        head().float(),
        copy.deepcopy(head()),
        head().to("meta"),
    ):
        assert isinstance(moved.weight, GrassmannParameter)
    with torch.device("meta"):
        empty = GrassmannLinear(9, 4, 3)
    empty.load_state_dict(head().state_dict(), assign=True)
    assert isinstance(empty.weight, GrassmannParameter)
    torch.testing.assert_close(empty(features()), head()(features()))


def test_from_subspaces():
    """Oracle: the bases given."""
    layer = head([1, 4, 2, 3])
    bases = [layer.subspace(c).detach() for c in range(4)]
    again = GrassmannLinear.from_subspaces(bases, gamma=10.0, learn_gamma=True)
    assert again.subspace_dims == (1, 4, 2, 3)
    torch.testing.assert_close(again(features()), 0.4 * layer(features()), rtol=0, atol=1e-12)
    assert float(again.gamma.detach()) == pytest.approx(10)
    with pytest.raises(ShapeError, match="bases"):
        GrassmannLinear.from_subspaces([bases[0], bases[1][:5]])
    with pytest.raises(ArgumentError, match=r"bases\[1\]"):
        GrassmannLinear.from_subspaces([bases[0], 2 * bases[1]])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"subspace_dim": 9}, ArgumentError, "same logit"),
        ({"subspace_dim": 0}, ArgumentError, "subspace_dim"),
        ({"subspace_dim": [1, 2]}, ShapeError, "subspace_dim"),
        ({"num_classes": 1}, ArgumentError, "num_classes"),
        ({"gamma": math.inf}, ArgumentError, "gamma"),
        ({"eps": -1.0}, ArgumentError, "eps"),
        ({"dtype": torch.float16}, ShapeError, "dtype"),
    ],
)
def test_bad_arguments(arguments, error, match):
    """Oracle: the error names the argument."""
    with pytest.raises(error, match=match):
        GrassmannLinear(**({"in_features": 9, "num_classes": 4} | arguments))


def test_small_gamma_warns():
    """Oracle: a warning below 5, and below log C where that is more."""
    with pytest.warns(UserWarning, match="gamma = 4"):
        head(gamma=4.0)
    with pytest.warns(UserWarning, match="gamma = 6"):
        GrassmannLinear(3, 1000, 1, gamma=6.0)
    assert "subspace_dim=3, gamma=25" in repr(head())
