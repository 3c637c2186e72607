"""The choice of a question, kept in its run: made once, and read back when the question is taken up again."""

from typing import Any

from hesse.influence.examples import Examples
from hesse.influence.prefilter.choice import ChosenExamples, Prefilter, choose, chosen_examples
from hesse.influence.prefilter.index import build_index
from hesse.influence.prefilter.missed import CHOICE_NAME
from hesse.influence.run import RunFolder
from hesse.io import FileEntry, load_tensors, save_tensors

__all__ = ["choose_for_run"]


def choose_for_run(
    run: RunFolder,
    folder: str,
    state: dict[str, Any],
    queries: Examples,
    examples: Examples,
    prefilter: Prefilter,
    *,
    show_progress: bool | None = None,
) -> tuple[ChosenExamples, dict[str, Any]]:
    """Choose what a question scores; the index stays in the run, in a folder named after the data.

    Parameters
    ----------
    run : RunFolder
        Whose lock the caller holds.
    folder : str
        Path of the question's scores inside it.
    state : dict
        Of the question, kept as stage "score:<folder>".
    queries, examples : Examples
        Token sequences.
    prefilter : Prefilter
        What to keep.
    show_progress : bool, optional
        Show a bar while the index is built.

    Returns
    -------
    chosen : ChosenExamples
        What to score.
    state : dict
        With R under "prefilter_rows", and committed.
    """
    relative = f"{folder}/{CHOICE_NAME}"
    if relative not in run.manifest.files:
        tokenizer = run.manifest.config.get("info", {}).get("tokenizer")
        where = run.path / f"token-index-{examples.fingerprint()[:16]}"

        def make() -> tuple[int, dict[str, FileEntry]]:
            index = build_index(examples, where, tokenizer=tokenizer, show_progress=show_progress)
            choice = choose(index, queries, examples, prefilter)
            return choice.num_rows, {relative: save_tensors(run.path / relative, choice.tensors())}

        rows, files = run.team.first(make)
        state = state | {"prefilter_rows": rows}
        run.commit({f"score:{folder}": state}, files if run.team.is_first else {})
    numbers = load_tensors(run.path / relative, run.entry(relative))["numbers"].numpy()
    return chosen_examples(examples, numbers), state
