"""A run opened for reading: its settings, factors, scores and texts, with nothing of the model needed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hesse.influence.corpus import Corpus, find_corpus
from hesse.influence.factors import Factors, load_factors
from hesse.influence.run import RunFolder, open_folder
from hesse.influence.scores import Ranked, Scores, open_scores

__all__ = ["Run", "open_run"]


@dataclass(frozen=True)
class Run:
    """What `Influence` left in a folder, read when asked for."""

    folder: RunFolder

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the fit."""
        return self.folder.manifest.config

    @property
    def info(self) -> dict[str, Any]:
        """Notes that the caller of `Influence.fit` left."""
        return self.config.get("info", {})

    @cached_property
    def factors(self) -> Factors:
        """Eigenbases and eigenvalues, every file checked."""
        return load_factors(self.folder.path, self.folder.manifest)

    @cached_property
    def scores(self) -> Scores:
        """The scores asked for last."""
        return open_scores(self.folder)

    @cached_property
    def corpus(self) -> Corpus | None:
        """Texts of the scored sequences, if they were kept."""
        return find_corpus(self.folder.path, self.scores.state["data"])

    def top(self, k: int = 20, *, query: int | str = 0, sign: int = 1) -> list[Ranked]:
        """List the strongest proponents (sign +1) or opponents (-1) of a query.

        Parameters
        ----------
        k : int, default 20
            How many.
        query : int or str, default 0
            Number or id.
        sign : {1, -1}, default 1
            Which end.

        Returns
        -------
        list of Ranked
            See `Scores.topk`.
        """
        return self.scores.topk(query, k, sign)


def open_run(run_dir: Path | str) -> Run:
    """Open a run for reading.

    Parameters
    ----------
    run_dir : path
        Folder that `Influence.fit` filled.

    Returns
    -------
    Run
        Its parts are read when asked for.

    Raises
    ------
    ArtifactError
        If it holds no run, or its manifest is damaged.
    """
    return Run(open_folder(run_dir))
