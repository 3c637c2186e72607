"""Extreme eigenvalues of batches: formulas against random matrices, predictions against batches of a network."""

import pytest
import torch

from hesse.curvature.batch_spectrum import (
    batch_extremal_eigenvalues,
    covariance_spike,
    inverse_effective_batch,
    wigner_spike,
)
from hesse.curvature.noise import CurvatureNoise
from hesse.errors import ArgumentError

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def made_up(eigenvalues, directional, *, largest=None, matrix="hessian", blocks=None, errors=0.0, total=1000):
    """Noise with numbers of our choice; P = 100."""
    values, s2 = torch.tensor(eigenvalues, dtype=F64), torch.tensor(directional, dtype=F64)
    k = len(values)
    blocks = torch.zeros(10, k, k, dtype=F64) if blocks is None else blocks
    inside = (blocks @ blocks).mean(0)
    return CurvatureNoise(
        eigenvalues=values,
        eigenvectors=torch.eye(100, k, dtype=F64),
        directional=s2,
        directional_error=torch.full_like(s2, errors),
        coupling=s2.diag() - inside.diagonal().diag(),
        blocks=blocks,
        largest_variance=torch.tensor(max(directional) if largest is None else largest, dtype=F64),
        largest_variance_error=torch.tensor(errors, dtype=F64),
        p_sigma2=torch.tensor(0.5, dtype=F64),
        p_sigma2_error=torch.tensor(0.1, dtype=F64),
        bulk_trace=torch.tensor(2.0, dtype=F64),
        bulk_trace_error=torch.tensor(0.2, dtype=F64),
        num_examples=total,
        matrix=matrix,
    )


@pytest.mark.parametrize("spike", [0.4, 1.5, 3.0])
def test_wigner_spike_against_a_random_matrix(spike):
    """Oracle: LAPACK on matrices of order 600, mean of six draws; 3 % and 0.05 allow for the finite order."""
    n, values, overlaps = 600, [], []
    for seed in range(6):
        noise = torch.randn(n, n, dtype=F64, generator=seeded(seed))
        matrix = (noise + noise.T) / (2 * n) ** 0.5
        matrix[0, 0] += spike
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        values.append(eigenvalues[-1])
        overlaps.append(vectors[0, -1] ** 2)
    found = wigner_spike(spike, 2.0)
    torch.testing.assert_close(found.value, torch.stack(values).mean(), rtol=0.03, atol=0)
    torch.testing.assert_close(found.overlap, torch.stack(overlaps).mean(), rtol=0, atol=0.05)
    assert bool(found.detached) == (spike > 1)


@pytest.mark.parametrize("spike", [1.0, 6.0, 15.0])
def test_covariance_spike_against_a_sample_covariance(spike):
    """Oracle: LAPACK on 200 samples of 700 variables, mean of eight draws; 4 % and 0.05 for the finite size."""
    p, n, values, overlaps = 700, 200, [], []
    for seed in range(8):
        rows = torch.randn(n, p, dtype=F64, generator=seeded(seed))
        rows[:, 0] *= spike**0.5
        _, s, vh = torch.linalg.svd(rows / n**0.5, full_matrices=False)
        values.append(s[0] ** 2)
        overlaps.append(vh[0, 0] ** 2)
    found = covariance_spike(spike, 1.0, p / n)
    torch.testing.assert_close(found.value, torch.stack(values).mean(), rtol=0.04, atol=0)
    torch.testing.assert_close(found.overlap, torch.stack(overlaps).mean(), rtol=0, atol=0.05)


def test_formulas_are_continuous_and_reach_their_limits():
    """Oracle: closed forms at the threshold, without noise, and for a flat population."""
    at = torch.tensor([1 - 1e-9, 1 + 1e-9], dtype=F64)
    torch.testing.assert_close(wigner_spike(at, 2.0).value, torch.full((2,), 2.0, dtype=F64))
    assert float(wigner_spike(3.0, 0.0).value) == 3
    assert float(wigner_spike(-3.0, 2.0).value) == 2  # a negative spike leaves the upper edge alone
    q = 4.0
    at = torch.tensor([3 - 1e-9, 3 + 1e-9], dtype=F64)  # σ²(1 + √q)
    torch.testing.assert_close(covariance_spike(at, 1.0, q).value, torch.full((2,), 9.0, dtype=F64))
    assert float(covariance_spike(5.0, 0.0, q).value) == 5
    assert float(covariance_spike(5.0, 1.0, 0.0).value) == 5


def test_directional_prediction_is_its_formula():
    """Oracle: by hand. l + s²/(b l) above the threshold, the edge with the largest variance below, for three sizes."""
    noise = made_up([2.0, 1.0, -0.5], [4.0, 9.0, 1.0], largest=12.0)
    sizes = torch.tensor([2, 100, 1000])
    found = batch_extremal_eigenvalues(noise, sizes)
    inverse = 1 / sizes.double() - 1e-3
    wanted = torch.stack([2 * (12 * inverse[0]).sqrt(), 2 + 4 * inverse[1] / 2, torch.tensor(2.0, dtype=F64)])
    torch.testing.assert_close(found.largest, wanted)
    assert found.detached.tolist() == [False, True, True]
    torch.testing.assert_close(found.overlap[1], 1 - 4 * inverse[1] / 4)
    torch.testing.assert_close(found.smallest[1], -(0.5 + inverse[1] / 0.5))
    torch.testing.assert_close(found.smallest[0], -2 * inverse[0].sqrt())
    assert float(found.overlap[2]) == 1


def test_isotropic_prediction_is_its_formula():
    """Oracle: the pure formulas, for both matrices."""
    inverse = 1 / 50 - 1e-3
    found = batch_extremal_eigenvalues(made_up([2.0, -0.1], [4.0, 1.0]), 50, model="isotropic")
    radius = 2 * (0.5 * inverse) ** 0.5
    torch.testing.assert_close(found.largest, wigner_spike(2.0, radius).value)
    torch.testing.assert_close(found.smallest, -wigner_spike(0.1, radius).value)
    found = batch_extremal_eigenvalues(made_up([2.0, 1.0], [4.0, 1.0], matrix="ggn"), 50, model="isotropic")
    torch.testing.assert_close(found.largest, covariance_spike(2.0, 2 / 98, 100 * inverse).value)
    assert float(found.smallest) == 0


def test_block_prediction_against_batches_drawn_in_the_block():
    """Oracle: 2000 batches without replacement from 60 given 2 x 2 matrices, largest eigenvalue, within five errors."""
    draws = torch.randn(60, 2, 2, dtype=F64, generator=seeded(0))
    blocks = (draws + draws.mT) / 2
    blocks = blocks - blocks.mean(0)
    inside = (blocks @ blocks).mean(0)
    noise = made_up([1.0, 0.9], inside.diagonal().tolist(), blocks=blocks, total=60, largest=1e-9)
    noise = CurvatureNoise(**{f: getattr(noise, f) for f in noise.__slots__} | {"coupling": torch.zeros_like(inside)})
    found = batch_extremal_eigenvalues(noise, 12, model="block", generator=seeded(1))
    rows = torch.stack([torch.randperm(60, generator=g)[:12] for g in [seeded(2)] for _ in range(2000)])
    tops = torch.linalg.eigvalsh(noise.eigenvalues.diag() + blocks[rows].mean(1))[:, -1]
    assert abs(float(found.largest - tops.mean())) < 5 * float(found.standard_error)
    assert float(found.largest) > 1.05  # two close eigenvalues repel, which no single formula knows


def test_block_without_fluctuation_is_second_order_in_the_coupling():
    """Oracle: the root of λ = l + s²/(b λ)."""
    noise = made_up([1.0], [3.0], largest=1e-9)
    found = batch_extremal_eigenvalues(noise, 20, model="block", generator=seeded(0))
    variance = 3 * (1 / 20 - 1e-3)
    assert float(found.largest) == pytest.approx((1 + (1 + 4 * variance) ** 0.5) / 2)


def test_standard_error_is_the_formulas_derivative():
    """Oracle: finite differences in s² of the spike, and of the edge."""
    for size, changed in ((200, "directional"), (1, "largest_variance")):
        noise = made_up([2.0, 0.1], [4.0, 1.0], largest=5.0, errors=1.0)
        moved = {f: getattr(noise, f) for f in noise.__slots__}
        moved[changed] = moved[changed] + 1e-6
        change = batch_extremal_eigenvalues(CurvatureNoise(**moved), size).largest
        found = batch_extremal_eigenvalues(noise, size)
        assert float(found.standard_error) == pytest.approx(float(change - found.largest) / 1e-6, rel=1e-3)


def test_whole_batch_has_no_noise():
    """Oracle: 1/b = 0 at B = N, for every model."""
    noise = made_up([2.0, -0.1], [4.0, 1.0])
    assert float(inverse_effective_batch("test", 1000, 1000)) == 0
    for model in ("directional", "isotropic", "block"):
        found = batch_extremal_eigenvalues(noise, 1000, model=model)
        assert float(found.largest) == pytest.approx(2.0)
        assert float(found.smallest) == pytest.approx(-0.1)
        assert float(found.standard_error) == pytest.approx(0, abs=1e-12)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    noise = made_up([2.0], [4.0])
    for size in (0, 1001, float("nan")):
        with pytest.raises(ArgumentError, match="batch_size <= 1000"):
            batch_extremal_eigenvalues(noise, size)
    with pytest.raises(ArgumentError, match="model"):
        batch_extremal_eigenvalues(noise, 10, model="magic")
    with pytest.raises(ArgumentError, match="radius"):
        wigner_spike(1.0, -1.0)
    with pytest.raises(ArgumentError, match="bulk"):
        covariance_spike(1.0, -1.0, 1.0)
