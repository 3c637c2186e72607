"""Coordinates on the range of H, and the noise of a batch."""

import itertools

import pytest
import torch

from hesse.curvature.stability.coordinates import batch_noise_factor, range_coordinates
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 3, 20), (6, 3, 7)])
def test_rows_are_a_rotation_of_the_features(shape):
    """Oracle: inner products between all gradients, and the dense H's eigenvalues."""
    features = draw(*shape)
    found = range_coordinates(features)
    flat = features.reshape(-1, shape[-1])
    rows = found.rows.flatten(0, 1)
    torch.testing.assert_close(rows @ rows.mT, flat @ flat.mT, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rows.mT @ rows / shape[0], torch.diag(found.eigenvalues), rtol=1e-10, atol=1e-10)
    dense = torch.linalg.eigvalsh(flat.mT @ flat / shape[0]).flip(0)
    torch.testing.assert_close(found.eigenvalues, dense[: found.rank], rtol=1e-10, atol=1e-12)
    assert found.rank == min(flat.shape)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_null_directions_are_left_out(dtype):
    """Oracle: the rank by construction, in both precisions and both shapes of Gram matrix."""
    low = draw(30, 4) @ draw(4, 50, seed=1)
    assert range_coordinates(low.to(dtype)).rank == 4
    assert range_coordinates(low.mT.to(dtype)).rank == 4
    assert range_coordinates(torch.zeros(3, 5, dtype=dtype)).rank == 0


@pytest.mark.parametrize("outputs", [1, 3])
def test_sample_term_and_noise_are_the_loops_over_samples(outputs):
    """Oracle: a loop over samples with dense P x P matrices, rotated."""
    features = draw(6, outputs, 8)
    found = range_coordinates(features)
    V = torch.linalg.lstsq(
        features.flatten(0, 1), found.rows.flatten(0, 1)
    ).solution  # P x R, orthonormal where it matters
    X = draw(found.rank, found.rank, seed=2)
    X = X + X.mT
    M = V @ X @ V.mT
    H_i = [a.mT @ a for a in features]
    H = sum(H_i) / 6
    expected = sum(h @ M @ h for h in H_i) / 6
    torch.testing.assert_close(V @ found.sample_term(X) @ V.mT, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(V @ found.gradient_noise(X) @ V.mT, expected - H @ M @ H, rtol=1e-9, atol=1e-9)
    assert found.sample_grams().shape == (6, outputs, outputs)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_noise_factor_is_the_variance_of_a_batch_mean(batch_size):
    """Oracle: all batches, enumerated, with and without replacement."""
    x = torch.tensor([0.3, -1.0, 2.0, 5.0], dtype=F64)
    single = x.var(unbiased=False)
    without = torch.stack([x[list(b)].mean() for b in itertools.combinations(range(4), batch_size)])
    torch.testing.assert_close(
        without.var(unbiased=False), batch_noise_factor(4, batch_size) * single, rtol=1e-12, atol=1e-12
    )
    repeated = torch.stack([x[list(b)].mean() for b in itertools.product(range(4), repeat=batch_size)])
    torch.testing.assert_close(
        repeated.var(unbiased=False), batch_noise_factor(4, batch_size, replacement=True) * single
    )


def test_one_sample_has_no_noise():
    """Oracle: the definition; (N - B) / (B (N - 1)) would be 0/0."""
    assert batch_noise_factor(1, 1) == 0
    assert batch_noise_factor(1, 3, replacement=True) == 0


def test_coordinates_are_handed_back():
    """Oracle: identity."""
    found = range_coordinates(draw(3, 4))
    assert range_coordinates(found) is found


def test_bad_features_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentTypeError, match="int64"):
        range_coordinates(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"\(N, P\)"):
        range_coordinates(torch.ones(3))
    with pytest.raises(ShapeError, match=r"\(N, P\)"):
        range_coordinates(torch.ones(0, 3))
    with pytest.raises(NumericalError, match="NaN"):
        range_coordinates(torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(ArgumentError, match="rtol"):
        range_coordinates(torch.ones(2, 2), rtol=1.0)
    with pytest.raises(ArgumentError, match="batch_size"):
        batch_noise_factor(4, 0)
    with pytest.raises(ArgumentError, match="replacement"):
        batch_noise_factor(4, 5)
