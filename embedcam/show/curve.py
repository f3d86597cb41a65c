"""The training curve: loss and retrieval scores over the epochs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import EmbedcamError, MissingDependencyError
from ..files import write_bytes

# Okabe and Ito's colours, which colour-blind readers tell apart; markers help in print.
_SCORES = (
    ("recall_at_1", "Recall@1", "#0072b2", "o"),
    ("map_at_r", "MAP@R", "#d55e00", "s"),
    ("nmi", "NMI", "#009e73", "^"),
)
_LOSS_COLOR = "#5b626b"


def training_curve(history: Sequence[Mapping[str, float | None]], path: str | Path) -> None:
    """Draw the loss (left axis) and the retrieval scores (right axis) over the epochs into a PNG file.

    Args:
        history: One row an epoch, with "epoch" and any of "loss", "recall_at_1", "map_at_r" and "nmi" (in
            [0, 1]); what is missing or None leaves no point. Epoch 0, before training, has no loss.
        path: Where the PNG belongs.

    Raises:
        EmbedcamError: If the history is empty.
        MissingDependencyError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    all_epochs, _ = _points(history, "epoch")
    if not all_epochs:
        raise EmbedcamError("a training curve needs at least one epoch, got none; train first")
    try:
        # The object-oriented interface: pyplot would choose a backend and keep state for the whole process.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingDependencyError(
            'drawing a training curve needs matplotlib; pip install "embedcam[train]"'
        ) from error

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    score_axis = figure.add_subplot()
    loss_axis = score_axis.twinx()
    lines = []
    epochs, losses = _points(history, "loss")
    if epochs:
        lines += loss_axis.plot(epochs, losses, color=_LOSS_COLOR, linestyle="--", marker=".", label="loss")
        loss_axis.set_ylim(bottom=min(0.0, *losses))
        loss_axis.set_ylabel("loss (dashed)", color=_LOSS_COLOR)
        loss_axis.tick_params(axis="y", colors=_LOSS_COLOR)
        loss_axis.yaxis.set_label_position("left")
        loss_axis.yaxis.tick_left()
    else:
        loss_axis.set_yticks([])
    for key, name, color, marker in _SCORES:
        epochs, values = _points(history, key)
        if epochs:
            label = f"{name} {values[-1]:.3f}"
            lines += score_axis.plot(epochs, values, color=color, marker=marker, markersize=4, label=label)
    score_axis.set_xlim(min(all_epochs) - 0.5, max(all_epochs) + 0.5)
    score_axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    score_axis.set_xlabel("epoch")
    score_axis.set_ylim(0, 1.02)
    score_axis.set_ylabel("retrieval scores")
    score_axis.yaxis.set_label_position("right")
    score_axis.yaxis.tick_right()
    score_axis.grid(axis="y", color="#e4e6e9", linewidth=0.8)
    for axis in (loss_axis, score_axis):
        axis.spines["top"].set_visible(False)
        axis.set_axisbelow(True)
    if lines:
        figure.legend(handles=lines, loc="outside upper center", ncols=len(lines), frameon=False)

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def _points(history: Sequence[Mapping[str, float | None]], key: str) -> tuple[list[float], list[float]]:
    """The epochs that have a value, and the values."""
    epochs: list[float] = []
    values: list[float] = []
    for row in history:
        epoch, value = row.get("epoch"), row.get(key)
        if epoch is not None and value is not None:
            epochs.append(epoch)
            values.append(value)
    return epochs, values
