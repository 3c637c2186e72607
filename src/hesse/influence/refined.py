"""Terms of scores that were computed again at full rank: what a query's file holds, and where in it a sequence stands.

They take the place of the first pass's terms of the same pairs, so that terms sum to the score wherever they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hesse.influence.run import RunFolder
from hesse.io import FileEntry, save_tensors

__all__ = ["Refined", "place_of", "refined_file", "save_refined"]


@dataclass(frozen=True, slots=True)
class Refined:
    """Some candidates of one query, scored again at full rank.   Shapes: n candidates, L layers, T tokens in all."""

    query: int
    numbers: np.ndarray  # (n,) which sequences, rising
    scores: np.ndarray  # (n,)
    terms: dict[str, Tensor]  # what was asked for: "layers" (n, L); "tokens" (T,) with "offsets" (n + 1,)


def refined_file(folder: str, number: int) -> str:
    """Name the file with the terms of refined scores.

    Parameters
    ----------
    folder : str
        Path of the scores inside the run.
    number : int
        Of the query, or of the target where each was scored.

    Returns
    -------
    str
        Path inside the run.
    """
    return f"{folder}/refined-{number:06d}.safetensors"


def save_refined(run: RunFolder, folder: str, refined: Refined) -> dict[str, FileEntry]:
    """Write the terms of one query's refined scores.

    Parameters
    ----------
    run : RunFolder
        The run.
    folder : str
        Path of the scores inside it.
    refined : Refined
        With terms.

    Returns
    -------
    dict of str to FileEntry
        The file written.
    """
    relative = refined_file(folder, refined.query)
    tensors = {"numbers": torch.from_numpy(refined.numbers), **refined.terms}
    return {relative: save_tensors(run.path / relative, tensors)}


def place_of(terms: Mapping[str, Tensor], number: int) -> int | None:
    """Find a sequence among those that were refined.

    Parameters
    ----------
    terms : mapping of str to Tensor
        A file's, or nothing.
    number : int
        Of the sequence.

    Returns
    -------
    int or None
        Its place along the first axis; None if it was not refined.
    """
    if not terms:
        return None
    numbers = terms["numbers"].numpy()
    place = int(np.searchsorted(numbers, number))
    return place if place < len(numbers) and numbers[place] == number else None
