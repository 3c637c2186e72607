"""What FunBaT is compared with: masked decompositions of binned entries, Gaussian processes, boosted trees."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.peers import require_peer

__all__ = ["boosted_trees", "gaussian_processes", "rmse", "tensorly_cells"]


def rmse(found: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square error."""
    return float(np.sqrt(np.mean((found - wanted) ** 2)))


def tensorly_cells(
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    truth: np.ndarray,
    bins: Sequence[Sequence[int]],
    ranks: Sequence[int],
    steps: int,
) -> dict[str, float]:
    """Error of masked Tucker and CP for every number of bins and rank; entries of one bin are averaged."""
    tensorly, decomposition = require_peer("tensorly"), require_peer("tensorly.decomposition")
    low, span = x.min(0), np.ptp(x, axis=0)
    center = y.mean()
    errors: dict[str, float] = {}
    for counts in bins:
        sizes = np.asarray(counts)
        place, test_place = (
            tuple(np.clip(((p - low) / span * sizes).astype(int), 0, sizes - 1).T) for p in (x, x_test)
        )
        total, number = np.zeros(counts), np.zeros(counts)
        np.add.at(total, place, y - center)
        np.add.at(number, place, 1.0)
        mask = (number > 0).astype(float)
        tensor = total / np.maximum(number, 1)
        for rank in ranks:
            runs: dict[str, Callable[[], np.ndarray]] = {
                "Tucker": lambda rank=rank, tensor=tensor, mask=mask: tensorly.tucker_to_tensor(
                    decomposition.tucker(
                        tensor, [min(rank, n) for n in tensor.shape], mask=mask, n_iter_max=steps, random_state=0
                    )
                ),
                "CP": lambda rank=rank, tensor=tensor, mask=mask: tensorly.cp_to_tensor(
                    decomposition.parafac(
                        tensor, rank, mask=mask, n_iter_max=steps, init="random", random_state=0, tol=1e-6
                    )
                ),
            }
            for name, run in runs.items():
                cell = f"{name} R={rank}, {'x'.join(map(str, counts))} bins"
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        errors[cell] = rmse(run()[test_place] + center, truth)
                except (np.linalg.LinAlgError, ValueError):  # a singular step of the peer: no result, not a good one
                    errors[cell] = float("inf")
    return errors


def gaussian_processes(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, truth: np.ndarray, seed: int, *, restarts: int = 1
) -> dict[str, float]:
    """scikit-learn's, one length scale a coordinate in [0.02, 5] ranges, the best of several starts by likelihood."""
    process = require_peer("sklearn.gaussian_process")
    kernels = process.kernels
    low, span = x.min(0), np.ptp(x, axis=0)
    x, x_test = (x - low) / span, (x_test - low) / span
    scale = y.std()
    out = {}
    for name, shape in (("Matern 3/2", kernels.Matern), ("RBF", kernels.RBF)):
        options = {"length_scale": [0.3] * x.shape[1], "length_scale_bounds": (0.02, 5.0)}
        kernel = kernels.ConstantKernel(1.0, (1e-2, 1e2)) * shape(**options) + kernels.WhiteKernel(0.05, (1e-6, 1.0))
        model = process.GaussianProcessRegressor(kernel, n_restarts_optimizer=restarts, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, (y - y.mean()) / scale)
        out[f"GP {name}"] = rmse(model.predict(x_test) * scale + y.mean(), truth)
    return out


def boosted_trees(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, float]:
    """scikit-learn's gradient boosting, 300 trees of depth 4."""
    ensemble = require_peer("sklearn.ensemble")
    model = ensemble.GradientBoostingRegressor(n_estimators=300, max_depth=4, learning_rate=0.1, random_state=seed)
    return {"boosted trees": rmse(model.fit(x, y).predict(x_test), truth)}
