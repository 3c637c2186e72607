"""New questions, asked from the page: one at a time, in a thread, with progress read from the run itself."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hesse.errors import ArgumentError, HesseError
from hesse.influence.run import open_folder

__all__ = ["AskFunction", "Asking"]

AskFunction = Callable[[Path, str, str], str]
"""Scores a prompt and a completion against the training data of a run; returns the path of the scores inside it."""

_MAX_CHARS = 20_000


class Asking:
    """Takes questions and remembers what became of them.

    Parameters
    ----------
    ask_fn : callable
        Does the work.
    """

    def __init__(self, ask_fn: AskFunction) -> None:
        self._ask_fn = ask_fn
        self._jobs: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._busy = threading.Lock()  # a model answers one question at a time

    def put(self, run: Path, prompt: str, completion: str) -> str:
        """Begin to answer.

        Parameters
        ----------
        run : Path
            Of the run.
        prompt, completion : str
            The completion must not be empty.

        Returns
        -------
        str
            Name of the job.

        Raises
        ------
        ArgumentError
            If the completion is empty, the texts are too long, or a question is being answered.
        """
        if not completion:
            raise ArgumentError("completion: expected the words to explain, got none")
        if len(prompt) + len(completion) > _MAX_CHARS:
            raise ArgumentError(f"prompt: expected at most {_MAX_CHARS:,} characters with the completion")
        if not self._busy.acquire(blocking=False):
            raise ArgumentError("ask: another question is being answered; wait for it")
        job = str(next(self._numbers))
        with self._lock:
            self._jobs[job] = {"state": "running", "run": run, "question": None, "error": None}
        threading.Thread(target=self._work, args=(job, run, prompt, completion), daemon=True, name="hesse-ask").start()
        return job

    def state(self, job: str) -> dict[str, Any]:
        """Say how far a job is.

        Parameters
        ----------
        job : str
            From `put`.

        Returns
        -------
        dict
            state (running, done, failed), sequences scored, question (its id once done), error.

        Raises
        ------
        ArgumentError
            If there is no such job.
        """
        with self._lock:
            if job not in self._jobs:
                raise ArgumentError(f"job: no {job!r}")
            found = dict(self._jobs[job])
        run = found.pop("run")
        if found["state"] == "running":
            stages = open_folder(run).manifest.stages
            open_ones = [s for name, s in stages.items() if name.startswith("score:") and not s.get("done")]
            found["sequences"] = max((int(s.get("sequences", 0)) for s in open_ones), default=0)
        return found

    def _work(self, job: str, run: Path, prompt: str, completion: str) -> None:
        changes: dict[str, Any]
        try:
            folder = self._ask_fn(run, prompt, completion)
            changes = {"state": "done", "question": folder.removeprefix("scores/")}
        except HesseError as error:
            changes = {"state": "failed", "error": str(error)}
        except Exception as error:  # shown to whoever asked: a thread has no caller
            changes = {"state": "failed", "error": f"{type(error).__name__}: {error}"}
        finally:
            self._busy.release()
        with self._lock:
            self._jobs[job].update(changes)
