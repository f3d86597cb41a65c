"""Options that several verbs share, and the headings that they stand under."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..registry import Registry
from . import completion

SPEC = (
    "digits, folder:PATH, wds:PATTERN (tar shards; quote it), cub:PATH, cub-metric:PATH or pets:PATH; with @train, "
    "@test or @all at the end if need be."
)

# Headings of the long lists of options.
NETWORK, TRAINING, WEIGHTS, METHOD = "Network", "Training", "Weights", "Method"
DRAWING, GRAPH, RUNNING = "Drawing", "Graph", "Running"

_NET = typer.Option("--net", help="Network file made by `embedcam train`.", metavar="FILE")
_DB = typer.Option("--db", help="Weight database made by `embedcam build`.", metavar="FILE")
_ONNX = typer.Option(
    "--onnx", help="File made by `embedcam export`, instead of these two; needs no torch.", metavar="FILE"
)
NetOption = Annotated[Path, _NET]
NetOrNone = Annotated[Path | None, _NET]
DbOption = Annotated[Path, _DB]
DbOrNone = Annotated[Path | None, _DB]
OnnxOrNone = Annotated[Path | None, _ONNX]
DataOption = Annotated[
    str,
    typer.Option("--data", help=f"Images: {SPEC}", metavar="SPEC", autocompletion=completion.specs),
]
SeedOption = Annotated[
    int,
    typer.Option(help="Seed of everything that is drawn at random.", metavar="N", rich_help_panel=RUNNING),
]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Stop at an unreadable image instead of leaving it out.", rich_help_panel=RUNNING),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Go on with what an interrupted run has finished.", rich_help_panel=RUNNING),
]
WorkersOption = Annotated[
    int,
    typer.Option(min=0, help="Threads that read images ahead.", metavar="N", rich_help_panel=RUNNING),
]
BatchSizeOption = Annotated[
    int,
    typer.Option(min=1, help="Images a batch.", metavar="N", rich_help_panel=RUNNING),
]
PresetOption = Annotated[
    Literal["default", "paper"],
    typer.Option(help="paper is the published method: one layer, plain resize.", rich_help_panel=METHOD),
]
ExplainSizeOption = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Side in pixels that images are explained at; the database knows the best.",
        metavar="N",
        rich_help_panel=METHOD,
    ),
]
Transfer = Literal["soft-contrast", "soft", "contrast", "cluster", "neighbors", "nearest"]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="cpu, cuda or cuda:N; auto takes a GPU if there is one.", metavar="NAME", rich_help_panel=RUNNING
    ),
]


def one_of(registry: Registry[Any]) -> Callable[[str | None], str | None]:
    """Make an option's callback that checks a name against a registry.

    Args:
        registry: With the names that may be given.

    Returns:
        A function that returns the name, or raises `BadParameter` if it is unknown.
    """

    def check(name: str | None) -> str | None:
        if name is not None and name not in registry:
            raise typer.BadParameter(f"unknown {registry.kind} {name!r}; use one of {', '.join(registry)}")
        return name

    return check


def require_explainer(net: Path | None, db: Path | None, onnx: Path | None) -> None:
    """Check that it is said what explains, and once only.

    Args:
        net: Of `--net`.
        db: Of `--db`.
        onnx: Of `--onnx`.

    Raises:
        BadParameter: If not.
    """
    if (net is None or db is None) == (onnx is None) or (onnx is not None and (net or db)):
        raise typer.BadParameter("give --net and --db, or --onnx alone")
