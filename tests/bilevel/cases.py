"""Problems of known hypergradient that several tests share, all small and in float64."""

import torch

from hesse.bilevel import problems


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tables(seed: int = 0, features: int = 12):
    g = seeded(seed)
    X, X_valid = (torch.randn(n, features, dtype=torch.float64, generator=g) for n in (60, 50))
    w = torch.randn(features, dtype=torch.float64, generator=g)
    t, t_valid = (A @ w + 0.3 * torch.randn(len(A), dtype=torch.float64, generator=g) for A in (X, X_valid))
    return X, t, X_valid, t_valid


def signs(seed: int = 0, features: int = 12):
    X, t, X_valid, t_valid = tables(seed, features)
    return X, t.sign(), X_valid, t_valid.sign()


EXACT = {
    "quadratic": lambda: problems.quadratic(7, 11, seed=3),
    "finite_sum": lambda: problems.quadratic(7, 11, num_samples=20, batch_size=4, seed=3),
    "ridge": lambda: problems.ridge(*tables()),
    "scalar_ridge": lambda: problems.ridge(*tables(), groups=torch.zeros(12, dtype=torch.int64)),
    "multi_ridge": lambda: problems.multi_ridge(4, 30, 6, seed=1),
    "logistic": lambda: problems.logistic(*signs()),
    "cosh_upper": lambda: problems.cosh_upper(5, noise=0.1, relative_noise=0.1),
}


def central_differences(value, x):
    unit = torch.eye(len(x), dtype=x.dtype)
    return torch.stack([(value(x + 1e-5 * e) - value(x - 1e-5 * e)) / 2e-5 for e in unit])


def relative(found, exact):
    return float((found - exact).norm() / exact.norm())
