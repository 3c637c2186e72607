"""Solved queries of one question, kept in its run as they are solved, so that a killed process solves none twice.

Of several processes each solves queries of its own with the whole training set: columns of a solve do not depend on
each other, so nothing is exchanged on the way.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse._progress import progress
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError, MemoryLimitError
from hesse.influence.contraction import QueryMatrices, empty_queries, put
from hesse.influence.corpus import open_corpus
from hesse.influence.distributed import ALONE, Team, contiguous
from hesse.influence.examples import Examples, as_examples, plan_units
from hesse.influence.factors import Factors
from hesse.influence.gradients import stacked_gradients
from hesse.influence.passes import Measurement, Pass
from hesse.influence.run import RunFolder
from hesse.influence.score import ScoreSettings
from hesse.influence.solvers.options import Solver
from hesse.influence.solvers.solve import Solved, solve
from hesse.influence.solvers.system import DampedGaussNewton
from hesse.io import FileEntry, load_tensors, save_tensors

__all__ = ["StoredSolver", "solved_self_scores", "training_set"]

_STACKS = 12  # of gradients that a solve holds at its peak, those of conjugate gradients among them
_MOST = 64  # queries solved in one go: more share no more of a product


@dataclass(slots=True)
class StoredSolver:
    """Stands in for `prepare_queries`: the same call, but the answers come from a solver.

    Attributes
    ----------
    run : RunFolder
        Whose lock the caller holds.
    folder : str
        Of the question inside the run, "scores/<hash>".
    state : dict
        Of the question, as it is before its first commit.
    system : DampedGaussNewton
        Of the training set.
    solver : PCG, CG or LiSSA
        Method and budget.
    run_pass : Pass
        The model of the system, in float32 or wider, with its loss and layers.
    """

    run: RunFolder
    folder: str
    state: dict[str, Any]
    system: DampedGaussNewton
    solver: Solver
    run_pass: Pass

    def __call__(
        self,
        run_pass: Pass,
        factors: Factors,
        queries: Examples,
        settings: ScoreSettings,
        *,
        dtype: torch.dtype,
        measurement: Measurement | None = None,
        chosen: Items[int] | None = None,
    ) -> dict[str, QueryMatrices]:
        """Keep the answers at the rank asked for; solve what has not been solved yet, which all processes must then do.

        Parameters
        ----------
        run_pass, factors, queries, settings, dtype, measurement, chosen : see `prepare_queries`
            As there.

        Returns
        -------
        dict of str to QueryMatrices
            By layer, in the order of ``chosen``.
        """
        numbers = list(range(len(queries))) if chosen is None else list(chosen)
        places = {number: place for place, number in enumerate(numbers)}
        device = next(run_pass.model.parameters()).device
        kept = {
            name: empty_queries(layer, len(numbers), settings.rank, dtype, device)
            for name, layer in run_pass.layers.items()
        }
        scratch = Scratch()
        for first, stop in self.solve_all(queries, settings, measurement):
            wanted = [number for number in range(first, stop) if number in places]
            if not wanted:
                continue
            solved = load_tensors(self.run.path / self._file(first), self.run.entry(self._file(first)), device=device)
            for name, matrices in kept.items():
                for number in wanted:
                    matrix = solved[name][number - first : number - first + 1]
                    put(matrices, places[number], matrix, bases=None, scratch=scratch, seed=run_pass.seed)
        return kept

    def solve_all(
        self, queries: Examples, settings: ScoreSettings, measurement: Measurement | None = None
    ) -> list[tuple[int, int]]:
        """Solve what has not been solved yet, a block of queries a process, and commit the blocks that were dealt out.

        Parameters
        ----------
        queries, settings, measurement : see `prepare_queries`
            As there. Of a team all ranks call this.

        Returns
        -------
        list of (int, int)
            Ranges of queries whose answers lie in the run, in order: all of them.

        Raises
        ------
        MemoryLimitError
            If not even one query could be solved.
        ConvergenceError
            If a solver breaks down; see `solve`.
        """
        stage, team = f"score:{self.folder}", self.run.team
        state = self.run.stage(stage) or dict(self.state)
        done: list[tuple[int, int]] = [(int(first), int(stop)) for first, stop in state.get("solved", [])]
        start = done[-1][1] if done else 0
        left = len(queries) - start
        blocks = plan_units(len(queries), max(1, min(self._queries_at_once(settings), -(-left // team.size))), start)
        with progress("solves", len(queries), unit="queries", enabled=settings.show_progress) as advance:
            advance(start)
            for place in range(0, len(blocks), team.size):
                dealt = blocks[place : place + team.size]
                files: dict[str, FileEntry] = {}
                told: list[tuple[list[float], int]] = []  # residuals and products, of this rank's block if it has one
                for block in dealt[team.rank : team.rank + 1]:
                    found = self._solve(queries, block, measurement)
                    files[self._file(block.start)] = save_tensors(
                        self.run.path / self._file(block.start),
                        {name: stack.contiguous() for name, stack in found.matrices.items()},
                    )
                    told.append((found.residual.tolist(), found.num_products))
                done += [(block.start, block.stop) for block in dealt]
                by_rank = [one for part in team.gather(told) for one in part]
                state = state | {
                    "solved": [list(pair) for pair in done],
                    "residual": [*state.get("residual", []), *(r for residuals, _ in by_rank for r in residuals)],
                    "num_products": state.get("num_products", 0) + sum(products for _, products in by_rank),
                }
                self.run.commit({stage: state}, files)
                advance(dealt[-1].stop - dealt[0].start)
        return done

    def _solve(self, queries: Examples, block: range, measurement: Measurement | None) -> Solved:
        gradients = stacked_gradients(self.run_pass, queries, numbers=block, measurement=measurement)
        if measurement is not None:  # scores are of a loss, whose gradient has the other sign
            gradients = {name: -stack for name, stack in gradients.items()}
        return solve(self.system, gradients, self.solver)

    def _queries_at_once(self, settings: ScoreSettings) -> int:
        first = next(iter(self.system.tensors.values()))
        one = self.system.layout.size * first.dtype.itemsize * _STACKS
        if one > settings.query_memory:
            raise MemoryLimitError(
                f"strategy: to solve one query takes {one / 2**30:.1f} GiB, more than the "
                f"{settings.query_memory / 2**30:.1f} GiB allowed by query_memory; track fewer layers with modules=, "
                "or raise the limit"
            )
        return min(_MOST, settings.query_memory // one)

    def _file(self, first: int) -> str:
        return f"{self.folder.replace('scores/', 'queries/')}/solved-{first:09d}.safetensors"


def training_set(run: RunFolder, at_hand: Items[Examples]) -> Examples:
    """Find the sequences that a run was fitted on: what a solver multiplies with.

    Parameters
    ----------
    run : RunFolder
        Knows the fingerprint of its training set, and may keep its texts.
    at_hand : sequence of Examples
        Data sets that may be it.

    Returns
    -------
    data : Examples
        The first that is, or the texts of the run.

    Raises
    ------
    ArgumentError
        If it is neither at hand nor kept.
    """
    wanted = run.manifest.parents.get("data")
    for examples in at_hand:
        if examples.fingerprint() == wanted:
            return examples
    if "train" in run.stage("corpus"):
        kept = as_examples(open_corpus(run.path, "train").sequences())
        if kept.fingerprint() == wanted:
            return kept
    raise ArgumentError(
        "strategy: a solver multiplies with the curvature of the training set, which is neither what is scored nor "
        f"kept in {run.path}; call fit on this object first (it returns at once)"
    )


def solved_self_scores(
    system: DampedGaussNewton,
    solver: Solver,
    run_pass: Pass,
    examples: Examples,
    *,
    at_once: int = 16,
    show_progress: bool | None = None,
    team: Team = ALONE,
) -> Tensor:
    """∇Lᵀ (G + λI)⁻¹ ∇L of every sequence, unscaled: one solve a sequence.

    Parameters
    ----------
    system : DampedGaussNewton
        Of the training set.
    solver : PCG, CG or LiSSA
        Method and budget.
    run_pass : Pass
        The model of the system, with its loss and layers.
    examples : Examples
        Sequences.
    at_once : int, default 16
        Sequences a solve.
    show_progress : bool, optional
        Show a bar. Default: if stderr is a terminal.
    team : Team, default alone
        Who shares the sequences.

    Returns
    -------
    Tensor, shape (N,)
        float64, on every process.
    """
    out = torch.zeros(len(examples), dtype=torch.float64)
    with progress("self-influence", len(examples), unit="sequences", enabled=show_progress) as advance:
        for numbers in contiguous(plan_units(len(examples), at_once), team):
            gradients = stacked_gradients(run_pass, examples, numbers=numbers, argument="dataset")
            found = solve(system, gradients, solver).matrices
            terms = [(gradients[name] * found[name]).sum((1, 2), dtype=torch.float64) for name in gradients]
            out[numbers.start : numbers.stop] = torch.stack(terms).sum(0).cpu()
            advance(len(numbers))
    return team.sum(out)
