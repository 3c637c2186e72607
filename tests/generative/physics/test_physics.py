"""Measurement operators, their adjoints, and filtered back-projection."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.generative.physics import (
    Blur,
    Inpainting,
    MultiCoilMRI,
    ParallelBeamCT,
    RealView,
    coil_maps,
    filtered_back_projection,
    from_deepinv,
    require_adjoint,
    sampling_mask,
)
from hesse.generative.physics.adapters import normal_operator
from hesse.linalg import Dense, FunctionOperator
from hesse.testing import check_linear_operator


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mri(coils: int = 3, *, real_picture: bool | None = None, dtype: torch.dtype = torch.complex128):
    mask = sampling_mask((6, 9), "gaussian2d", 3.0, 0.2, generator=seeded(0))
    operator = MultiCoilMRI(coil_maps(coils, (6, 9), dtype=dtype), mask)
    return operator if real_picture is None else RealView(operator, real_picture=real_picture)


OPERATORS = {
    "mri": mri(),
    "mri, real picture": mri(real_picture=True),
    "mri, two channels": mri(real_picture=False),
    "ct": ParallelBeamCT(7, [0.0, 17.0, 45.0, 90.0, 133.0], dtype=torch.float64),
    "inpainting": Inpainting(torch.rand(5, 4, generator=seeded(1)) > 0.4, dtype=torch.float64),
    "blur": Blur(torch.rand(3, 2, dtype=torch.float64, generator=seeded(2)), (5, 7)),
}


@pytest.mark.parametrize("name", list(OPERATORS))
def test_adjoint_is_exact(name):
    """Oracle: <A x, y> = <x, A^H y>, to 1e-10 in double precision."""
    require_adjoint(OPERATORS[name], rtol=1e-10)


@pytest.mark.parametrize("name", list(OPERATORS))
def test_operators_keep_the_contract(name):
    """Oracle: the conformance suite of linear operators."""
    check_linear_operator(OPERATORS[name])


def test_mri_is_the_masked_transform_of_every_coil():
    """Oracle: fftshift(fft2(ifftshift(S x))) at the sampled places, coil by coil."""
    operator = mri()
    x = torch.randn(54, dtype=torch.complex128, generator=seeded(3))
    for coil, block in enumerate(operator.matvec(x).reshape(3, -1)):
        seen = operator.maps[coil] * x.reshape(6, 9)
        full = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(seen), norm="ortho"))
        torch.testing.assert_close(block, full[operator.mask])


@pytest.mark.parametrize("name", ["mri, real picture", "mri, two channels", "blur"])
def test_normal_operator_is_the_gram_matrix(name):
    """Oracle: the dense product A^T A."""
    dense = OPERATORS[name].to_dense()
    gram = normal_operator(OPERATORS[name])
    torch.testing.assert_close(gram.to_dense(), dense.T @ dense)
    assert gram.is_psd


def test_one_coil_has_orthonormal_rows_and_maps_a_partition():
    """Oracle: A A^H = I for one map of ones; Σ |S_c|² = 1 and so ‖A‖ <= 1."""
    mask = sampling_mask((6, 9), generator=seeded(0))
    single = MultiCoilMRI(torch.ones(1, 6, 9, dtype=torch.complex128), mask).to_dense()
    torch.testing.assert_close(single @ single.mH, torch.eye(len(single), dtype=single.dtype))
    maps = coil_maps(4, (6, 9), dtype=torch.complex128)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(6, 9, dtype=torch.float64))
    assert float(torch.linalg.matrix_norm(mri(4).to_dense(), 2)) <= 1 + 1e-12


def test_mri_moves_to_another_dtype():
    """Oracle: the same operator built in single precision."""
    moved, built = mri().to(dtype=torch.complex64), mri(dtype=torch.complex64)
    x = torch.randn(54, dtype=torch.complex64, generator=seeded(0))
    torch.testing.assert_close(moved.matvec(x), built.matvec(x))


@pytest.mark.parametrize("kind", ["uniform1d", "gaussian1d", "gaussian2d"])
def test_masks_have_their_size_and_centre(kind):
    """Oracle: counting; 1-D masks take whole columns."""
    mask = sampling_mask((48, 64), kind, 4.0, 0.08, generator=seeded(0))
    assert int(mask.sum()) == 48 * 64 // 4
    assert bool(mask[23:25, 30:35].all())
    if kind != "gaussian2d":
        assert bool((mask == mask[0]).all())
    if kind != "uniform1d":
        distance = (torch.arange(64) - 32).abs().double().expand(48, 64)
        assert float(distance[mask].mean()) < float(distance.mean())


def test_line_integrals_of_a_disc():
    """Oracle: chords of a disc, 2 sqrt(r² - s²); pixels leave an error of the size of one."""
    size, radius = 64, 0.3
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
    disc = (axis.square().unsqueeze(1) + axis.square() <= radius**2).double()
    physics = ParallelBeamCT(size, torch.arange(0, 180, 15.0), dtype=torch.float64)
    offset = (torch.arange(physics.num_detectors) - (physics.num_detectors - 1) / 2) / size
    chords = 2 * (radius**2 - offset.square()).clamp_min(0).sqrt()
    sinogram = physics.matvec(disc.flatten()).reshape(12, -1)
    assert float((sinogram - chords).abs().max()) < 5 / size
    torch.testing.assert_close(sinogram.sum(1) / size, disc.sum().expand(12) / size**2, rtol=0.01, atol=0)


def test_directions_of_the_beam():
    """Oracle: by hand: at 0 degrees rays run along columns from left to right, at 90 along rows from bottom to top."""
    picture = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    physics = ParallelBeamCT(2, [0.0, 90.0], num_detectors=2)
    torch.testing.assert_close(physics.matvec(picture.flatten()), torch.tensor([4.0, 7.0, 8.0, 3.0]) / 2)


def test_filtered_back_projection_inverts_many_views():
    """Oracle: the smooth picture that was projected."""
    size = 48
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    picture = torch.exp(-(((axis.unsqueeze(1) - 0.2) / 0.25) ** 2) - ((axis + 0.1) / 0.35) ** 2)
    physics = ParallelBeamCT(size, torch.arange(120) * 1.5, dtype=torch.float64)
    found = filtered_back_projection(physics, physics.matvec(picture.flatten()).expand(2, -1))
    assert found.shape == (2, size, size)
    assert float((found[1] - picture).norm() / picture.norm()) < 0.05


def test_blur_is_a_circular_convolution():
    """Oracle: a loop over the kernel."""
    kernel, x = torch.rand(3, 4, generator=seeded(0)), torch.rand(6, 5, generator=seeded(1))
    expected = sum(kernel[i, j] * x.roll((i - 1, j - 2), (0, 1)) for i in range(3) for j in range(4))
    torch.testing.assert_close(Blur(kernel, (6, 5)).matvec(x.flatten()).reshape(6, 5), expected)


def test_foreign_physics_is_wrapped():
    """Oracle: the dense matrix behind an object with A and A_adjoint."""
    matrix = torch.randn(3, 8, generator=seeded(0))

    class Physics:
        def A(self, x):
            return x.flatten(1) @ matrix.T

        def A_adjoint(self, y):
            return (y @ matrix).reshape(-1, 2, 4)

    operator = from_deepinv(Physics(), (2, 4))
    torch.testing.assert_close(operator.to_dense(), matrix)
    torch.testing.assert_close(operator.H.to_dense(), matrix.T)
    with pytest.raises(ArgumentTypeError, match="A_adjoint"):
        from_deepinv(object(), (2, 4))


def test_false_adjoint_is_refused():
    """Oracle: a back-projection that is 5 % off."""
    matrix = torch.randn(4, 6, generator=seeded(0))
    false = FunctionOperator(lambda x: matrix @ x, (4, 6), rmatmat_fn=lambda y: 1.05 * matrix.T @ y)
    with pytest.raises(ArgumentError, match="adjoint"):
        require_adjoint(false)
    require_adjoint(Dense(matrix))


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    maps, mask = coil_maps(2, (4, 4)), torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(ArgumentTypeError, match="boolean"):
        MultiCoilMRI(maps, mask.float())
    with pytest.raises(ShapeError, match="maps"):
        MultiCoilMRI(maps, mask[:3])
    with pytest.raises(ArgumentError, match="nothing"):
        MultiCoilMRI(maps, ~mask)
    with pytest.raises(ArgumentTypeError, match="complex"):
        RealView(Dense(torch.eye(3)))
    with pytest.raises(ArgumentError, match="kind"):
        sampling_mask((4, 4), "spiral")
    with pytest.raises(ArgumentError, match="acceleration"):
        sampling_mask((4, 4), acceleration=0.5)
    with pytest.raises(ArgumentError, match="num_coils"):
        coil_maps(0, (4, 4))
    with pytest.raises(ArgumentError, match="angles"):
        ParallelBeamCT(4, [math.nan])
    with pytest.raises(ArgumentTypeError, match="boolean"):
        Inpainting(mask.float())
    with pytest.raises(ArgumentError, match="no pixel"):
        Inpainting(~mask)
    with pytest.raises(ShapeError, match="kernel"):
        Blur(torch.ones(5, 5), (4, 4))
    with pytest.raises(ShapeError, match="filtered_back_projection"):
        filtered_back_projection(ParallelBeamCT(4, [0.0]), torch.ones(3))
