"""The command ``hesse``: a table of its commands, and what becomes of their errors.

Nothing here or in a command's head imports torch: ``hesse --help`` answers at once, and heavy imports wait inside
commands. Exit codes: 0 done, 1 an error of hesse, 2 wrong usage, 3 a damaged or foreign artifact, 4 a missing extra,
130 interrupted.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hesse import __version__
from hesse.cli._report import exit_code, say
from hesse.cli.compress.plan import plan
from hesse.cli.compress.prune import prune
from hesse.cli.compress.quantize import quantize
from hesse.cli.curvature_report import report as curvature_report
from hesse.cli.influence_export import export
from hesse.cli.influence_fit import fit
from hesse.cli.influence_index import ask, index_gradients
from hesse.cli.influence_plan import plan_influence
from hesse.cli.influence_report import report
from hesse.cli.influence_score import score
from hesse.cli.influence_select import select
from hesse.cli.influence_self import self_influence
from hesse.cli.influence_serve import serve
from hesse.cli.influence_studies import STUDIES
from hesse.cli.influence_top import top
from hesse.cli.influence_validate import validate
from hesse.cli.methods import methods
from hesse.cli.rl_train import train
from hesse.cli.verify import verify
from hesse.cli.vsa.index import index
from hesse.cli.vsa.search import search

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """A group whose commands end in one clear line and an exit code when hesse refuses something."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""  # noqa: DOC201, DOC501
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            code = exit_code(error)
            if code is None:
                raise  # wrong usage is typer's to report, and a fault of our own must show where it happened
            interrupted = isinstance(error, KeyboardInterrupt)
            say(_interrupted(ctx.invoked_subcommand) if interrupted else f"hesse: {error}")
            raise typer.Exit(code) from error


def _interrupted(command: str | None) -> str:
    if command in ("influence", "demo"):  # their runs keep what is done
        return "interrupted; the same command again resumes"
    return "interrupted; nothing half-written is left, and the same command begins anew"


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,  # local variables may hold training text
    rich_markup_mode=None,
    help="Second-order machine learning in PyTorch, without ever forming the matrix.",
)
influence = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Which training data made the model say that?"
)
app.add_typer(influence, name="influence")
for _name, _command in {
    "plan": plan_influence,
    "fit": fit,
    "score": score,
    "index": index_gradients,
    "ask": ask,
    "top": top,
    "report": report,
    "serve": serve,
    "self": self_influence,
    "select": select,
    "export": export,
    "validate": validate,
    **STUDIES,
}.items():
    influence.command(_name)(_command)
curvature = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="How curved is the loss of my model?")
curvature.callback()(lambda: None)  # a group, however few its commands are
app.add_typer(curvature, name="curvature")
curvature.command("report")(curvature_report)
compress = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Which bits, weights and channels can go?")
app.add_typer(compress, name="compress")
for _name, _command in {"plan": plan, "prune": prune, "quantize": quantize}.items():
    compress.command(_name)(_command)
rl = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Which policy earns most?")
rl.callback()(lambda: None)  # a group, however few its commands are
app.add_typer(rl, name="rl")
rl.command("train")(train)
vsa = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Which JSON records are like this one?")
app.add_typer(vsa, name="vsa")
for _name, _command in {"index": index, "search": search}.items():
    vsa.command(_name)(_command)
app.command("methods")(methods)
app.command("verify")(verify)


@app.command("demo", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _demo(ctx: typer.Context) -> None:
    """Train a small model on made-up facts and trace what it says."""
    from hesse.cli.demo import demo  # with all its options, which are therefore read only now

    alone = typer.Typer(rich_markup_mode=None, add_completion=False)
    alone.command()(demo)
    command = typer.main.get_command(alone)
    with command.make_context("demo", list(ctx.args), parent=ctx.parent) as inner:
        command.invoke(inner)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the entry point of the script ``hesse``."""
    app(prog_name="hesse")


if __name__ == "__main__":
    main()
