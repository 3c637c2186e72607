import copy
import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.grassmann import (
    GrassmannParameter,
    grassmann_distance,
    grassmann_exp,
    grassmann_log,
    grassmann_project,
    orthonormalize,
    principal_angles,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def point(*shape: int, seed: int = 0) -> torch.Tensor:
    return GrassmannParameter.random(*shape, dtype=torch.float64, generator=seeded(seed)).data


def tangent(S: torch.Tensor, largest: float, seed: int = 1) -> torch.Tensor:
    H = grassmann_project(S, torch.randn(S.shape, dtype=torch.float64, generator=seeded(seed)))
    return H * (largest / torch.linalg.matrix_norm(H, ord=2))[..., None, None]


def test_geodesic_stays_orthonormal_and_projection_is_tangent():
    """Oracle: the identities SᵀS = I and SᵀH = 0, for a stack."""
    S = point(3, 10, 4)
    H = tangent(S, 1.2)
    eye = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    torch.testing.assert_close(S.mT @ H, torch.zeros(3, 4, 4, dtype=torch.float64), rtol=0, atol=1e-14)
    for t in (-2.0, 0.3, 5.0):
        moved = grassmann_exp(S, H, t)
        torch.testing.assert_close(moved.mT @ moved, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(grassmann_exp(S, torch.zeros_like(H)), S, rtol=0, atol=1e-14)


def test_geodesic_is_the_matrix_exponential():
    """Oracle: expm of the antisymmetric generator H Sᵀ - S Hᵀ applied to S."""
    S = point(8, 3)
    H = tangent(S, 0.9)
    rotation = torch.from_numpy(scipy.linalg.expm((H @ S.T - S @ H.T).numpy()))
    torch.testing.assert_close(grassmann_exp(S, H), rotation @ S, rtol=0, atol=1e-12)


@pytest.mark.parametrize("largest", [1e-9, 0.3, 1.5])
def test_log_undoes_exp(largest):
    """Oracle: the tangent vector itself, for angles below π/2, for a stack and for S2 turned within its span."""
    S = point(2, 9, 3)
    H = tangent(S, largest)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=seeded(4))).Q
    found = grassmann_log(S, grassmann_exp(S, H) @ turn)
    torch.testing.assert_close(found, H, rtol=1e-6, atol=1e-14 + 1e-11 * largest)


def test_principal_angles_match_scipy_and_see_small_ones():
    """Oracle: scipy.linalg.subspace_angles, unequal dimensions too; an angle of 1e-12 known in closed form."""
    S1, S2 = point(9, 4), point(9, 2, seed=1)
    peer = np.sort(scipy.linalg.subspace_angles(S1.numpy(), S2.numpy()))
    torch.testing.assert_close(principal_angles(S1, S2), torch.from_numpy(peer), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(principal_angles(S2, S1), torch.from_numpy(peer), rtol=1e-12, atol=1e-13)
    H = tangent(S1, 1e-12)
    angles = principal_angles(S1, grassmann_exp(S1, H))
    assert float(angles[-1]) == pytest.approx(1e-12, rel=1e-3)


def test_distance_is_the_length_of_the_geodesic():
    """Oracle: the Frobenius norm of the tangent vector; π/2 per direction for orthogonal spaces."""
    S = point(9, 3)
    H = tangent(S, 0.7)
    assert float(grassmann_distance(S, grassmann_exp(S, H))) == pytest.approx(float(H.norm()), rel=1e-10)
    eye = torch.eye(4, dtype=torch.float64)
    assert float(grassmann_distance(eye[:, :2], eye[:, 2:])) == pytest.approx(math.pi / 2 * 2**0.5)


def test_derivative_along_the_geodesic():
    """Oracle: central differences of a loss against <projected gradient, H>."""
    S, M = point(8, 3), torch.randn(8, 8, dtype=torch.float64, generator=seeded(5))
    M = M + M.T
    H = tangent(S, 1.0)

    def loss(X: torch.Tensor) -> torch.Tensor:
        return (X.T @ M @ X).trace()

    gradient = grassmann_project(S, 2 * M @ S)
    slope = (loss(grassmann_exp(S, H, 1e-5)) - loss(grassmann_exp(S, H, -1e-5))) / 2e-5
    assert float(slope) == pytest.approx(float((gradient * H).sum()), rel=1e-7)


def test_retraction_agrees_to_third_order():
    """Oracle: the exponential; halving the step divides the distance between the two by about eight."""
    S = point(8, 3)
    H = tangent(S, 1.0)
    gaps = [float(grassmann_distance(orthonormalize(S + t * H), grassmann_exp(S, H, t))) for t in (0.1, 0.05)]
    assert 6 < gaps[0] / gaps[1] < 10
    torch.testing.assert_close(orthonormalize(S), S, rtol=0, atol=1e-14)


def test_parameter_keeps_its_mark():
    """Oracle: isinstance after deepcopy, pickling, moving in a module, and loading a state dict."""
    parameter = GrassmannParameter.random(5, 8, 2, generator=seeded(0))
    assert isinstance(parameter, torch.nn.Parameter)
    assert parameter.requires_grad
    for copied in (copy.deepcopy(parameter), pickle.loads(pickle.dumps(parameter))):
        assert isinstance(copied, GrassmannParameter)
        assert torch.equal(copied, parameter)
    module = torch.nn.Module()
    module.weight = parameter
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.weight.zero_()
    other.load_state_dict(module.state_dict())
    other.double()
    assert isinstance(other.weight, GrassmannParameter)
    assert other.weight.dtype == torch.float64
    assert type(module.state_dict()["weight"]) is torch.Tensor
    gram = parameter.mT @ parameter
    torch.testing.assert_close(gram, torch.eye(2).expand(5, 2, 2), rtol=0, atol=1e-6)


def test_gradients():
    """Oracle: finite differences of the exponential (distinct singular values) and of the distance."""
    S = point(6, 2)
    H = tangent(S, 0.8).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: grassmann_exp(S, grassmann_project(S, h)) @ grassmann_exp(S, h).mT, H)
    other = point(6, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: grassmann_distance(S, x), other)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ShapeError, match="k <= d"):
        GrassmannParameter.random(2, 3)
    with pytest.raises(ShapeError, match="k <= d"):
        GrassmannParameter(torch.ones(2, 3))
    with pytest.raises(ShapeError, match="belong"):
        grassmann_project(torch.eye(3)[:, :2], torch.eye(3)[:, :1])
    eye = torch.eye(4)
    with pytest.raises(ArgumentError, match="π/2"):
        grassmann_log(eye[:, :2], eye[:, 1:3])
    with pytest.raises(ShapeError, match="subspaces"):
        principal_angles(eye[:, :2], torch.eye(3)[:, :1])
