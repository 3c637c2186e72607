"""What the compress commands write and show: a folder that is there whole or not at all, and a table of numbers."""

import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hesse.cli._report import console, say, visible
from hesse.cli.compress.subject import Quality, Subject
from hesse.errors import ArgumentError
from hesse.io import atomic_write_json, make_folder, save_tensors
from hesse.io.atomic import writing

__all__ = [
    "REPORT",
    "check_file_target",
    "check_folder_target",
    "megabytes",
    "quality_rows",
    "show_table",
    "spoken_warnings",
    "whole_folder",
    "write_model",
    "write_report",
]

REPORT = "compression.json"
"""In every folder that is written here; what has none is never replaced."""


def check_file_target(out: Path, *, overwrite: bool, name: str = "out") -> None:
    """Refuse, before any work, a file that could not be written at the end.

    Parameters
    ----------
    out : Path
        The file to be.
    overwrite : bool
        Whether one that is there may be replaced.
    name : str, default "out"
        Of the option, for messages.

    Raises
    ------
    ArgumentError
        If it is there, is a folder, or its folder is missing.
    """
    if out.is_dir():
        raise ArgumentError(f"{name}: {out} is a folder; name a file")
    if out.exists() and not overwrite:
        raise ArgumentError(f"{name}: {out} is there already; choose another name, or replace it with --overwrite")
    _check_parent(out, name)


def check_folder_target(out: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a folder that could not be written at the end.

    Parameters
    ----------
    out : Path
        The folder to be.
    overwrite : bool
        Whether one that a compress command wrote may be replaced.

    Raises
    ------
    ArgumentError
        If it is there and may not be replaced, is a file, or the folder above it is missing.
    """
    if out.is_file():
        raise ArgumentError(f"out: {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ArgumentError(f"out: {out} is not empty; choose another folder, or replace it with --overwrite")
        if not (out / REPORT).is_file():
            raise ArgumentError(f"out: {out} was not written by hesse compress, and is not replaced; choose another")
    _check_parent(out, "out")


def _check_parent(out: Path, name: str) -> None:
    parent = out.resolve().parent
    if not parent.is_dir():
        raise ArgumentError(f"{name}: there is no folder {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArgumentError(f"{name}: the folder {parent} is not writable")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes its place at the end of the block, or is removed after an error.

    Parameters
    ----------
    out : Path
        Its place; what is there is replaced.

    Yields
    ------
    Path
        A temporary folder beside it.
    """
    out = out.resolve()
    temporary, former = (out.with_name(f".hesse-tmp-{os.getpid()}-{secrets.token_hex(8)}") for _ in range(2))
    make_folder(temporary)
    try:
        yield temporary
        with writing(out):
            for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
                _sync(path)
            if out.exists():
                out.rename(former)
            temporary.rename(out)
            _sync(out.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if former.exists() and not out.exists():
            former.rename(out)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_model(subject: Subject, folder: Path) -> None:
    """Write the weights of the subject's module as it is now.

    Parameters
    ----------
    subject : Subject
        A language model becomes a folder that transformers loads; a factory's gets ``model.safetensors``, with the
        names of its ``state_dict``.
    folder : Path
        From `whole_folder`.
    """
    if subject.is_language_model:
        model: Any = subject.module
        with writing(folder):
            model.save_pretrained(folder)
            subject.tokenizer.save_pretrained(folder)
        return
    state = {name: tensor.detach() for name, tensor in subject.module.state_dict().items()}
    save_tensors(folder / "model.safetensors", state)


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write what was done and measured.

    Parameters
    ----------
    folder : Path
        From `whole_folder`.
    report : mapping
        JSON values.
    """
    atomic_write_json(folder / REPORT, dict(report))


def show_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, all columns but the first right-aligned.

    Parameters
    ----------
    title : str
        Above it.
    head : sequence of str
        Names of columns.
    rows : sequence of sequence of str
        Cells.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=visible(title), title_justify="left", title_style="none", box=box.SIMPLE_HEAD)
    for i, name in enumerate(head):
        table.add_column(Text(visible(name)), justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console().print(table)


def quality_rows(columns: Sequence[Quality]) -> list[list[str]]:
    """Lay held-out numbers out as rows of a table.

    Parameters
    ----------
    columns : sequence of Quality
        One a column, of the same subject.

    Returns
    -------
    list of list of str
        Loss, and accuracy or perplexity.
    """
    rows = [["held-out loss", *(f"{quality.loss:.4f}" for quality in columns)]]
    if columns[0].accuracy is not None:
        rows.append(["accuracy", *(f"{quality.accuracy or 0:.4f}" for quality in columns)])
    if columns[0].perplexity is not None:
        rows.append(["perplexity", *(f"{quality.perplexity or 0:.4g}" for quality in columns)])
    return rows


def megabytes(count: float) -> str:
    """Write a number of bytes for people.

    Parameters
    ----------
    count : float
        Bytes.

    Returns
    -------
    str
        In MB of 10⁶ bytes, or kB below one.
    """
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.2f} kB"


@contextmanager
def spoken_warnings() -> Iterator[None]:
    """Say the warnings of the block in one line each, without the place in hesse's code that they came from.

    Yields
    ------
    None
        Nothing.
    """
    said: set[str] = set()

    def speak(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
        text = str(message)
        if text not in said:
            say(f"note: {text}")
        said.add(text)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = speak
        yield
