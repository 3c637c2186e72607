"""What rvgp is compared with: channel-wise processes, in the ambient space and on meshes, splines and vector heat."""

import math
import warnings

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from benchmarks.peers import require_peer
from hesse.gp.rvgp import KernelKind, TangentBundle
from hesse.gp.rvgp.spectral import SpectralPrior, fit_evidence, moments_of, posterior

__all__ = ["ambient_rbf", "channelwise", "mesh_matern", "spherical_spline", "vector_heat"]


def channelwise(
    bundle: TangentBundle, idx: Tensor, F: Tensor, num_eigenpairs: int, kernel: KernelKind = "matern"
) -> Tensor:
    """Each Cartesian component by itself on eigenfunctions of the scalar Laplacian, with the same spectrum and fit."""
    eigen = bundle.eigenpairs(num_eigenpairs, scalar=True)
    values = eigen.eigenvalues
    median = values[values > 1e-10 * values[-1]].median()
    prior = SpectralPrior(values / median, eigen.mean_squares, kernel, 1.5, 0.0)
    features = eigen.fields[:, 0]
    scale = math.log(float(F.square().mean()))
    start = torch.tensor([math.log(5.0), scale, math.log(1e-3) + scale], dtype=torch.float64)
    second = start - torch.tensor([math.log(10.0), 0.0, 0.0], dtype=torch.float64)
    moments = moments_of(features[bundle.node_of[idx]], F)
    theta = fit_evidence(moments, prior, torch.stack([start, second]), max_iter=1000).theta
    mean, _ = posterior(moments, prior.variances(theta), theta[2].exp())
    return (features @ mean)[bundle.node_of]


def ambient_rbf(points: Tensor, idx: Tensor, F: Tensor, seed: int) -> Tensor:
    """scikit-learn's process with a fitted squared exponential of the coordinates, all components at once."""
    gp = require_peer("sklearn.gaussian_process")
    kernels = require_peer("sklearn.gaussian_process.kernels")
    kernel = kernels.ConstantKernel(1.0, (1e-3, 1e5)) * kernels.RBF(0.5, (1e-2, 1e2))
    kernel = kernel + kernels.WhiteKernel(1e-3, (1e-9, 1e1))
    model = gp.GaussianProcessRegressor(kernel, n_restarts_optimizer=2, normalize_y=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of parameters at their bounds
        model.fit(points[idx].numpy(), F.numpy())
    return torch.from_numpy(model.predict(points.numpy()))


def mesh_matern(vertices: Tensor, faces: Tensor, idx: Tensor, F: Tensor) -> Tensor:
    """geometric-kernels: the Matérn kernel (ν = 3/2) of a mesh, components apart, evidence fitted as in ours."""
    kernels = require_peer("geometric_kernels.kernels")
    space = require_peer("geometric_kernels.spaces").Mesh(vertices.numpy(), faces.numpy())
    kernel = kernels.MaternKarhunenLoeveKernel(space, 100)
    every, seen, targets = np.arange(len(vertices))[:, None], idx.numpy()[:, None], F.numpy()
    scale = float((targets**2).mean())

    def matrices(theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        params = {"nu": np.array([1.5]), "lengthscale": np.exp(theta[:1])}
        return np.exp(theta[1]) * scale * np.asarray(kernel.K(params, rows, seen))

    def loss(theta: np.ndarray) -> float:
        lower = np.linalg.cholesky(matrices(theta, seen) + np.exp(theta[2]) * scale * np.eye(len(seen)))
        white = np.linalg.solve(lower, targets)
        return float((white**2).sum() / 2 + targets.shape[1] * np.log(np.diag(lower)).sum())

    bounds = np.log([[1e-2, 1e2], [1e-4, 1e6], [1e-9, 10.0]])
    starts = (np.log([1.0, 1.0, 1e-3]), np.log([0.2, 1.0, 1e-3]))
    best = min((minimize(loss, start, method="L-BFGS-B", bounds=bounds) for start in starts), key=lambda end: end.fun)
    system = matrices(best.x, seen) + np.exp(best.x[2]) * scale * np.eye(len(seen))
    return torch.from_numpy(matrices(best.x, every) @ np.linalg.solve(system, targets))


def vector_heat(vertices: Tensor, faces: Tensor, idx: Tensor, F: Tensor) -> Tensor:
    """potpourri3d: extension by the vector heat method on the mesh."""
    solver = require_peer("potpourri3d").MeshVectorHeatSolver(vertices.numpy(), faces.numpy())
    first, second, _ = (torch.from_numpy(np.asarray(part)) for part in solver.get_tangent_frames())
    frames = torch.stack([first, second], dim=2)
    local = torch.einsum("qka,qk->qa", frames[idx], F)
    found = torch.from_numpy(np.asarray(solver.transport_tangent_vectors(idx.tolist(), local.tolist())))
    return torch.einsum("pka,pa->pk", frames, found)


def spherical_spline(points: Tensor, idx: Tensor, F: Tensor) -> Tensor:
    """mne's interpolation of bad electrodes by spherical splines, each component by itself."""
    interpolation = require_peer("mne.channels.interpolation")
    matrix = interpolation._make_interpolation_matrix(points[idx].numpy(), points.numpy())
    return torch.from_numpy(np.asarray(matrix)) @ F
