"""The command line: one function per verb."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._version import __version__
from . import console
from .evaluation import evaluate
from .explaining import explain
from .gallery import index, match
from .offline import build, demo, import_faster_gradcam, train
from .online import classmap, export, inspect, serve
from .options import Verb

app = typer.Typer(
    help="Explain embedding networks: heat maps without backpropagation, from a precomputed weight database.",
    epilog="Start with: embedcam demo",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"embedcam {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for verb in (
    demo,
    train,
    build,
    index,
    explain,
    match,
    export,
    evaluate,
    classmap,
    inspect,
    import_faster_gradcam,
    serve,
):
    app.command(cls=Verb)(verb)


def main() -> None:
    """Run the command line and exit with its code: 0 done, 1 error, 2 wrong usage, 130 interrupted, 141 not printed."""
    sys.exit(console.run(app, debug="--debug" in sys.argv))
