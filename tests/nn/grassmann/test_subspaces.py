"""Statistics of features against loops and planted subspaces."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import GrassmannParameter, principal_angles
from hesse.nn import GrassmannLinear, class_subspaces, intra_class_variability, overlap_penalty

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    bases = [GrassmannParameter.random(12, k, dtype=F64, generator=seeded(k)).data for k in (2, 3)]
    clouds = [torch.randn(40, S.shape[1], dtype=F64, generator=seeded(7)) @ S.mT for S in bases]
    x = torch.cat(clouds)
    x = x + noise * torch.randn(x.shape, dtype=F64, generator=seeded(8))
    return x, torch.arange(2).repeat_interleave(40), bases


def test_planted_subspaces_are_found():
    """Oracle: the subspaces planted, their dimensions from the energy; the head that starts there is right at once."""
    x, y, bases = planted()
    found = class_subspaces(x, y, 8, energy=1 - 1e-9)
    for S, truth in zip(found, bases, strict=True):
        assert S.shape == truth.shape
        assert float(principal_angles(S, truth).max()) < 1e-10
    logits = GrassmannLinear.from_subspaces(found)(x)
    assert bool((logits.argmax(1) == y).all())
    torch.testing.assert_close(logits.amax(1), torch.full((80,), 25.0, dtype=F64))


def test_subspaces_are_optimal():
    """Oracle: leading eigenvectors of the second moment of the unit features, and no other subspace does better."""
    x, y, _ = planted(noise=0.3)
    (S, _) = class_subspaces(x, y, 4)
    unit = x[:40] / x[:40].norm(dim=1, keepdim=True)
    leading = torch.linalg.eigh(unit.mT @ unit).eigenvectors[:, -4:]
    assert float(principal_angles(S, leading).max()) < 1e-7
    assert [S.shape[1] for S in class_subspaces(x, y, 4, energy=0.5)] == [2, 2]


def test_variability():
    """Oracle: a loop over pairs; two orthogonal and two opposite features by hand; finite gradients at equal ones."""
    x, y, _ = planted(noise=0.5)
    means = []
    for c in range(2):
        unit = x[y == c] / x[y == c].norm(dim=1, keepdim=True)
        angles = [torch.arccos(unit[i] @ unit[j]) for i in range(40) for j in range(i)]
        means.append(sum(angles) / len(angles))
    torch.testing.assert_close(intra_class_variability(x, y), sum(means) / 2)
    pair = torch.tensor([[1.0, 0], [0, 3]], dtype=F64)
    labels = torch.zeros(2, dtype=torch.long)
    assert float(intra_class_variability(pair, labels)) == pytest.approx(math.pi / 2)
    assert float(intra_class_variability(torch.stack([pair[0], -pair[0]]), labels)) == pytest.approx(math.pi)
    same = torch.ones(2, 3, dtype=F64, requires_grad=True)
    value = intra_class_variability(same, labels)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-7)
    assert bool(torch.isfinite(same.grad).all())


@pytest.mark.parametrize("d", [6, 40])
def test_overlap(d):
    """Oracle: a loop over pairs, where the Gram matrix is wide and where it is tall; zero for orthogonal subspaces."""
    weight = GrassmannParameter.random(5, d, 3, dtype=F64, generator=seeded()).data
    pairs = [(weight[a].mT @ weight[b]).square().sum() for a in range(5) for b in range(5) if a != b]
    torch.testing.assert_close(overlap_penalty(weight), sum(pairs) / 20)
    assert float(overlap_penalty(torch.eye(4, dtype=F64).view(4, 2, 2).transpose(0, 1))) == pytest.approx(0)


def test_bad_input():
    """Oracle: the errors promised."""
    x, y, _ = planted()
    with pytest.raises(ArgumentError, match="subspace_dim"):
        class_subspaces(x, y, 12)
    with pytest.raises(ArgumentError, match="energy"):
        class_subspaces(x, y, 3, energy=0.0)
    with pytest.raises(ArgumentError, match="rows"):
        class_subspaces(x, y, 3, num_classes=3)
    with pytest.raises(ShapeError, match="labels"):
        intra_class_variability(x, y[:5])
    with pytest.raises(ArgumentError, match="int64"):
        intra_class_variability(x, y.double())
    with pytest.raises(ArgumentError, match="no direction"):
        intra_class_variability(0 * x, y)
    with pytest.raises(ArgumentError, match="two rows"):
        intra_class_variability(x[:2], torch.arange(2))
    with pytest.raises(ShapeError, match="weight"):
        overlap_penalty(x)
