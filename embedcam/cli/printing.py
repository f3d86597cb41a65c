"""What the command line prints."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..utils import progress
from ..utils.distributed import main_process

if TYPE_CHECKING:
    from ..database.weight_database import WeightDatabase
    from ..explain.explanation import AnyExplainer
    from ..onnx.quantise import QuantiseReport
    from ..show.drawing import DrawOptions


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
    """Print the contents of a weight database.

    Args:
        database: The database.
        top: Number of labels and channels to show per cluster.
    """
    print_facts(database.facts())
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


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print facts line by line.

    Args:
        facts: (name, value) of each.
    """
    for name, value in facts:
        print(f"{name:<14}{value}")


def print_scores(result: dict[str, Any]) -> None:
    """Print the table of scores.

    Args:
        result: Returned by `evaluate`.
    """
    from ..evaluate.method import columns

    shown = [column for column in columns() if any(row[column.key] is not None for row in result["rows"])]
    rows = []
    for row in result["rows"]:
        name = f"{row['method']} (default)" if row["default"] else row["method"]
        size = " x ".join(map(str, row["input_size"]))
        rows.append([name, "yes" if row["backprop"] else "no", size, *(column.text(row) for column in shown)])
    _print_table(["method", "backprop", "input", *(column.key for column in shown)], rows)
    kind = result["mask_kind"]
    print(f"\n{result['images']} images, {result['masks']} with a {kind}{left_out(result['skipped'])}")
    if result["recall_at_1"] is not None:
        print_retrieval(result)
    if result["sum_rule"] is not None:
        print(f"contributions of cells add up to similarities; largest error {result['sum_rule']:.1e}")


def print_retrieval(result: dict[str, Any]) -> None:
    """Print the scores of a ranking.

    Args:
        result: With the scores of `Ranking.scores`.
    """
    from ..show.report import RETRIEVAL

    scores = ", ".join(f"{each.heading} {result[each.key]:.4f}" for each in RETRIEVAL if each.key in result)
    print(f"{scores}; {result['queries']} queries, {result['searched']} images searched")


def print_bias(summary: dict[str, Any], most: int = 10) -> None:
    """Print how much of the similarities lies off the object.

    Args:
        summary: Returned by `summarise`.
        most: Rows of classes, and of pairs of classes, those with the largest excess.
    """
    where = "in the border" if summary["object"] == "border" else "off the object"
    for group, name in (("all", "nearest image of"), ("class", "class"), ("pair of classes", "classes")):
        rows = [row for row in summary["rows"] if row["group"] == group]
        lines = []
        for row in rows[:most]:
            label = " and ".join(row["labels"]) or ("the same label" if row["right"] else "another label")
            share = f"{100 * row['off']:.1f} % ({100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f})"
            low, high = (100 * value for value in row["excess_interval"])
            excess = f"{100 * row['excess']:+.1f} ({low:+.1f} to {high:+.1f})"
            chance, verdict = f"{100 * row['expected']:.1f} %", "biased" if row["biased"] else ""
            lines.append([label, str(row["pairs"]), f"{row['similarity']:.2f}", share, chance, excess, verdict])
        if rows:
            more = f", {most} of {len(rows)}" if len(rows) > most else ""
            _print_table([f"{name}{more}", "pairs", "similarity", where, "by chance", "excess", ""], lines, text=(0, 6))
    kind = (
        "all but the outer eighth of each side" if summary["object"] == "border" else f"known by a {summary['object']}"
    )
    print(f"{summary['pairs']} pairs; the object is {kind}. Chance is the share of the area.")


def print_next(out: Path) -> None:
    """Print commands to try after the demo, with its files.

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
        result: Returned by `faithfulness`.
    """
    kinds = ("deletion", "insertion")
    rows = []
    for row in result["rows"]:
        areas, ranks = ([f"{row[kind][key]:.3f}" for kind in kinds] for key in ("similarity_area", "rank_area"))
        paired = [
            "{:+.3f} ({:+.3f} to {:+.3f})".format(row[kind]["difference"], *row[kind]["interval"]) for kind in kinds
        ]
        rows.append([row["method"], *areas, *paired, *ranks])
    columns = [f"{what}{kind}" for what in ("", "difference, ", "rank, ") for kind in kinds]
    _print_table(["method", *columns], rows, title=f"faithfulness, {result['images']} images")
    print("Deletion: lower is better. Insertion: higher is better. Differences are to the first row, image by image.")


def print_randomisation(result: dict[str, Any]) -> None:
    """Print the correlation of the maps with the original ones as more and more layers are re-initialised.

    Args:
        result: Returned by `randomisation`.
    """
    stages = result["rows"][0]["stages"]
    columns = ["method", *(stage["layer"] or "none" for stage in stages), "between images"]
    rows = []
    for row in result["rows"]:
        values = [stage["spearman"] for stage in (*row["stages"], row["between_images"])]
        rows.append([row["method"], *("" if value is None else f"{value:.3f}" for value in values)])
    _print_table(columns, rows, title=f"randomisation, {result['images']} images")
    print("Rank correlation with the original map, once this layer and all after it are random.")


def print_parts(result: dict[str, Any]) -> None:
    """Print how dense the heat is on each part.

    Args:
        result: Returned by `heat_by_part`.
    """
    methods, lines = result["rows"], []
    for kind, key in (("groups", "density"), ("parts", "density"), ("prefers", "share")):
        for name in methods[0][kind]:
            values = [method[kind][name][key] for method in methods]
            lines.append([name, *("" if value is None else f"{value:.3f}" for value in values)])
    columns = ["", *(method["method"] for method in methods)]
    _print_table(columns, lines, title=f"heat by part, {result['images']} images")
    print("Share of the heat divided by the share of the object's pixels; in the last lines, the share of images.")


def print_stream(explainer: AnyExplainer, source: str, out: Path | None, draw: DrawOptions, smoothing: float) -> None:
    """Explain a video and print the frame rate.

    Args:
        explainer: What explains.
        source: A video file, or "camera:0".
        out: Video file to write, or None to show the video only.
        draw: Drawing options.
        smoothing: Share of the previous frames in a frame's map.
    """
    from ..video.stream import explain_stream

    report = explain_stream(explainer, source, out, draw, smoothing=smoothing)
    dropped = f", {report.dropped} dropped" if report.dropped else ""
    wrote = f"; wrote {report.out}" if report.out else ""
    print(f"{report.frames} frames at {report.fps:.1f} per second{dropped}{wrote}")


def print_cost(report: QuantiseReport) -> None:
    """Print size and accuracy of a quantised explainer.

    Args:
        report: Returned by `quantise`.
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
    """Print a line, in only one of the processes that `torchrun` started.

    Args:
        text: The line.
    """
    if main_process():
        typer.echo(text)


def left_out(count: int) -> str:
    """Report the number of images that could not be read.

    Args:
        count: The number.

    Returns:
        The end of a sentence; empty for 0.
    """
    return f", {count} unreadable skipped" if count else ""


def answer(line: Mapping[str, Any]) -> str:
    """Say in words what an image answered.

    Args:
        line: Its line of `explanations.jsonl`.

    Returns:
        The similarity, or the difference of two, and its parts.
    """
    versus = "" if line["versus"] is None else f" rather than {line['versus']}"
    parts = ", ".join(f"{name} {line[name]:+.3f}" for name in ("for", "against", "rest"))
    return f"{line['similarity']:+.3f} towards {line['towards']}{versus} ({parts})"
