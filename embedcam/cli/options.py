"""Options shared by several verbs, and the headings of their groups."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from ..errors import EmbedcamError
from . import completion

SPEC = "{datasets}. Append @train, @test or @all to choose a split; lists for retrieval also have @query and @gallery."

# Options under a heading of their own in a long help.
network_option = partial(typer.Option, rich_help_panel="Network")
training_option = partial(typer.Option, rich_help_panel="Training")
weights_option = partial(typer.Option, rich_help_panel="Weights")
method_option = partial(typer.Option, rich_help_panel="Method")
drawing_option = partial(typer.Option, rich_help_panel="Drawing")
graph_option = partial(typer.Option, rich_help_panel="Graph")
running_option = partial(typer.Option, rich_help_panel="Running")
data_option = partial(typer.Option, "--data", metavar="SPEC", autocompletion=completion.registered("datasets"))

_DB = typer.Option("--db", help="Weight database written by `embedcam build`.", metavar="FILE")
_ONNX = typer.Option(
    "--onnx", help="File written by `embedcam export`, instead of --net and --db; needs no torch.", metavar="FILE"
)
DbOption = Annotated[Path, _DB]
DbOrNone = Annotated[Path | None, _DB]
OnnxOrNone = Annotated[Path | None, _ONNX]
DataOption = Annotated[str, data_option(help=f"Images: {SPEC}")]
SeedOption = Annotated[int, running_option(help="Seed of all random choices.", metavar="N")]
StrictOption = Annotated[
    bool, running_option("--strict", help="Stop at what cannot be read instead of leaving it out.")
]
ResumeOption = Annotated[bool, running_option("--resume", help="Continue an interrupted run.")]
WorkersOption = Annotated[int, running_option(min=0, help="Threads that read images ahead.", metavar="N")]
BatchSizeOption = Annotated[int, running_option(min=1, help="Images per batch.", metavar="N")]
PresetOption = Annotated[
    Literal["default", "fast", "fine", "paper"],
    method_option(
        help="fast: at the training size; fine: averaged with the mirrored image; paper: the published method."
    ),
]
ExplainSizeOption = Annotated[
    int | None,
    method_option(
        min=8, help="Side in pixels at which images are explained; by default, the database's choice.", metavar="N"
    ),
]
DeviceOption = Annotated[
    str, running_option(help="cpu, cuda or cuda:N; auto uses a GPU if there is one.", metavar="NAME")
]


class Verb(TyperCommand):
    """A verb whose help lists registered parts, see `fill_in`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; the registries are read only now, so that other commands start quickly."""
        for parameter in self.params:
            if text := getattr(parameter, "help", None):
                parameter.help = fill_in(text)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def fill_in(text: str) -> str:
    """Replace the names of registries in a help text by what is registered.

    Args:
        text: With `{datasets}` and the like, see `completion.registry`.

    Returns:
        The text with, for example, "digits, folder:PATH" instead.
    """

    def listed(match: re.Match[str]) -> str:
        try:
            parts = completion.registry(match[1])
        except ModuleNotFoundError as error:  # explaining with an ONNX file needs no torch
            return f"(listed if {error.name} is installed)"
        return ", ".join(map(parts.usage, parts))

    return re.sub(r"\{([a-z]+)\}", listed, text)


def one_of(name: str) -> Callable[[str | None], str | None]:
    """Make an option's callback that checks a value against a registry.

    Args:
        name: As for `completion.registry`.

    Returns:
        A function that returns the value, or raises `BadParameter` if it is not registered.
    """

    def check(value: str | None) -> str | None:
        if value is not None:
            try:
                completion.registry(name)[value]
            except EmbedcamError as error:
                raise typer.BadParameter(str(error)) from error
        return value

    return check


def refuse_unused(context: typer.Context, reason: str, *names: str) -> None:
    """Refuse options that were given, but have no effect.

    Args:
        context: Of the verb.
        reason: When they have none, such as "without --boxes".
        names: Names of the parameters.

    Raises:
        BadParameter: If one was given.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{parameter.opts[0]} has no effect {reason}; leave it out")
