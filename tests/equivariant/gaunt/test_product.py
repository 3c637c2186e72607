"""Gaunt products, Poisson brackets and powers: agreement of the back ends, symmetry, derivatives, chunks."""

import math

import pytest
import torch

from hesse.equivariant.gaunt import (
    _tables,
    antisymmetric_tensor_product,
    fastest_backend,
    gaunt_coefficients,
    gaunt_many_body,
    gaunt_tensor_product,
    rotate,
    spherical_harmonics,
)
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

F64 = torch.float64
BACKENDS = ("dense", "grid", "fourier", "cg")
DEGREES = ((0, 0, 0), (1, 1, 2), (3, 1, 2), (2, 4, 6), (4, 4, 3))


def _features(*shape, seed=0, dtype=F64):
    *leading, degree = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, (degree + 1) ** 2, generator=generator, dtype=F64).to(dtype)


def _reflections(count):
    generator = torch.Generator().manual_seed(9)
    return torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=F64)).Q


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("degrees", DEGREES)
def test_is_the_pointwise_product(backend, degrees):
    """Oracle: values of the functions at random points, for products that are not cut off, and the cut of these."""
    l1, l2, l3 = degrees
    x, y = _features(4, l1), _features(4, l2, seed=1)
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    whole = gaunt_tensor_product(x, y, l1, l2, l1 + l2, backend=backend)
    f, g, h = (a @ spherical_harmonics(size, points).mT for a, size in ((x, l1), (y, l2), (whole, l1 + l2)))
    torch.testing.assert_close(h, f * g, rtol=0, atol=1e-12)
    cut = gaunt_tensor_product(x, y, l1, l2, l3, backend=backend)
    torch.testing.assert_close(cut, whole[:, : (l3 + 1) ** 2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32(backend):
    """Oracle: float64, to 5e-6 of the length."""
    x, y = _features(16, 4), _features(16, 4, seed=1)
    wide = gaunt_tensor_product(x, y, 4, 4, 8, backend=backend)
    narrow = gaunt_tensor_product(x.float(), y.float(), 4, 4, 8, backend=backend)
    assert narrow.dtype == torch.float32
    assert float((narrow - wide).norm() / wide.norm()) < 5e-6


def test_agrees_with_e3nn():
    """Oracle: e3nn's Wigner 3j symbols with Gaunt's constants, every triple of degrees up to 3, up to a sign each."""
    o3 = pytest.importorskip("e3nn.o3")
    from sympy.physics.wigner import wigner_3j

    for l1, l2, l3 in [(a, b, c) for a in range(4) for b in range(4) for c in range(abs(a - b), a + b + 1)]:
        scale = math.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * math.pi)) * float(
            wigner_3j(l1, l2, l3, 0, 0, 0)
        )
        wanted, found = scale * o3.wigner_3j(l1, l2, l3, dtype=F64), gaunt_coefficients(l1, l2, l3)
        gap = min(float((found - sign * wanted).abs().max()) for sign in (1, -1))
        assert gap < 1e-12 if (l1 + l2 + l3) % 2 == 0 else float(found.abs().max()) == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_commutes_with_rotations_and_reflections(backend):
    """Invariance: T(R x, R y) = R T(x, y) in O(3); and T(x, y) = T(y, x)."""
    x, y, R = _features(6, 2, 4), _features(6, 2, 4, seed=1), _reflections(6)
    z = gaunt_tensor_product(x, y, 4, 4, 5, backend=backend)
    turned = gaunt_tensor_product(rotate(x, R), rotate(y, R), 4, 4, 5, backend=backend)
    torch.testing.assert_close(turned, rotate(z, R), rtol=0, atol=1e-12)
    torch.testing.assert_close(gaunt_tensor_product(y, x, 4, 4, 5, backend=backend), z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalization", ["component", "norm"])
def test_normalization_is_that_of_the_harmonics(backend, normalization):
    """Oracle: f(r) as the sum of coefficients over the squared factors, times harmonics so normalized."""
    x, y = _features(3, 2), _features(3, 3, seed=1)
    z = gaunt_tensor_product(x, y, 2, 3, 5, backend=backend, normalization=normalization)
    points = torch.randn(10, 3, generator=torch.Generator().manual_seed(2), dtype=F64)

    def values(a, degree):
        harmonics = spherical_harmonics(degree, points, normalization)
        orthonormal = spherical_harmonics(degree, points)
        return a @ (orthonormal.square() / harmonics).mT

    torch.testing.assert_close(values(z, 5), values(x, 2) * values(y, 3))


def test_cross_product():
    """Oracle: for vectors the bracket is √(3 / 4π) x × y."""
    x, y = _features(8, 1), _features(8, 1, seed=1)
    z = antisymmetric_tensor_product(x, y, 1, 1, 1)
    wanted = (3 / (4 * math.pi)) ** 0.5 * torch.linalg.cross(x[:, 1:], y[:, 1:])
    torch.testing.assert_close(z[:, 1:], wanted)
    assert float(z[:, 0].abs().max()) < 1e-15


@pytest.mark.parametrize("backend", ["dense", "grid"])
def test_bracket_is_a_pseudo_feature_with_odd_paths_only(backend):
    """Invariance: O(3) with parity -1, antisymmetry; and no path with l₁ + l₂ + l₃ even."""
    x, y, R = _features(6, 2, 3), _features(6, 2, 4, seed=1), _reflections(6)
    z = antisymmetric_tensor_product(x, y, 3, 4, 6, backend=backend)
    turned = antisymmetric_tensor_product(rotate(x, R), rotate(y, R), 3, 4, 6, backend=backend)
    torch.testing.assert_close(turned, rotate(z, R, parity=-1), rtol=0, atol=1e-11)
    swapped = antisymmetric_tensor_product(y, x, 4, 3, 6, backend=backend)
    torch.testing.assert_close(swapped, -z, rtol=0, atol=1e-11)
    only = [torch.zeros_like(part) for part in (x, y)]
    only[0][..., 4:9], only[1][..., 9:16] = x[..., 4:9], y[..., 9:16]
    z = antisymmetric_tensor_product(*only, 3, 4, 6, backend=backend)
    for degree in (1, 3, 5):  # 2 + 3 + odd is even
        assert float(z[..., degree**2 : (degree + 1) ** 2].abs().max()) < 1e-12
    assert float(z[..., 4:9].abs().max()) > 0.1


def test_bracket_by_gradients():
    """Oracle: r · (∇f × ∇g) by autograd through the harmonics, at points on the sphere."""
    x, y = _features(3), _features(2, seed=1)
    r = torch.randn(12, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    r = (r / r.norm(dim=-1, keepdim=True)).requires_grad_()
    slopes = [torch.autograd.grad((spherical_harmonics(degree, r) @ a).sum(), r)[0] for a, degree in ((x, 3), (y, 2))]
    wanted = (r * torch.linalg.cross(*slopes)).sum(-1)
    found = spherical_harmonics(4, r) @ antisymmetric_tensor_product(x, y, 3, 2, 4)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", ["dense", "grid"])
def test_powers_and_polynomials(backend):
    """Oracle: chained products that are not cut off on the way."""
    x = _features(5, 2, 2)
    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    square = gaunt_tensor_product(x, x, 2, 2, 4)
    cube = gaunt_tensor_product(square, x, 4, 2, 6)
    torch.testing.assert_close(gaunt_many_body(x, 2, 3, 3, backend=backend), cube[..., :16])
    first, second = (torch.nn.functional.pad(part, (0, 49 - part.shape[-1])) for part in (x, square))
    wanted = sum(weights[:, [nu]] * part for nu, part in enumerate((first, second, cube)))
    torch.testing.assert_close(gaunt_many_body(x, 2, 6, 3, weights, backend=backend), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    """Oracle: finite differences of first and second order."""
    x, y = (_features(2, degree).requires_grad_() for degree in (1, 2))

    def product(a, b):
        return gaunt_tensor_product(a, b, 1, 2, 2, backend=backend)

    assert torch.autograd.gradcheck(product, (x, y))
    assert torch.autograd.gradgradcheck(product, (x, y))


def test_gradients_of_bracket_and_powers():
    """Oracle: finite differences of first and second order."""
    x, y = (_features(1, 2, seed=seed).requires_grad_() for seed in (0, 1))
    for call in (
        lambda a, b: antisymmetric_tensor_product(a, b, 2, 2, 3, backend="grid"),
        lambda a, b: gaunt_many_body(a, 2, 2, 3, b[:, :3], backend="grid"),
    ):
        assert torch.autograd.gradcheck(call, (x, y))
        assert torch.autograd.gradgradcheck(call, (x, y))


@pytest.mark.parametrize("backend", ["dense", "grid", "fourier"])
def test_batches_broadcast_and_chunks_change_nothing(backend):
    """Invariance: rows one at a time, in chunks, with leading dimensions, none at all, and an empty batch."""
    x, y = _features(3, 2, 4), _features(2, 4, seed=1)
    whole = gaunt_tensor_product(x, y, 4, 4, 4, backend=backend)
    assert whole.shape == (3, 2, 25)
    cut = gaunt_tensor_product(x, y, 4, 4, 4, backend=backend, max_grid_elements=300)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(gaunt_tensor_product(x[1, 0], y[0], 4, 4, 4, backend=backend), whole[1, 0])
    assert gaunt_tensor_product(x[:0], y, 4, 4, 4, backend=backend).shape == (0, 2, 25)


@pytest.mark.parametrize("backend", ["dense", "grid"])
def test_default_chunks_change_nothing(backend):
    """Invariance: a batch that a CPU cuts in several pieces, each thread's share, against the whole at once."""
    rows = torch.get_num_threads() * (1 << 20) // 200 + 7  # 200 samples or more a row
    x, y = _features(rows, 6, dtype=torch.float32), _features(rows, 6, seed=1, dtype=torch.float32)
    whole = gaunt_tensor_product(x, y, 6, 6, 12, backend=backend, max_grid_elements=1 << 30)
    torch.testing.assert_close(gaunt_tensor_product(x, y, 6, 6, 12, backend=backend), whole)


@pytest.mark.parametrize("within", [1, 2, 5, 8, 10, 13, 16, 24])
def test_points_of_the_dense_back_end_are_well_conditioned(within):
    """Oracle: singular values of the harmonics there; and fewer points than an exact quadrature once degrees count."""
    values = _tables.dense_evaluation(within, within, 1 << 10, "value", "integral", F64, torch.device("cpu"))
    assert (within + 1) ** 2 <= values.shape[1] < 1.4 * (within + 1) ** 2 + 8
    assert float(torch.linalg.cond(values)) < 4
    if within > 2:
        polar, azimuth = _tables.grid_size(2 * within)
        assert values.shape[1] == _tables.num_dense_samples(within, 2 * within) < polar * azimuth


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    """Oracle: float32 arithmetic of the same numbers."""
    x, y = _features(4, 3, dtype=dtype), _features(4, 3, seed=1, dtype=dtype)
    assert torch.equal(
        gaunt_tensor_product(x, y, 3, 3, 3), gaunt_tensor_product(x.float(), y.float(), 3, 3, 3).to(dtype)
    )


@pytest.mark.parametrize("degree", [2, 6])
def test_compiles_to_one_graph(degree):
    """Oracle: eager mode. Tables enter the graph as constants, and so do degrees."""
    torch.compiler.reset()
    x, y = _features(4, degree, dtype=torch.float32), _features(4, degree, seed=1, dtype=torch.float32)

    def call(a, b):
        z = gaunt_tensor_product(a, b, degree, degree, degree)
        return gaunt_many_body(a, degree, degree, 2) + antisymmetric_tensor_product(a, z, degree, degree, degree)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), call(x, y))


def test_tables_made_in_inference_mode_serve_training():
    """Oracle: a backward pass over tables that a call under inference_mode made first."""
    with torch.inference_mode():
        gaunt_tensor_product(_features(1, 7), _features(1, 6), 7, 6, 9)
    x = _features(1, 7).requires_grad_()
    gaunt_tensor_product(x, _features(1, 6), 7, 6, 9).sum().backward()
    assert x.grad is not None


def test_fastest_backend_is_one_that_works():
    """Oracle: the list of back ends."""
    assert fastest_backend(1, 1, 2, batch=4, repeats=1) in BACKENDS


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: gaunt_tensor_product(x, x, 2, 2, 5), ArgumentError, "l3"),
        (lambda x: gaunt_tensor_product(x, x, 2, 3, 2), ShapeError, "y to be"),
        (lambda x: gaunt_tensor_product(x, x.double(), 2, 2, 2), ShapeError, "float64"),
        (lambda x: gaunt_tensor_product(x, x.int(), 2, 2, 2), ArgumentTypeError, "y"),
        (lambda x: gaunt_tensor_product(x + 0j, x, 2, 2, 2), ArgumentTypeError, "complex"),
        (lambda x: gaunt_tensor_product(x, x.repeat(2, 1)[:3], 2, 2, 2), ShapeError, "broadcast"),
        (lambda x: gaunt_tensor_product(x, x, 2, 2, 2, backend="fft"), ArgumentError, "backend"),
        (lambda x: gaunt_tensor_product(x, x, 2, 2, 2, normalization="none"), ArgumentError, "normalization"),
        (lambda x: gaunt_tensor_product(x, x, 2, 2, 2, max_grid_elements=0), ArgumentError, "max_grid_elements"),
        (lambda x: gaunt_tensor_product(x, x, -1, 2, 2), ArgumentError, "l1"),
        (lambda x: antisymmetric_tensor_product(x, x, 2, 2, 4), ArgumentError, "l3"),
        (lambda x: antisymmetric_tensor_product(x, x, 2, 2, 2, backend="cg"), ArgumentError, "backend"),
        (lambda x: gaunt_many_body(x, 2, 7, 3), ArgumentError, "l_out"),
        (lambda x: gaunt_many_body(x, 2, 2, 0), ArgumentError, "order"),
        (lambda x: gaunt_many_body(x, 2, 2, 3, torch.ones(2)), ShapeError, "weights"),
        (lambda x: gaunt_many_body(x, 2, 2, 3, torch.ones(4, 3)), ShapeError, "broadcast"),
        (lambda x: gaunt_many_body(x, 2, 2, 3, backend="fourier"), ArgumentError, "backend"),
        (lambda x: gaunt_coefficients(1, -1, 0), ArgumentError, "l2"),
        (lambda x: fastest_backend(1, 1, 3), ArgumentError, "l3"),
    ],
)
def test_refuses(call, error, match):
    """Oracle: what the docstrings raise, by name of the argument."""
    with pytest.raises(error, match=match):
        call(_features(2, 2, dtype=torch.float32))
