"""Make the networks that come with `hesse.pde.dcdm`: ``python -m benchmarks.pde._dcdm_train 2`` (or ``3``).

CPU time on one core: about two minutes in 2-D, three in 3-D. The benchmark repeats ``train`` from its own seed.
``--size 32`` trains on another grid, ``--out`` writes elsewhere than into the package.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import hesse.pde.dcdm as package
from hesse.io import save_tensors
from hesse.linalg.stencil import PoissonStencil
from hesse.pde.dcdm import DeepConjugateDirection

__all__ = ["SETTINGS", "train"]

FOLDER = Path(package.__file__).parent
SIZES = {2: 64, 3: 24}
SETTINGS: dict[int, dict[str, Any]] = {
    2: {"num_ritz": 400, "num_steps": 1600, "batch_size": 10},
    3: {"num_ritz": 300, "num_steps": 1200, "batch_size": 5},
}


def train(dim: int, seed: int, *, size: int | None = None, **changes: Any) -> tuple[DeepConjugateDirection, float]:
    """Fit a network on the empty box, Dirichlet on all sides; the solver and the CPU seconds it took."""
    operator = PoissonStencil(torch.ones((size or SIZES[dim],) * dim, dtype=torch.bool))
    start = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    solver = DeepConjugateDirection().fit(operator, generator=generator, **(SETTINGS[dim] | changes))
    return solver, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.pde._dcdm_train", description=__doc__)
    parser.add_argument("dim", type=int, choices=(2, 3))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="cells a side")
    parser.add_argument("--out", type=Path, help="default: the file in the package")
    options = parser.parse_args()
    solver, seconds = train(options.dim, options.seed, size=options.size)
    path = options.out or FOLDER / f"weights_{options.dim}d.safetensors"
    entry = save_tensors(path, solver.state_dict(with_training=False))
    print(f"{path}: {entry.size:,} bytes, {seconds:.0f} CPU s, loss {float(solver.losses[-100:].mean()):.4f}")


if __name__ == "__main__":
    main()
