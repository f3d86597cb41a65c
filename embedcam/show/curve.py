"""Plots as PNG files: training, faithfulness, and the randomisation check."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EmbedcamError, MissingDependencyError
from ..utils.files import write_bytes
from .report import RETRIEVAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#5b626b"
# Colours of Okabe and Ito, which colour-blind readers can distinguish, and markers for print.
_STYLES = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#e69f00", "v"),
    ("#56b4e9", "P"),
)
_KINDS = {"deletion": "hidden", "insertion": "shown"}


def training_curve(history: Sequence[Mapping[str, float | None]], path: str | Path) -> None:
    """Plot the loss (left axis) and the retrieval scores (right axis) over the epochs.

    Args:
        history: One row per epoch, with "epoch", and any of "loss" and the scores of `RETRIEVAL`; a missing value or
            None leaves no point. Epoch 0, before training, has no loss.
        path: The PNG file.

    Raises:
        EmbedcamError: If the history is empty.
        MissingDependencyError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    all_epochs, _ = _points(history, "epoch")
    if not all_epochs:
        raise EmbedcamError("a training curve needs at least one epoch, got none; train first")
    figure = _figure(8, 4.5)
    from matplotlib.ticker import MaxNLocator

    score_axis = figure.add_subplot()
    loss_axis = score_axis.twinx()
    lines = []
    epochs, losses = _points(history, "loss")
    if epochs:
        lines += loss_axis.plot(epochs, losses, color=_GREY, linestyle="--", marker=".", label="loss")
        loss_axis.set_ylim(bottom=min(0.0, *losses))
        loss_axis.set_ylabel("loss (dashed)", color=_GREY)
        loss_axis.tick_params(axis="y", colors=_GREY)
        loss_axis.yaxis.set_label_position("left")
        loss_axis.yaxis.tick_left()
    else:
        loss_axis.set_yticks([])
    drawn = [column for column in RETRIEVAL if _points(history, column.key)[0]]
    for column, (color, marker) in zip(drawn, _STYLES, strict=False):
        epochs, values = _points(history, column.key)
        label = f"{column.heading} {values[-1]:.3f}"
        lines += score_axis.plot(epochs, values, color=color, marker=marker, markersize=4, label=label)
    score_axis.set_xlim(min(all_epochs) - 0.5, max(all_epochs) + 0.5)
    score_axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    score_axis.set_xlabel("epoch")
    score_axis.set_ylim(0, 1.02)
    score_axis.set_ylabel("retrieval scores")
    score_axis.yaxis.set_label_position("right")
    score_axis.yaxis.tick_right()
    _tidy(loss_axis, "top")
    _tidy(score_axis, "top", grid=True)
    if lines:
        figure.legend(handles=lines, loc="outside upper center", ncols=len(lines), frameon=False)
    _write(figure, path)


def _points(history: Sequence[Mapping[str, float | None]], key: str) -> tuple[list[float], list[float]]:
    """Select the epochs that have a value, and the values."""
    epochs: list[float] = []
    values: list[float] = []
    for row in history:
        epoch, value = row.get("epoch"), row.get(key)
        if epoch is not None and value is not None:
            epochs.append(epoch)
            values.append(value)
    return epochs, values


def draw_faithfulness(result: Mapping[str, Any], path: str | Path) -> None:
    """Plot deletion (left) and insertion (right), the similarity above the rank.

    Args:
        result: Of `evaluate.faithfulness`; the last row, the baseline, is dashed and grey.
        path: The PNG file.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    figure = _figure(9, 7.2)
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    lines = []
    for number, row in enumerate(result["rows"]):
        baseline = number == len(result["rows"]) - 1
        color, marker = (_GREY, "") if baseline else _STYLES[number % len(_STYLES)]
        areas = ", ".join(f"{kind} {row[kind]['similarity_area']:.3f}" for kind in _KINDS)
        for column, kind in zip(axes.T, _KINDS, strict=True):
            for axis, key in zip(column, ("similarity", "rank"), strict=True):
                style = {"color": color, "marker": marker, "markersize": 4, "linestyle": "--" if baseline else "-"}
                drawn = axis.plot(result["share"], row[kind][key], label=f"{row['method']} (area: {areas})", **style)
        lines += drawn
    for column, (kind, done) in zip(axes.T, _KINDS.items(), strict=True):
        better = ("lower", "higher") if kind == "deletion" else ("higher", "lower")
        for axis, word in zip(column, better, strict=True):
            axis.set_title(f"{kind}: {word} is better", fontsize="medium")
            _tidy(axis, "top", "right", grid=True)
        column[1].set_xlabel(f"share of pixels {done}, the strongest first")
    similarity = "cosine" if result["metric"] == "cosine" else "1 - relative distance"
    axes[0, 0].set_ylabel(f"similarity to the whole image ({similarity})")
    axes[1, 0].set_ylabel(f"mean rank of the image among {result['candidates']}")
    axes[1, 0].set_ylim(bottom=0)
    figure.legend(handles=lines, loc="outside upper center", frameon=False)
    _write(figure, path)


def draw_randomisation(result: Mapping[str, Any], path: str | Path) -> None:
    """Plot the correlation of the maps with the original ones as more and more layers are re-initialised.

    Args:
        result: Of `evaluate.randomisation`.
        path: The PNG file.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    figure = _figure(8, 5)
    axis = figure.add_subplot()
    lines, lowest = [], 0.0
    for number, row in enumerate(result["rows"]):
        color, marker = _STYLES[number % len(_STYLES)]
        values, between = [stage["spearman"] for stage in row["stages"]], row["between_images"]["spearman"]
        lines += axis.plot(values, color=color, marker=marker, markersize=4, label=row["method"])
        if between is not None:
            axis.axhline(between, color=color, linestyle=":")
        lowest = min(lowest, *values)
    axis.axhline(0, color=_GREY, linewidth=0.8)
    axis.set_ylim(lowest - 0.1, 1.02)
    names = [stage["layer"] or "nothing" for stage in result["rows"][0]["stages"]]
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize="small")
    axis.set_xlabel("re-initialised: this layer and all after it")
    axis.set_ylabel("rank correlation with the original map")
    axis.set_title("dotted: between the original maps of different images", fontsize="medium")
    _tidy(axis, "top", "right", grid=True)
    figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False)
    _write(figure, path)


def _figure(width: float, height: float) -> Figure:
    try:
        # Not pyplot, which chooses a backend and keeps state for the whole process.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError('drawing curves needs matplotlib; pip install "embedcam[train]"') from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axis: Axes, *hidden: str, grid: bool = False) -> None:
    for side in hidden:
        axis.spines[side].set_visible(False)
    axis.set_axisbelow(True)
    if grid:
        axis.grid(axis="y", color="#e4e6e9", linewidth=0.8)


def _write(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
