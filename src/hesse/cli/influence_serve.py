"""`hesse influence serve`: look at runs in a browser, on this machine only."""

from pathlib import Path
from typing import Annotated

import typer

from hesse.cli._report import say

__all__ = ["serve"]


def serve(
    runs: Annotated[list[Path], typer.Argument(help="Scored runs, or folders of runs.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    model: Annotated[
        bool, typer.Option("--model", help="Load the model of the first run, so that the page can ask new questions.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Open the address in a browser.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code, at the commit of the fit.")
    ] = False,
) -> None:
    """Serve runs on 127.0.0.1: ranked rows, tokens, layers, the health of the fit. Ctrl-C ends it.

    The address printed carries a token; nobody without it is answered. The pages quote training texts.

    Example: hesse influence serve runs/demo
    """
    import webbrowser

    from hesse.web import serve as serve_runs

    def started(address: str) -> None:
        say(f"serving at {address}")
        if browser:
            webbrowser.open(address)

    ask_fn = None
    if model:
        from hesse.cli._scoring import question_scorer

        ask_fn = question_scorer(runs[0], trust_remote_code=trust_remote_code)
    serve_runs(runs, port=port, ask_fn=ask_fn, started_fn=started)
