"""Tangent bundles of clouds: dimension, transport, spectra, Nyström and diffusion."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.gp import TangentBundle
from tests.gp.rvgp.clouds import flat_torus, ring_torus, seeded, sphere, swirl


@pytest.mark.parametrize("ambient", [3, 7])
def test_dimension_of_a_noisy_sphere(ambient):
    """Oracle: the dimension it was made with."""
    X = sphere(400) @ torch.linalg.qr(torch.randn(ambient, 3, dtype=torch.float64, generator=seeded(0))).Q.T
    bundle = TangentBundle(X + 0.005 * torch.randn(X.shape, dtype=torch.float64, generator=seeded(1)))
    assert bundle.dim == 2
    assert bundle.frames.shape == (400, ambient, 2)


def test_frames_are_tangent_and_transport_is_orthogonal():
    """Oracle: the normal of the sphere; O Oᵀ = I and O_ji = O_ijᵀ."""
    X = sphere(600)
    bundle = TangentBundle(X)
    assert float(torch.einsum("nka,nk->na", bundle.frames, X).square().mean().sqrt()) < 0.02
    blocks, total = bundle.transport.blocks, bundle.num_nodes
    eye = torch.eye(2, dtype=torch.float64).expand_as(blocks)
    torch.testing.assert_close(blocks @ blocks.mT, eye, rtol=0, atol=1e-12)
    dense = torch.zeros(total, total, 2, 2, dtype=torch.float64)
    dense[bundle.transport.rows, bundle.transport.cols] = blocks
    torch.testing.assert_close(dense.transpose(0, 1).mT, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("graph", ["gaussian", "paper"])
def test_laplacians_are_the_quadratic_forms(graph):
    """Oracle: ½ Σ w |f_i - O_ij f_j|², edge by edge."""
    bundle = TangentBundle(sphere(120), 10, graph=graph)
    f = torch.randn(120, 2, dtype=torch.float64, generator=seeded(3))
    steps = f[bundle.transport.rows] - torch.einsum("eab,eb->ea", bundle.transport.blocks, f[bundle.transport.cols])
    energy = (bundle.graph.weights * steps.square().sum(1)).sum() / 2
    scaled = (f * bundle.graph.masses.sqrt()[:, None]).reshape(-1, 1)
    torch.testing.assert_close((scaled * (bundle.connection_laplacian @ scaled)).sum(), energy, rtol=1e-11, atol=0)
    ones = bundle.graph.masses.sqrt()[:, None]
    assert float((bundle.laplacian @ ones).norm()) < 1e-11 * float(ones.norm()) * float(bundle.laplacian.values.max())


def test_spectrum_of_the_sphere():
    """Oracle: l(l + 1) - 1 with multiplicity 2(2l + 1), up to a factor: 1, 5, 11 with 6, 10, 14 copies."""
    values = TangentBundle(sphere(600), 30).eigenpairs(30).eigenvalues
    values = values / values[:6].mean()
    assert float(values[5]) < 1.03
    assert 4.7 < float(values[6]) <= float(values[15]) < 5.1  # the graph's finite width lowers high eigenvalues
    assert 10.0 < float(values[16]) <= float(values[29]) < 11.2


def test_spectrum_of_the_flat_torus_is_the_scalar_one_twice():
    """Oracle: its connection is trivial."""
    bundle = TangentBundle(flat_torus(16), 8, dim=2, graph="paper")
    twice = bundle.eigenpairs(30, scalar=True).eigenvalues.repeat_interleave(2)
    found = bundle.eigenpairs(30).eigenvalues
    count = min(len(twice), len(found))
    torch.testing.assert_close(found[:count], twice[:count], rtol=1e-9, atol=1e-9)


def test_multiplets_are_kept_whole():
    """Oracle: 2 parallel fields, then 8 of the lowest wave, on a square torus."""
    bundle = TangentBundle(flat_torus(16), 8, dim=2, graph="paper")
    assert [len(bundle.eigenpairs(m).eigenvalues) for m in (1, 2, 3, 10)] == [2, 2, 10, 10]


@pytest.mark.parametrize("graph", ["gaussian", "paper"])
def test_eigenfields_solve_the_problem(graph):
    """Oracle: L_c u = λ M u, entry by entry, and mean square 1 over the whole spectrum."""
    bundle = TangentBundle(sphere(100), 10, graph=graph)
    eigen = bundle.eigenpairs(200)
    rows, cols, weights = bundle.graph.rows, bundle.graph.cols, bundle.graph.weights
    carried = torch.einsum("e,eab,ebm->eam", weights, bundle.transport.blocks, eigen.fields[cols])
    image = bundle.graph.degrees[:, None, None] * eigen.fields
    image = image - torch.zeros_like(image).index_add(0, rows, carried)
    expected = bundle.graph.masses[:, None, None] * eigen.fields * eigen.eigenvalues
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-10 * float(image.abs().max()))
    assert float(eigen.mean_squares.mean()) == pytest.approx(1)


def test_large_clouds_agree_with_the_dense_decomposition(monkeypatch):
    """Oracle: torch.linalg.eigh, against which the block iteration is run on a smaller cloud."""
    dense = TangentBundle(sphere(300)).eigenpairs(40)
    monkeypatch.setattr("hesse.gp.rvgp.bundle.DENSE_ORDER", 10)
    bundle = TangentBundle(sphere(300))
    sparse = bundle.eigenpairs(40)
    torch.testing.assert_close(sparse.eigenvalues, dense.eigenvalues, rtol=1e-9, atol=1e-12)
    gram = torch.einsum("nam,nak->mk", sparse.fields, dense.fields) / 600
    # the multiplets are turned in another way: compare the spaces
    assert float(torch.linalg.svdvals(gram[:30, :30]).min()) > 0.9


def test_eigenfields_are_kept():
    """Oracle: fewer of them are a prefix of more."""
    bundle = TangentBundle(sphere(150))
    many, few = bundle.eigenpairs(40), bundle.eigenpairs(12)
    count = len(few.eigenvalues)
    assert torch.equal(few.fields, many.fields[..., :count])


def test_continued_eigenfields_join_the_known_ones():
    """Oracle: values at the nodes, and a direct evaluation of the fields' average beside them."""
    bundle = TangentBundle(sphere(600), 30)
    eigen = bundle.eigenpairs(30)
    frames, fields = bundle.extend(bundle.points[:5], eigen)
    assert torch.equal(frames, bundle.frames[:5])
    assert torch.equal(fields, eigen.fields[:5])
    frames, fields = bundle.extend(bundle.points + 1e-6, eigen)
    new = torch.einsum("nka,nam->nkm", frames, fields)
    old = torch.einsum("nka,nam->nkm", bundle.frames, eigen.fields)
    errors = (new - old).norm(dim=(0, 1)) / old.norm(dim=(0, 1))
    assert float(errors.max()) < 0.06


@pytest.mark.parametrize("graph", ["gaussian", "paper"])
def test_diffusion_is_the_matrix_exponential(graph):
    """Oracle: dense matrix exponentials of the random-walk or plain Laplacians."""
    X = sphere(90)
    bundle = TangentBundle(X, 8, graph=graph)
    F, time = swirl(X), 3.0
    half = bundle.graph.masses.rsqrt()
    fine = half.repeat_interleave(2)
    walk = fine[:, None] * bundle.connection_laplacian.to_dense() / fine
    local = bundle.coordinates(bundle.node_of, F)
    moved = (torch.linalg.matrix_exp(-time * walk) @ local.reshape(-1)).reshape(-1, 2)
    plain = half[:, None] * bundle.laplacian.to_dense() / half
    length = torch.linalg.matrix_exp(-time * plain) @ local.norm(dim=1)
    expected = bundle.ambient(bundle.node_of, moved * (length / moved.norm(dim=1))[:, None])
    torch.testing.assert_close(bundle.diffuse(F, time), expected, rtol=0, atol=1e-11)


def test_extension_keeps_lengths():
    """Oracle: a unit field known at a few points stays of unit length everywhere."""
    points, first, _ = ring_torus(40, 16)
    bundle = TangentBundle(points, dim=2)
    seen = torch.arange(0, len(points), 37)
    found = bundle.diffuse(bundle.ambient(seen, bundle.coordinates(seen, first[seen])), 200.0, idx=seen)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(points), dtype=torch.float64), rtol=0, atol=0.02)


def test_duplicates_are_one_node():
    """Oracle: the cloud without them, in its own order."""
    X = sphere(100)
    twice = torch.cat([X, X[:7]])
    bundle, plain = TangentBundle(twice, 10), TangentBundle(X, 10)
    assert torch.equal(bundle.points, plain.points)
    assert torch.equal(bundle.points[bundle.node_of], twice)
    torch.testing.assert_close(bundle.diffuse(swirl(twice), 1.0)[:100], plain.diffuse(swirl(X), 1.0))


def test_moebius_strip_needs_no_orientation():
    """Oracle: the field along the core circle is globally smooth there, though the strip has one side."""
    u, v = (
        part.reshape(-1)
        for part in torch.meshgrid(
            2 * math.pi * torch.arange(60, dtype=torch.float64) / 60,
            torch.linspace(-0.3, 0.3, 9, dtype=torch.float64),
            indexing="ij",
        )
    )
    radius = 1 + v * (u / 2).cos()
    points = torch.stack([radius * u.cos(), radius * u.sin(), v * (u / 2).sin()], dim=1)
    along = torch.stack([-u.sin(), u.cos(), torch.zeros_like(u)], dim=1)
    bundle = TangentBundle(points, 10)
    assert bundle.dim == 2
    tangent = bundle.ambient(bundle.node_of, bundle.coordinates(bundle.node_of, along))
    cosine = torch.nn.functional.cosine_similarity(bundle.diffuse(along, 20.0), tangent, dim=1)
    assert float(cosine.min()) > 0.98


def test_disconnected_clouds_are_refused_unless_asked_for():
    """Oracle: two spheres have twice the spectrum of one."""
    X = sphere(100)
    pair = torch.cat([X, X + 10])
    with pytest.raises(ArgumentError, match=r"2 components of \[100, 100\]"):
        TangentBundle(pair, 10)
    both = TangentBundle(pair, 10, allow_disconnected=True).eigenpairs(12).eigenvalues
    torch.testing.assert_close(both[::2], TangentBundle(X, 10).eigenpairs(6).eigenvalues[:6], rtol=1e-9, atol=1e-9)


def test_unresolved_curvature_is_told():
    """Oracle: two planes that cross at a right angle."""
    a, b = torch.rand(2, 150, 2, dtype=torch.float64, generator=seeded(5)) - 0.5
    zero = torch.zeros(150, 1, dtype=torch.float64)
    crossed = torch.cat([torch.cat([a, zero], 1), torch.cat([b[:, :1], zero, b[:, 1:]], 1)])
    with pytest.warns(UserWarning, match="does not resolve"):
        TangentBundle(crossed, 8, dim=2)


def test_flat_space_is_allowed():
    """Oracle: d = D makes the connection trivial, whatever the frames: its kernel has dimension d."""
    X = torch.rand(80, 2, dtype=torch.float64, generator=seeded(6))
    values = TangentBundle(X, 8, dim=2).eigenpairs(6).eigenvalues
    assert float(values[1]) < 1e-10 < 1e-4 < float(values[2])


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    X = sphere(50)
    with pytest.raises(ArgumentError, match="num_neighbors"):
        TangentBundle(X, 50)
    with pytest.raises(ArgumentError, match="dim"):
        TangentBundle(X, 10, dim=4)
    with pytest.raises(ArgumentError, match="graph"):
        TangentBundle(X, 10, graph="magic")
    with pytest.raises(ArgumentError, match="explained_variance"):
        TangentBundle(X, 10, explained_variance=0.0)
    with pytest.raises(NumericalError, match="X has NaN"):
        TangentBundle(X * math.nan, 10)
    bundle = TangentBundle(X, 10)
    with pytest.raises(ArgumentError, match="num_eigenpairs"):
        bundle.eigenpairs(0)
    with pytest.raises(ArgumentError, match="time"):
        bundle.diffuse(X, -1.0)
    with pytest.raises(ShapeError, match="F of shape"):
        bundle.diffuse(X[1:], 1.0)
    with pytest.raises(NumericalError, match="F has NaN"):
        bundle.index(X * math.nan)
    with pytest.raises(ArgumentError, match="dimension 1"):
        TangentBundle(X[:, :1], 10, dim=1).index(X[:, :1])
    with pytest.raises(ShapeError, match="coordinates"):
        bundle.extend(X[:, :2], bundle.eigenpairs(3))
    with pytest.raises(ShapeError, match="with_frames"):
        bundle.with_frames(bundle.frames[1:])
    with pytest.raises(ArgumentError, match="orthonormal"):
        bundle.with_frames(2 * bundle.frames)
