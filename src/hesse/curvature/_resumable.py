"""The iterations behind `hesse.curvature.spectrum`, each saved step by step and able to go on.

Shapes: N order of the matrix, K probes or columns, M Lanczos steps.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Generator, Tensor

from hesse._progress import Advance, progress
from hesse.curvature._checkpoint import Checkpoint, Folder, open_checkpoint
from hesse.linalg._arguments import wide_dtype
from hesse.linalg._random import sign_columns
from hesse.linalg.eigen.eigsh import ThickRestart
from hesse.linalg.eigen.lanczos import LanczosState
from hesse.linalg.eigen.result import EigenResult
from hesse.linalg.operator import LinearOperator

__all__ = ["Moments", "SavedLanczos", "SavedRestarts", "own_generator", "sample"]

Rule = tuple[Tensor, Tensor, Tensor]
"""Nodes, weights and residuals of some probes, (K, M) each."""


def own_generator(generator: Generator | None) -> Generator:
    """Return the generator, or a new one that torch's global generator seeds: one whose state can be saved.

    Parameters
    ----------
    generator : torch.Generator, optional
        The user's.

    Returns
    -------
    torch.Generator
        On the CPU if it is new; the numbers then do not depend on the device of the matrix.
    """
    if generator is not None:
        return generator
    return Generator().manual_seed(int(torch.randint(2**62, ())))


class SavedRestarts:
    """Watches `eigsh`: saves the basis vectors as they come, and all of them anew after a restart.

    Parameters
    ----------
    checkpoint : Checkpoint, optional
        Where to. Default: nowhere, the steps are counted only.
    generator : torch.Generator
        Its state is saved too.
    advance : Advance
        Told of every product.
    """

    def __init__(self, checkpoint: Checkpoint | None, generator: Generator, advance: Advance) -> None:
        self.checkpoint, self.generator, self.advance = checkpoint, generator, advance
        self._columns, self._restarts = 0, 0  # saved so far, and since which restart

    def finished(self) -> EigenResult | None:
        """Read the result of a run that has ended.

        Returns
        -------
        EigenResult or None
            None while it has not.
        """
        state = {} if self.checkpoint is None else self.checkpoint.load_state()
        if "eigenvalues" not in state:
            return None
        converged, steps, matvecs = (int(count) for count in state["counts"])
        return EigenResult(
            state["eigenvalues"], state["eigenvectors"], state["residuals"], bool(converged), steps, matvecs
        )

    def finish(self, result: EigenResult) -> None:
        """Save the result in the place of the basis.

        Parameters
        ----------
        result : EigenResult
            What `eigsh` returned.
        """
        if self.checkpoint is not None:
            counts = torch.tensor([int(result.converged), result.num_steps, result.num_matvecs])
            tensors = {
                "eigenvalues": result.eigenvalues,
                "eigenvectors": result.eigenvectors,
                "residuals": result.residuals,
                "counts": counts,
            }
            self.checkpoint.save(tensors, restart=True)

    def resume(self) -> ThickRestart | None:
        """Read where the run stopped.

        Returns
        -------
        ThickRestart or None
            None at the beginning.
        """
        state = {} if self.checkpoint is None else self.checkpoint.load_state()
        if self.checkpoint is None or not state:
            return None
        self.generator.set_state(state["generator"].cpu())
        basis = torch.cat([row["columns"] for row in self.checkpoint.load_rows()], dim=1)
        restarts, matvecs, kept = (int(count) for count in state["counts"])
        self._columns, self._restarts = basis.shape[1], restarts
        self.advance(matvecs)
        return ThickRestart(basis, state["T"], state["coupling"], restarts, matvecs, kept)

    def __call__(self, state: ThickRestart) -> None:
        """Save a step.

        Parameters
        ----------
        state : ThickRestart
            As `eigsh` hands it over.
        """
        self.advance(1)
        if self.checkpoint is None:
            return
        restarted = state.num_restarts != self._restarts
        first = 0 if restarted else self._columns
        counts = torch.tensor([state.num_restarts, state.num_matvecs, state.num_kept])
        tensors = {
            "T": state.T,
            "coupling": state.coupling,
            "counts": counts,
            "generator": self.generator.get_state(),
        }
        self.checkpoint.save(tensors, {"columns": state.basis[:, first:]}, restart=restarted)
        self._columns, self._restarts = state.basis.shape[1], state.num_restarts


class SavedLanczos:
    """Watches `lanczos` run after run: saves the basis as it grows, and after each run its quadrature rule alone.

    Parameters
    ----------
    checkpoint : Checkpoint, optional
        Where to. Default: nowhere, the steps are counted only.
    generator : torch.Generator
        Its state is saved too.
    advance : Advance
        Told of every product.
    """

    def __init__(self, checkpoint: Checkpoint | None, generator: Generator, advance: Advance) -> None:
        self.checkpoint, self.generator, self.advance = checkpoint, generator, advance
        self.rules: list[Rule] = []

    def resume(self) -> LanczosState | None:
        """Read the rules of finished runs, and where the unfinished one stopped.

        Returns
        -------
        LanczosState or None
            None between two runs.
        """
        state = {} if self.checkpoint is None else self.checkpoint.load_state()
        if self.checkpoint is None or not state:
            return None
        self.generator.set_state(state["generator"].cpu())
        while f"nodes {len(self.rules)}" in state:
            i = len(self.rules)
            self.rules.append((state[f"nodes {i}"], state[f"weights {i}"], state[f"residuals {i}"]))
        done = sum(rule[0].numel() for rule in self.rules)
        if "alpha" not in state:
            self.advance(done)
            return None
        basis = torch.stack([row["vectors"] for row in self.checkpoint.load_rows()])
        self.advance(done + state["alpha"].numel())
        return LanczosState(
            state["alpha"],
            state["beta"],
            state["start_norm"],
            basis[-1],
            state["current"],
            basis,
            overlap=None,
            reorthogonalize="full",
            num_reorthogonalizations=0,
            sweep_pending=False,
        )

    def __call__(self, state: LanczosState) -> None:
        """Save a step.

        Parameters
        ----------
        state : LanczosState
            As `lanczos` hands it over.
        """
        self.advance(state.alpha.shape[1])
        if self.checkpoint is None:
            return
        tensors = {
            "alpha": state.alpha,
            "beta": state.beta,
            "start_norm": state.start_norm,
            "current": state.current,
        }
        self.checkpoint.save({**tensors, **self._common()}, {"vectors": state.previous})

    def finish_run(self, rule: Rule) -> None:
        """Keep a run's quadrature rule and drop its basis.

        Parameters
        ----------
        rule : tuple of Tensor
            From `LanczosState.ritz`.
        """
        self.rules.append(rule)
        if self.checkpoint is not None:
            self.checkpoint.save(self._common(), restart=True)

    def _common(self) -> dict[str, Tensor]:
        named = {
            f"{name} {i}": tensor
            for i, rule in enumerate(self.rules)
            for name, tensor in zip(("nodes", "weights", "residuals"), rule, strict=True)
        }
        return {**named, "generator": self.generator.get_state()}


class Moments:
    """Running mean and sum of squared deviations of samples in the last axis, merged without cancellation.

    Parameters
    ----------
    mean, squares : Tensor
        Of equal shape.
    count : int
        Samples so far.
    """

    def __init__(self, mean: Tensor, squares: Tensor, count: int) -> None:
        self.mean, self.squares, self.count = mean, squares, count

    def add(self, samples: Tensor) -> None:
        """Take further samples in.

        Parameters
        ----------
        samples : Tensor, shape (..., K)
            K of them.
        """
        width = samples.shape[-1]
        total = self.count + width
        inner = samples.mean(-1)
        gap = inner - self.mean
        between = gap.square() * (self.count * width / total)
        self.squares = self.squares + (samples - inner.unsqueeze(-1)).square().sum(-1) + between
        self.mean = self.mean + gap * (width / total)
        self.count = total

    def standard_error(self) -> Tensor:
        """Estimate how far the mean is from what it estimates.

        Returns
        -------
        Tensor
            Of the shape of the mean; needs two samples.
        """
        return (self.squares / (self.count - 1) / self.count).sqrt()


def sample(
    kind: str,
    operator: LinearOperator,
    settings: Mapping[str, Any],
    samples_of: Callable[[Tensor, Tensor], Tensor],
    settled: Callable[[Moments], bool],
    generator: Generator | None,
    run: Folder | None,
    show_progress: bool | None,
) -> Moments:
    """Average a function of random sign vectors and their images, saved chunk by chunk.

    Parameters
    ----------
    kind : str
        What is computed.
    operator : LinearOperator, shape (N, N)
        A.
    settings : mapping
        ``num_probes`` and ``chunk_size``, and whatever else decides the numbers.
    samples_of : callable
        (Z, A Z) -> one sample a column, (..., K).
    settled : callable
        Whether the moments suffice.
    generator : torch.Generator, optional
        Source of the signs.
    run : str or PathLike, optional
        Folder of the run.
    show_progress : bool, optional
        Whether to show a bar.

    Returns
    -------
    Moments
        Of all samples.
    """
    generator = own_generator(generator)
    num_probes, chunk_size = settings["num_probes"], settings["chunk_size"]
    n, wide = operator.shape[0], wide_dtype(operator.dtype)
    with ExitStack() as stack, torch.no_grad():
        checkpoint = None
        if run is not None:
            checkpoint = stack.enter_context(open_checkpoint(run, kind, settings, operator))
        advance = stack.enter_context(progress(kind, num_probes, unit="products", enabled=show_progress))
        saved = {} if checkpoint is None else checkpoint.load_state()
        zero = torch.zeros((), dtype=wide, device=operator.device)
        moments = Moments(zero, zero, 0)
        if saved:
            moments = Moments(saved["mean"], saved["squares"], int(saved["count"]))
            generator.set_state(saved["generator"].cpu())
            advance(moments.count)
        while moments.count < num_probes and not settled(moments):
            width = min(chunk_size, num_probes - moments.count)
            signs = sign_columns(n, width, dtype=operator.dtype, device=operator.device, generator=generator)
            moments.add(samples_of(signs.to(wide), operator.matmat(signs).to(wide)))
            advance(width)
            if checkpoint is not None:
                state = {
                    "mean": moments.mean,
                    "squares": moments.squares,
                    "count": torch.tensor(moments.count),
                    "generator": generator.get_state(),
                }
                checkpoint.save(state)
    return moments
