"""What the command line prints, and how it ends."""

from __future__ import annotations

import io
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ..errors import EmbedcamError
from ..utils import progress
from ..utils.distributed import leave, local_rank, main_process

if TYPE_CHECKING:
    import torch

    from ..database.weight_database import WeightDatabase
    from ..explain.explanation import AnyExplainer
    from ..nets import Network
    from ..onnx.quantise import QuantiseReport


def _print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, text: Collection[int] = (0,)
) -> None:
    """Print a table; the columns of the numbers in `text` are aligned to the left, as text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number in text else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    # A file or a pipe has no width, so nothing is wrapped there.
    width = None if sys.stdout.isatty() else 1000
    Console(highlight=False, color_system="auto" if progress.styled(sys.stdout) else None, width=width).print(table)


def print_database(database: WeightDatabase, top: int) -> None:
    """Print what a weight database holds.

    Args:
        database: The database.
        top: Labels and channels shown of each cluster.
    """
    for name, value in database.facts():
        print(f"{name:<14}{value}")
    rows = []
    for cluster in sorted(range(database.clusters), key=lambda c: -int(database.counts[c])):
        labels = ", ".join(f"{name} ({count})" for name, count in database.labels_of(cluster, top))
        channels = ", ".join(map(str, database.top_channels[cluster, :top].tolist()))
        median, farthest = database.distance_quantiles[cluster, [0, -1]]
        count = database.counts[cluster]
        rows.append([str(cluster), str(count), labels, f"{median:.3f}", f"{farthest:.3f}", channels])
    columns = ("cluster", "images", "labels", "median distance", "farthest", "strongest channels")
    print()
    _print_table(columns, rows, text=(2, 5))


def print_scores(result: dict[str, Any]) -> None:
    """Print the table of scores.

    Args:
        result: Of `evaluate`.
    """
    from ..evaluate.method import columns
    from ..show.report import RETRIEVAL

    shown = columns()
    rows = []
    for row in result["rows"]:
        name = f"{row['method']} (default)" if row["default"] else row["method"]
        rows.append([name, "yes" if row["backprop"] else "no", *(column.text(row) for column in shown)])
    _print_table(["method", "backprop", *(column.key for column in shown)], rows)
    given = [column for column in RETRIEVAL if result[column.key] is not None]
    scores = ", ".join(f"{column.heading} {result[column.key]:.4f}" for column in given)
    read = f"{result['images']} images, {result['masks']} with a mask{left_out(result['skipped'])}"
    print(f"\n{scores + '; ' if scores else ''}{read}")


def print_next(out: Path) -> None:
    """Print commands to try after the demo, with its files filled in.

    Args:
        out: The demo's folder.
    """
    net, db, images, explained = (
        shlex.quote(str(out / name)) for name in ("net.safetensors", "weights.h5", "images", "explained")
    )
    print(
        f"""
Open {out / "report.html"} in a browser, or look at {out / "gallery.png"}.

Try next, with the demo's network and weight database:
  embedcam inspect {db}
  embedcam explain --net {net} --db {db} {images} --boxes --out {explained}

Then with images of your own:
  embedcam train --help"""
    )


def print_faithfulness(result: dict[str, Any]) -> None:
    """Print the areas under the curves of deletion and insertion.

    Args:
        result: Of `faithfulness`.
    """
    rows, areas = (
        [],
        ("deletion (lower is better)", "insertion (higher is better)", "rank, deletion", "rank, insertion"),
    )
    for row in result["rows"]:
        values = [row[kind][key] for key in ("similarity_area", "rank_area") for kind in ("deletion", "insertion")]
        rows.append([row["method"], *(f"{value:.3f}" for value in values)])
    _print_table(["method", *areas], rows, title=f"faithfulness, {result['images']} images")


def print_randomisation(result: dict[str, Any]) -> None:
    """Print the correlation of the maps with the original ones as more and more layers are re-initialised.

    Args:
        result: Of `randomisation`.
    """
    columns = ("random from", "layers", "rank correlation with the original")
    rows = [[row["layer"] or "none", str(row["layers"]), f"{row['spearman']:.3f}"] for row in result["rows"]]
    _print_table(columns, rows, title=f"randomisation, {result['images']} images")
    if result["between_images"]["spearman"] is not None:
        print(f"between the original maps of different images: {result['between_images']['spearman']:.3f}")


def print_stream(
    explainer: AnyExplainer, source: str, out: Path | None, boxes: bool, alpha: float, colormap: str, smoothing: float
) -> None:
    """Explain a video and print the frame rate.

    Args:
        explainer: What explains.
        source: A video file, or "camera:0".
        out: Video file to write, or None to show the video only.
        boxes: Draw boxes instead of heat maps.
        alpha: Weight of the heat map.
        colormap: Its colours.
        smoothing: Share of the previous frames in a frame's map.
    """
    from ..video.stream import VIDEO_DRAW, explain_stream

    draw = replace(VIDEO_DRAW, boxes=boxes, alpha=alpha, colormap=colormap)
    report = explain_stream(explainer, source, out, draw, smoothing=smoothing)
    dropped = f", {report.dropped} dropped" if report.dropped else ""
    wrote = f"; wrote {report.out}" if report.out else ""
    print(f"{report.frames} frames at {report.fps:.1f} a second{dropped}{wrote}")


def print_cost(report: QuantiseReport) -> None:
    """Print size and accuracy of a quantised explainer.

    Args:
        report: Of `quantise`.
    """
    print(
        f"wrote {report.path} ({report.size / 1e6:.1f} MB, in float {report.float_size / 1e6:.1f}); "
        f"{len(report.float_layers)} of {report.layers} convolutions stay in float"
    )
    both = {"pointing": report.pointing, "Recall@1": report.recall_at_1}
    scores = [f"{name} {now:.3f} (float {before:.3f})" for name, pair in both.items() if pair for before, now in [pair]]
    same = f"map correlation {report.map_correlation:.3f}, embedding cosine {report.embedding_cosine:.3f}"
    print(f"on {report.images} other images: {'; '.join([same, f'same cluster {report.same_cluster:.3f}', *scores])}")


def echo_once(text: str) -> None:
    """Print a line, in one of the processes that `torchrun` started.

    Args:
        text: The line.
    """
    if main_process():
        typer.echo(text)


def left_out(count: int) -> str:
    """Say how many images could not be read.

    Args:
        count: Of them.

    Returns:
        The end of a sentence; nothing for 0.
    """
    return f", {count} unreadable left out" if count else ""


def device(name: str) -> torch.device:
    """Find the device to compute on.

    Args:
        name: As torch has it, or "auto" for a GPU if there is one.

    Returns:
        The device.

    Raises:
        EmbedcamError: If it cannot be used.
    """
    import torch

    if name == "auto":
        # torchrun starts as many processes on a machine as it has GPUs, and numbers them.
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EmbedcamError(f"device {name!r} cannot be used: {reason}; use --device cpu or auto") from error


def network(spec: str, weights: str | None, device_name: str, layer: str | None = None) -> Network:
    """Load the network of `--net` onto a device.

    Args:
        spec: Of `--net`.
        weights: Of `--weights`.
        device_name: As for `device`.
        layer: The feature layer; the network's own if None.

    Returns:
        The network.

    Raises:
        EmbedcamError: If the network cannot be loaded, or the device cannot be used.
    """
    from ..nets import load_network

    return load_network(spec, weights=weights, layer=layer).to(device(device_name))


def cores() -> int:
    """Count the cores that this process may use.

    Returns:
        At least 1.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_concurrency() -> int:
    """Number of batches to explain at the same time on a CPU: one per core, which is faster than one on all cores.

    Returns:
        1 to 8; every batch takes memory.
    """
    return min(cores(), 8)


_INTERRUPTED = 130
# What the verbs need that are content with less than all.
_EXTRAS = {"explain": "torch", "classmap": "torch", "serve": "torch", "export": "export"}


class _Warnings(logging.Handler):
    """Prints each warning as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"embedcam: warning: {record.getMessage()}", file=sys.stderr, flush=True)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def run(command: Callable[..., Any], *, debug: bool) -> int:
    """Run a command, with warnings, errors and interruptions as one line each.

    Args:
        command: Of typer.
        debug: Let errors of embedcam through, with their traceback.

    Returns:
        The exit code: 0 done, 1 an error, 2 wrong usage, 130 interrupted.
    """
    if main_process():
        progress.show()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a label that the terminal has no letters for stops nothing
    if os.environ.get("NO_COLOR"):
        from typer import rich_utils

        rich_utils.COLOR_SYSTEM = None  # rich takes away the colours alone, and leaves bold and dim
    logger = logging.getLogger("embedcam")
    logger.addHandler(_Warnings())
    logger.propagate = False
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = int(command(standalone_mode=False) or 0)
    except EmbedcamError as error:
        if debug:
            raise
        print(f"embedcam: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if debug or error.name is None or error.name.partition(".")[0] == "embedcam":
            raise
        extra = _EXTRAS.get(_verb(), "train")
        print(f'embedcam: this needs {error.name}; install it with `pip install "embedcam[{extra}]"`', file=sys.stderr)
        return 1
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        usage = getattr(error, "show", None)  # click's errors of usage show themselves
        if usage is None:
            raise
        usage()
        return int(getattr(error, "exit_code", 2))
    finally:
        leave()
    if code == _INTERRUPTED:  # some versions of typer turn Ctrl-C into this code, without a word
        _say_interrupted()
    return code


def _verb() -> str:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


def _say_interrupted() -> None:
    hint = "what is finished is kept: add --resume to go on"
    # `evaluate` keeps it beside the file of its scores, if it writes one.
    scores = any(word.partition("=")[0] == "--json" for word in sys.argv)
    if _verb() not in ("train", "build", "explain") and not (_verb() == "evaluate" and scores):
        hint = "nothing was left half-written"
    after_sign = "\n" if sys.stderr.isatty() else ""  # the terminal has just shown ^C
    print(f"{after_sign}embedcam: interrupted; {hint}", file=sys.stderr)
