"""Make the networks that come with `hesse.pde.dcdm`: ``python -m benchmarks.pde._dcdm_train 2`` (or ``3``).

On one core of a 2-core machine: 2-D two and a half minutes, 3-D six. ``train`` is what the benchmark repeats from its
own seed; ``--out`` writes elsewhere than into the package.
"""

import argparse
import time
from pathlib import Path

import torch

import hesse.pde.dcdm as package
from hesse.io import save_tensors
from hesse.linalg.stencil import PoissonStencil
from hesse.pde.dcdm import DeepConjugateDirection

__all__ = ["SETTINGS", "train"]

FOLDER = Path(package.__file__).parent
SETTINGS = {
    2: {"grid": (64, 64), "num_ritz": 400, "num_steps": 2400, "batch_size": 10},
    3: {"grid": (24, 24, 24), "num_ritz": 300, "num_steps": 1200, "batch_size": 5},
}


def train(dim: int, seed: int, **changes: object) -> tuple[DeepConjugateDirection, float]:
    """Fit a network on the empty box, Dirichlet on all sides; the solver and the CPU seconds it took."""
    settings = SETTINGS[dim] | changes
    operator = PoissonStencil(torch.ones(settings.pop("grid"), dtype=torch.bool))
    start = time.process_time()
    solver = DeepConjugateDirection().fit(operator, generator=torch.Generator().manual_seed(seed), **settings)
    return solver, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.pde._dcdm_train", description=__doc__)
    parser.add_argument("dim", type=int, choices=(2, 3))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: the file in the package")
    options = parser.parse_args()
    solver, seconds = train(options.dim, options.seed)
    path = options.out or FOLDER / f"dcdm_{options.dim}d.safetensors"
    entry = save_tensors(path, solver.state_dict(with_training=False))
    print(f"{path}: {entry.size:,} bytes, {seconds:.0f} CPU s, loss {float(solver.losses[-100:].mean()):.4f}")


if __name__ == "__main__":
    main()
