"""Options that the compress commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "Data",
    "HeldOut",
    "Layers",
    "MaxExamples",
    "MaxHeldOut",
    "MaxLength",
    "Model",
    "OutFolder",
    "Overwrite",
    "Revision",
    "Seed",
    "parse_widths",
]

Model = Annotated[
    str, typer.Argument(help="Folder, .gguf file or hub id of a language model; or module:factory of yours.")
]
Data = Annotated[
    str | None, typer.Option("--data", help="For a language model: .jsonl, .txt, .parquet, or a data set.")
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        "--held-out", help="Other texts, or module:function of a loader. Default: a random fifth of the data."
    ),
]
Layers = Annotated[
    str | None, typer.Option(help="Regular expression on weights' names. Default: all but a language model's head.")
]
MaxExamples = Annotated[
    int | None, typer.Option(min=1, help="Calibrate on so many, drawn at random. Default: 512; sequences: 128.")
]
MaxHeldOut = Annotated[
    int | None, typer.Option(min=1, help="Judge by so many, drawn at random. Default: all; sequences: 128.")
]
MaxLength = Annotated[
    int | None, typer.Option(min=2, help="Tokens a sequence. Default: 512, or the model's positions if fewer.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is drawn.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the result; made.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def parse_widths(text: str) -> tuple[int, ...]:
    """Read "2,4,8".

    Parameters
    ----------
    text : str
        As typed.

    Returns
    -------
    tuple of int
        Rising.

    Raises
    ------
    BadParameter
        If it is no list of different whole numbers from 2 to 8.
    """
    try:
        found = sorted(int(piece) for piece in text.split(","))
    except ValueError:
        found = []
    if not found or len(set(found)) != len(found) or not 2 <= found[0] <= found[-1] <= 8:
        raise typer.BadParameter(f"expected different whole numbers from 2 to 8, as in 2,4,8; got {text!r}")
    return tuple(found)
