"""The second-moment radius against dense operators and simulated runs."""

import itertools

import pytest
import torch

from hesse.curvature.stability.radius import second_moment_radius
from hesse.curvature.stability.thresholds import max_stable_learning_rate
from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.linalg.basic import Dense

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def enumerated(features, lr, batch_size):
    """E[G ⊗ G] over every batch, G = I - η H_batch: the operator on P x P matrices as it is defined."""
    n, p = features.shape[0], features.shape[-1]
    eye = torch.eye(p, dtype=F64)
    batches = list(itertools.combinations(range(n), batch_size))
    total = torch.zeros(p * p, p * p, dtype=F64)
    for batch in batches:
        a = features[list(batch)].reshape(-1, p)
        G = eye - lr * a.mT @ a / batch_size
        total += torch.kron(G, G)
    return total / len(batches)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_radius_is_that_of_all_batches_enumerated(batch_size, outputs):
    """Oracle: E[G ⊗ G] over all batches, in P <= N C dimensions, so that nothing needs projecting."""
    features = draw(6, outputs, 4)
    lr = 0.8 * float(max_stable_learning_rate(features, batch_size))
    expected = float(torch.linalg.eigvalsh(enumerated(features, lr, batch_size))[-1])
    for method in ("gram", "dense"):
        assert second_moment_radius(features, lr, batch_size, method=method).value == pytest.approx(expected, abs=1e-10)


def test_more_samples_than_parameters_and_the_reverse():
    """Oracle: the operator formed from a singular value decomposition; null directions must not report 1."""
    for shape in ((20, 6), (6, 20), (12, 12)):
        features = draw(*shape, seed=3)
        lr = 0.5 * float(max_stable_learning_rate(features, 2))
        gram, dense = (second_moment_radius(features, lr, 2, method=m) for m in ("gram", "dense"))
        assert gram.converged
        assert gram.value == pytest.approx(dense.value, abs=1e-10)
        assert gram.value < 1


def test_eigenmatrix_is_not_needed_symmetric_in_samples_order():
    """Oracle: invariance under the order of samples and a rotation of the parameters."""
    features = draw(7, 5)
    rotation = torch.linalg.qr(draw(5, 5, seed=1)).Q
    first = second_moment_radius(features, 0.1, 2).value
    assert second_moment_radius(features[torch.randperm(7)] @ rotation, 0.1, 2).value == pytest.approx(first, abs=1e-10)


def test_a_repeated_sample_drawn_alone_is_gradient_descent():
    """Oracle: closed form, (1 - η ‖a‖²)²; without spread batches do not matter."""
    features = torch.ones(5, 3, dtype=F64)
    for batch_size in (1, 2, 5):
        assert second_moment_radius(features, 0.1, batch_size).value == pytest.approx((1 - 0.3) ** 2, abs=1e-12)


def test_mean_square_of_simulated_runs():
    """Oracle: 20,000 runs of ten steps; the mean square within four of its standard errors of tr T^t(M₀)."""
    features, batch_size, runs = draw(8, 3), 2, 20000
    lr = 1.1 * float(max_stable_learning_rate(features, batch_size))
    generator = torch.Generator().manual_seed(5)
    state = torch.randn(runs, 3, dtype=F64, generator=generator)
    T = enumerated(features, lr, batch_size)
    moment = torch.eye(3, dtype=F64).reshape(-1)
    for _ in range(10):
        index = torch.rand(runs, 8, generator=generator).topk(batch_size, dim=1).indices
        a = features[index]
        state = state - lr / batch_size * (a.mT @ (a @ state.unsqueeze(2))).squeeze(2)
        moment = T @ moment
    squares = state.square().sum(1)
    error = float(squares.std()) / runs**0.5
    assert abs(float(squares.mean()) - float(moment.view(3, 3).trace())) < 4 * error


@pytest.mark.parametrize("batch_size", [1, 4])
def test_loss_scaled_radius_is_that_of_its_dense_operator(batch_size):
    """Oracle: (I - ηH) M (I - ηH) + (η²/B) tr(HM) H as a dense matrix on P² entries."""
    features = draw(9, 4)
    H = features.mT @ features / 9
    step = torch.eye(4, dtype=F64) - 0.2 * H
    T = torch.kron(step, step) + 0.04 / batch_size * torch.outer(H.reshape(-1), H.reshape(-1))
    expected = float(torch.linalg.eigvalsh(T)[-1])
    found = second_moment_radius(features, 0.2, batch_size, noise="loss_scaled").value
    assert found == pytest.approx(expected, abs=1e-12)


def test_single_precision_features():
    """Oracle: the same features in double precision."""
    features = draw(10, 30)
    expected = second_moment_radius(features, 0.01, 2).value
    assert second_moment_radius(features.float(), 0.01, 2).value == pytest.approx(expected, abs=1e-6)


def test_nothing_moves_at_zero_and_nothing_is_there():
    """Oracle: the definitions: T = I at η = 0; H = 0 has no range."""
    assert second_moment_radius(draw(3, 4), 0.0, 1).value == 1
    assert second_moment_radius(torch.zeros(3, 4), 0.5, 1).value == 0


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    features = draw(4, 3)
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="lr"):
            second_moment_radius(features, bad, 1)
    with pytest.raises(ArgumentError, match="momentum"):
        second_moment_radius(features, 0.1, 1, momentum=1.0)
    with pytest.raises(ArgumentError, match="batch_size"):
        second_moment_radius(features, 0.1, 5)
    with pytest.raises(ArgumentError, match="method"):
        second_moment_radius(features, 0.1, 1, method="magic")
    with pytest.raises(ArgumentError, match="momentum"):
        second_moment_radius(features, 0.1, 1, momentum=0.5, method="dense")
    with pytest.raises(ArgumentError, match="momentum"):
        second_moment_radius(features, 0.1, 1, momentum=0.5, noise="loss_scaled")
    with pytest.raises(ArgumentTypeError, match="low_rank"):
        second_moment_radius(Dense(features), 0.1, 1)
    with pytest.raises(ArgumentError, match="dense"):
        second_moment_radius(draw(40, 40), 0.1, 1, method="dense")
