"""Contexts: the elements they hand to the layers of a network."""

import dataclasses

import pytest
import torch

from hesse.equivariant.lie import SL, SO, GLPlus, SampleContext
from hesse.errors import ArgumentError, ArgumentTypeError

F64 = torch.float64


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("group", [GLPlus(2), SL(2), SO(2), GLPlus(3)])
def test_relative_elements_of_a_lattice_never_change(group):
    """Invariance: h_i⁻¹h_j is the same in every draw; all layers get one set; elements belong to the group."""
    context = SampleContext(group)
    first, other = context.draw(2, generator=_seeded(), dtype=F64)
    assert first is other
    fixed = context.fixed_samples(3, seed=5, dtype=F64)
    sets = [first, *context.draw(generator=_seeded(1), dtype=F64), *(draw[0] for draw in fixed)]
    relative = [part.h_inv[:, None] @ part.h for part in sets]
    for one in relative[1:]:
        torch.testing.assert_close(one, relative[0], rtol=1e-12, atol=1e-12)
    for part in sets:
        assert bool(group.contains(part.h).all())
        torch.testing.assert_close(part.h @ part.h_inv, torch.eye(group.n, dtype=F64).expand_as(part.h))
    assert not torch.allclose(sets[0].h, sets[1].h)


def test_lattice_of_the_plane_is_a_polygon_times_one_stretch():
    """Oracle: the definition. One P for all elements, angles a step apart."""
    group = GLPlus(2)
    [part] = SampleContext(group).draw(generator=_seeded(), dtype=F64)
    X, R = group.decompose(part.h)
    # U h₀ = P R h₀: the stretch is U's, from the left
    torch.testing.assert_close(X, X[:1].expand_as(X))
    angles = torch.atan2(R[:, 1, 0], R[:, 0, 0])
    torch.testing.assert_close(torch.remainder(angles.diff(), 2 * torch.pi), torch.full((7,), torch.pi / 4, dtype=F64))


def test_spread_lattice_holds_several_stretches():
    """Oracle: the definition. N / 3 rotations of each of three stretches, the first of them the identity."""
    context = SampleContext(GLPlus(2), num_samples=12, num_stretches=3)
    assert context.spread
    assert not dataclasses.replace(context, num_stretches=1).spread
    [part] = context.draw(generator=_seeded(), dtype=F64)
    X, _ = GLPlus(2).decompose(part.h_inv[:1] @ part.h)
    sizes = torch.linalg.matrix_norm(X).reshape(3, 4)
    torch.testing.assert_close(sizes[0], torch.zeros(4, dtype=F64), rtol=0, atol=1e-7)
    assert bool((sizes[1:] > 0.05).all())


def test_independent_sets_differ_and_official_angles_do_not():
    """Oracle: the definitions."""
    context = SampleContext(GLPlus(2), sampling="independent", measure="haar")
    first, other = context.draw(2, generator=_seeded(), dtype=F64)
    assert not torch.allclose(first.h, other.h)
    assert first.weight.std() > 0
    official = SampleContext(GLPlus(2), sampling="official")
    angles = []
    for part in official.draw(2, generator=_seeded(), dtype=F64):
        torch.testing.assert_close(part.h @ part.h_inv, torch.eye(2, dtype=F64).expand_as(part.h))
        R = GLPlus(2).decompose(part.h)[1]
        angles.append(torch.remainder(torch.atan2(R[:, 1, 0], R[:, 0, 0]) + 1e-9, 2 * torch.pi))
    torch.testing.assert_close(angles[0], angles[1])
    torch.testing.assert_close(angles[0], torch.arange(8, dtype=F64) * torch.pi / 4, rtol=0, atol=1e-8)


def test_fixed_samples_are_fixed_and_even():
    """Oracle: the seed; and stratification: of 16 draws, one angle in each sixteenth of a step."""
    context = SampleContext(GLPlus(2))
    draws = context.fixed_samples(16, 2, seed=-7, dtype=F64)
    again = context.fixed_samples(16, 2, seed=-7, dtype=F64)
    for one, other in zip(draws, again, strict=True):
        assert torch.equal(one[0].h, other[0].h)
        assert len(one) == 2
    R = GLPlus(2).decompose(torch.stack([draw[0].h[0] for draw in draws]))[1]
    angles = torch.atan2(R[:, 1, 0], R[:, 0, 0])
    cells = (angles / (torch.pi / 4) * 16).floor().long().sort().values
    torch.testing.assert_close(cells, torch.arange(16))
    independent = dataclasses.replace(context, sampling="independent")
    one, other = (independent.fixed_samples(2, seed=1)[0][0].h for _ in range(2))
    assert torch.equal(one, other)


def test_dtype():
    """Oracle: the argument; made in float64, so that float32 differs by rounding alone."""
    narrow, wide = (SampleContext().draw(generator=_seeded(), dtype=dtype)[0].h for dtype in (torch.float32, F64))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide.float(), rtol=0, atol=0)


def test_warns():
    """Oracle: what the docstring says of wide stretches, and of a single sample."""
    with pytest.warns(UserWarning, match="variance=0.6"):
        SampleContext(variance=0.6)
    with pytest.warns(UserWarning, match="num_samples=1"):
        SampleContext(num_samples=1)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_samples": 0}, ArgumentError, "num_samples"),
        ({"num_samples": 8.0}, ArgumentTypeError, "num_samples"),
        ({"sampling": "grid"}, ArgumentError, "sampling"),
        ({"variance": float("nan")}, ArgumentError, "variance"),
        ({"num_stretches": 3}, ArgumentError, "multiple"),
        ({"num_stretches": 2, "sampling": "independent"}, ArgumentError, "num_stretches"),
        ({"num_stretches": 2, "group": SO(2)}, ArgumentError, "num_stretches"),
        ({"measure": "haar"}, ArgumentError, "independent"),
        ({"measure": "none"}, ArgumentError, "measure"),
        ({"sampling": "official", "group": GLPlus(3)}, ArgumentError, "official"),
    ],
)
def test_refuses(options, error, match):
    """Oracle: what the docstring raises, by name of the argument."""
    with pytest.raises(error, match=match):
        SampleContext(**options)
