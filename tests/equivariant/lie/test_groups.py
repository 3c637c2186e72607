"""Polar forms, coordinates, the invariant measure and samples of GL+(n), SL(n) and SO(n)."""

import numpy as np
import pytest
import scipy.linalg
import torch

from hesse.equivariant.lie import SL, SO, GLPlus, haar_log_density
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

F64 = torch.float64
GROUPS = [GLPlus(2), SL(2), SO(2), GLPlus(3), SL(3), SO(3), GLPlus(2, 0.7), SL(3, 2.0)]


def _elements(group, count=200, *, variance=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return group.sample(count, generator=generator, variance=variance, dtype=F64)


@pytest.mark.parametrize("group", GROUPS)
def test_parts_put_together_are_the_element(group):
    """Oracle: identities. exp(X) R = h, X symmetric, R a rotation, h times its inverse is one, det as it should be."""
    h, h_inv, weight = _elements(group)
    X, R = group.decompose(h)
    eye = torch.eye(group.n, dtype=F64)
    torch.testing.assert_close(group.compose(X, R), h, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h @ h_inv, eye.expand_as(h), rtol=0, atol=1e-12)
    torch.testing.assert_close(X, X.mT, rtol=0, atol=0)
    torch.testing.assert_close(R.mT @ R, eye.expand_as(R), rtol=0, atol=1e-12)
    assert bool((torch.linalg.det(R) > 0).all())
    assert bool(group.contains(h).all())
    assert bool((weight == 1).all())
    if not isinstance(group, GLPlus):
        torch.testing.assert_close(torch.linalg.det(h), torch.ones(len(h), dtype=F64), rtol=0, atol=1e-12)
    if isinstance(group, SO):
        torch.testing.assert_close(X, torch.zeros_like(X), rtol=0, atol=1e-14)


def test_polar_form_of_an_ill_conditioned_matrix():
    """Oracle: SciPy's polar decomposition, at a condition of 1e8, where h hᵀ would have lost the small stretch."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64)).Q for _ in range(2))
    h = U @ torch.diag(torch.tensor([1.0, 1e-3, 1e-8], dtype=F64)) @ V
    h = h * torch.linalg.det(h).sign()
    X, R = GLPlus(3).decompose(h)
    unitary, _ = scipy.linalg.polar(h.numpy(), side="left")
    np.testing.assert_allclose(R.numpy(), unitary, atol=1e-7)
    torch.testing.assert_close(torch.linalg.eigvalsh(X).exp(), torch.linalg.svdvals(h).flip(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("group", GROUPS)
def test_coordinates_name_elements(group):
    """Oracle: the inverse map; orthonormality of the basis in the scaled trace metric."""
    h = _elements(group, variance=0.5).h
    v = group.log_coordinates(h)
    assert v.shape == (len(h), group.dim)
    torch.testing.assert_close(group.exp_coordinates(v), h, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(group.log_coordinates(group.exp_coordinates(v)), v, rtol=1e-10, atol=1e-10)
    basis = group.basis()
    gram = group.alpha * torch.einsum("aij,bij->ab", basis, basis)
    torch.testing.assert_close(gram, torch.eye(group.dim, dtype=F64), rtol=0, atol=1e-14)


def test_plane_basis_is_the_papers():
    """Oracle: the matrices written down; the last coordinate of a rotation is √(2α) times its angle."""
    root = 2**-0.5
    wanted = [[[1, 0], [0, 0]], [[0, root], [root, 0]], [[0, 0], [0, 1]], [[0, -root], [root, 0]]]
    torch.testing.assert_close(GLPlus(2).basis(), torch.tensor(wanted, dtype=F64))
    wanted = [[[root, 0], [0, -root]], [[0, root], [root, 0]], [[0, -root], [root, 0]]]
    torch.testing.assert_close(SL(2).basis(), torch.tensor(wanted, dtype=F64))
    angle = torch.tensor([-3.0, -0.001, 2.5], dtype=F64)
    h = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    torch.testing.assert_close(GLPlus(2, 0.5).log_coordinates(h)[:, -1], angle)
    assert [group.dim for group in GROUPS[:6]] == [4, 3, 1, 9, 8, 3]


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, 3.0, np.pi - 1e-7, np.pi])
def test_logarithm_of_space_rotations(angle):
    """Oracle: SciPy's rotation vectors, up to the sign of a half turn's; small angles and half turns included."""
    axes = torch.nn.functional.normalize(
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=F64), dim=1
    )
    wanted = axes.numpy() * angle
    R = torch.as_tensor(np.stack([scipy.spatial.transform.Rotation.from_rotvec(row).as_matrix() for row in wanted]))
    A = torch.einsum("ra,aij->rij", SO(3).log_coordinates(R), SO(3).basis())
    found = torch.stack([A[:, 2, 1], A[:, 0, 2], A[:, 1, 0]], -1).numpy()
    if angle > np.pi - 1e-3:
        found = found * np.sign((found * wanted).sum(1, keepdims=True))
    np.testing.assert_allclose(found, wanted, atol=1e-7 if angle > 3.1 else 1e-12)


@pytest.mark.parametrize("group", [GLPlus(2), GLPlus(3), SO(3)])
def test_gradients(group):
    """Oracle: finite differences, also where singular values agree: at rotations and multiples of them."""
    h = _elements(group, 3).h
    h = torch.cat([h, torch.linalg.qr(h).Q * torch.linalg.qr(h).Q.det()[:, None, None].sign()]) if group.n == 3 else h
    if isinstance(group, GLPlus):
        h = torch.cat([h, 1.7 * torch.eye(group.n, dtype=F64)[None]])
        assert torch.autograd.gradcheck(group.decompose, h.requires_grad_())
    else:
        # off the group in some directions, where the polar form carries on smoothly
        assert torch.autograd.gradcheck(lambda a: GLPlus(3).log_coordinates(a)[..., -3:], h.requires_grad_())
    v = torch.zeros(2, group.dim, dtype=F64)
    v[1] = 0.3
    assert torch.autograd.gradcheck(group.exp_coordinates, v.requires_grad_())


def _bump(h, centre):
    v = GLPlus(2).log_coordinates(torch.linalg.inv(centre) @ h)
    return torch.exp(-4 * v[:, :3].square().sum(1)) * (1.5 + torch.cos(v[:, 3] / 2**0.5))


def test_haar_weights_make_averages_invariant():
    """Oracle: invariance of the Haar measure under translation from both sides, within three standard errors.

    Without the Jacobian the averages change by far more.
    """
    group, variance, count = GLPlus(2), 0.8, 200_000
    generator = torch.Generator().manual_seed(0)
    h = group.sample(count, generator=generator, variance=variance, dtype=F64).h
    X = 2 * group.decompose(h)[0]
    gaussian = X.square().sum((1, 2)) / (2 * variance)
    centre = torch.eye(2, dtype=F64)
    g = torch.tensor([[1.3, 0.5], [-0.2, 0.8]], dtype=F64)
    scores = {}
    for name, log_weight in (("haar", haar_log_density(X) + gaussian), ("flat", gaussian)):
        weight = log_weight.exp()
        scores[name] = []
        for moved in (torch.linalg.inv(g) @ h, h @ g):
            change = weight * (_bump(moved, centre) - _bump(h, centre))
            scores[name].append(float(change.mean() / change.std() * count**0.5))
    assert max(map(abs, scores["haar"])) <= 3
    assert max(map(abs, scores["flat"])) > 6


def test_haar_density_is_the_product_of_its_formula():
    """Oracle: the formula, entry by entry; near equal eigenvalues its series; gradients by finite differences."""
    x = torch.tensor([[0.3, -1.1, 2.0], [0.5, 0.5 + 1e-9, 0.5], [3.0, -4.0, 0.0]], dtype=F64)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)).Q
    found = haar_log_density(Q * x.unsqueeze(1) @ Q.mT)
    wanted = torch.zeros(3, dtype=F64)
    for i in range(3):
        for j in range(i + 1, 3):
            half = (x[:, i] - x[:, j]) / 2
            wanted += torch.where(half.abs() > 1e-6, (torch.sinh(half) / half).log(), half.square() / 6)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    matrix = torch.diag(torch.tensor([0.1, 0.4, -0.6], dtype=F64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: haar_log_density((a + a.mT) / 2), matrix)


def test_sampled_weights():
    """Oracle: the definition. Mean one before weights above ten are cut; equispaced angles form a regular polygon."""
    group = GLPlus(2)
    generator = torch.Generator().manual_seed(3)
    h, _, weight = group.sample(
        64, generator=generator, measure="haar", variance=0.3, rotations="equispaced", dtype=F64
    )
    X, R = group.decompose(h)
    log_s = 2 * X
    raw = (haar_log_density(log_s) + log_s.square().sum((1, 2)) / 0.6).exp()
    torch.testing.assert_close(weight, (raw / raw.mean()).clamp_max(10))
    steps = torch.atan2(R[:, 1, 0], R[:, 0, 0]).sort().values.diff()
    torch.testing.assert_close(steps, torch.full((63,), 2 * torch.pi / 64, dtype=F64))


def test_samples_have_the_stated_law():
    """Oracle: mean and variance of the coordinates, and of a rotation's entries, within four standard errors."""
    group, count = GLPlus(3), 20_000
    X, R = group.decompose(_elements(group, count, variance=0.2).h)
    basis = group.basis()[: group.num_symmetric]
    z = 2 * torch.einsum("aij,rij->ra", basis, X)
    assert float(z.mean(0).abs().max()) < 4 * (0.2 / count) ** 0.5
    assert float((z.var(0) / 0.2 - 1).abs().max()) < 4 * (2 / count) ** 0.5
    assert float(R.mean(0).abs().max()) < 4 * (1 / (3 * count)) ** 0.5


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: GLPlus(1), ArgumentError, "n >= 2"),
        (lambda: GLPlus(2.0), ArgumentTypeError, "n"),
        (lambda: SL(2, alpha=0.0), ArgumentError, "alpha"),
        (lambda: GLPlus(2).decompose(torch.diag(torch.tensor([1.0, -1.0]))), ArgumentError, "det h > 0"),
        (lambda: GLPlus(2).decompose(torch.full((2, 2), torch.nan)), ArgumentError, "finite"),
        (lambda: SL(2).decompose(2 * torch.eye(2)), ArgumentError, "det h = 1"),
        (lambda: SO(2).decompose(torch.diag(torch.tensor([2.0, 0.5]))), ArgumentError, "hᵀh"),
        (lambda: GLPlus(2).decompose(torch.eye(3)), ShapeError, "h of shape"),
        (lambda: GLPlus(2).decompose(torch.eye(2).half()), ArgumentTypeError, "float32"),
        (lambda: GLPlus(2).decompose([[1.0]]), ArgumentTypeError, "list"),
        (lambda: GLPlus(4).log_coordinates(torch.eye(4)), ArgumentError, "n = 2 or 3"),
        (lambda: SL(2).exp_coordinates(torch.zeros(4)), ShapeError, "v of shape"),
        (lambda: GLPlus(2).sample(0), ArgumentError, "num_samples"),
        (lambda: GLPlus(2).sample(4, variance=0.0), ArgumentError, "variance"),
        (lambda: GLPlus(2).sample(4, measure="flat"), ArgumentError, "measure"),
        (lambda: GLPlus(3).sample(4, rotations="equispaced"), ArgumentError, "n = 2"),
        (lambda: haar_log_density(torch.ones(2, 3)), ShapeError, "log_s"),
    ],
)
def test_refuses(call, error, match):
    """Oracle: what the docstrings raise, by name of the argument."""
    with pytest.raises(error, match=match):
        call()
