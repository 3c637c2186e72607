"""Wigner matrices: the harmonics they turn, group law, derivatives, reflections."""

import math

import pytest
import torch

from hesse.equivariant.gaunt import rotate, spherical_harmonics, wigner_d
from hesse.equivariant.gaunt.rotation import from_pole, polar_frame, to_pole
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

F64 = torch.float64


def _rotations(count, *, seed=0):
    q = torch.linalg.qr(torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)).Q
    return q * torch.linalg.det(q)[:, None, None]


def _special():
    """Half turns, the identity, and turns by next to nothing, where Euler angles are not defined."""
    eye = torch.eye(3, dtype=F64)
    tiny = torch.linalg.matrix_exp(1e-9 * torch.tensor([[0, 1, 2], [-1, 0, 3], [-2, -3, 0]], dtype=F64))
    return torch.stack([eye, *(torch.diag(2 * row - 1) for row in eye), tiny])


@pytest.mark.parametrize("sign", [1, -1])
def test_turns_spherical_harmonics(sign):
    """Oracle: Y(R r) = D(R) Y(r), for reflections and where Euler angles are not defined."""
    R = sign * torch.cat([_rotations(10), _special()])
    r = torch.randn(len(R), 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    wanted = spherical_harmonics(12, (R @ r[..., None])[..., 0])
    found = rotate(spherical_harmonics(12, r)[:, None], R)[:, 0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


def test_group_law_and_orthogonality():
    """Identity: D(R S) = D(R) D(S) and D Dᵀ = 1."""
    R, S = _rotations(8), _rotations(8, seed=1)
    for first, second, both in zip(wigner_d(8, R), wigner_d(8, S), wigner_d(8, R @ S), strict=True):
        torch.testing.assert_close(first @ second, both, rtol=0, atol=1e-13)
        torch.testing.assert_close(both @ both.mT, torch.eye(both.shape[-1], dtype=F64).expand_as(both))


def test_parity_minus_one_changes_sign_under_reflection_only():
    """Identity: D of a pseudo-feature is det(R) times the other."""
    R = _rotations(2) * torch.tensor([1.0, -1.0], dtype=F64)[:, None, None]
    for natural, pseudo in zip(wigner_d(3, R), wigner_d(3, R, parity=-1), strict=True):
        torch.testing.assert_close(pseudo[0], natural[0])
        torch.testing.assert_close(pseudo[1], -natural[1])


def test_derivatives_are_those_of_rotations():
    """Oracle: finite differences along the group, at the identity and at half turns too, where α is undefined."""
    start = torch.cat([_rotations(2), _special()[:4]])
    angles = torch.zeros(3, dtype=F64, requires_grad=True)

    def blocks(w):
        zero = torch.zeros_like(w[0])
        skew = torch.stack([zero, -w[2], w[1], w[2], zero, -w[0], -w[1], w[0], zero]).reshape(3, 3)
        return wigner_d(3, torch.linalg.matrix_exp(skew) @ start)[3]

    assert torch.autograd.gradcheck(blocks, (angles,))
    assert torch.autograd.gradgradcheck(blocks, (angles,))


def test_float32():
    """Oracle: float64."""
    R = _rotations(20)
    for narrow, wide in zip(wigner_d(8, R.float()), wigner_d(8, R), strict=True):
        torch.testing.assert_close(narrow.to(F64), wide, rtol=0, atol=1e-5)


@pytest.mark.parametrize("l_max", [3, 10])
def test_turning_to_the_pole(l_max):
    """Oracle: Y(n) becomes Y(pole), all over the sphere and at both poles; the way back is the inverse."""
    n = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    n = torch.cat([n, torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)])
    n = n / n.norm(dim=-1, keepdim=True)
    frame = polar_frame(n, l_max + 1)
    pole = spherical_harmonics(l_max, torch.tensor([0, 1, 0], dtype=F64)).expand(len(n), 1, -1)
    torch.testing.assert_close(to_pole(spherical_harmonics(l_max, n)[:, None], frame, l_max), pole)
    x = torch.randn(len(n), 2, (l_max + 1) ** 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    torch.testing.assert_close(from_pole(to_pole(x, frame, l_max), frame, l_max), x)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: wigner_d(2, 2 * torch.eye(3)), ArgumentError, "orthogonal"),
        (lambda: wigner_d(2, torch.full((3, 3), math.nan)), ArgumentError, "orthogonal"),
        (lambda: wigner_d(2, torch.eye(2)), ShapeError, "rotation"),
        (lambda: wigner_d(2, torch.eye(3, dtype=torch.int64)), ArgumentTypeError, "rotation"),
        (lambda: wigner_d(2, torch.eye(3), parity=0), ArgumentError, "parity"),
        (lambda: rotate(torch.ones(2, 5), torch.eye(3)), ShapeError, "square"),
        (lambda: rotate(torch.ones(4), torch.eye(3)), ShapeError, "x of shape"),
        (lambda: rotate(torch.ones(2, 4), torch.eye(3, dtype=F64)), ShapeError, "float64"),
        (lambda: rotate(torch.ones(2, 1, 4), torch.eye(3).expand(5, 3, 3)), ShapeError, "go with x"),
    ],
)
def test_refuses(call, error, match):
    """Oracle: what the docstrings raise, by name of the argument."""
    with pytest.raises(error, match=match):
        call()
