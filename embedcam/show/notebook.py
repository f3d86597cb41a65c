"""Show explanations and weight databases in notebooks: HTML, PNG and matplotlib."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import MissingDependencyError
from .grid import grid
from .overlay import colorize

# Maximum numbers shown.
_IMAGES, _CLUSTERS, _LABELS, _CHANNELS = 16, 100, 3, 5
_PICTURE_SIZE, _COLUMNS = 160, 4


# Structural types of `Explanation` and `WeightDatabase`, whose modules import this one.
class _Explanation(Protocol):
    @property
    def heatmaps(self) -> NDArray[np.float32]: ...
    @property
    def notes(self) -> list[list[str]]: ...
    @property
    def clusters(self) -> NDArray[np.int64] | None: ...
    @property
    def distances(self) -> NDArray[np.float32] | None: ...
    @property
    def anomaly(self) -> NDArray[np.float32] | None: ...
    def typicality_in_words(self, index: int) -> str: ...
    def overlay(self, images: Any, *, alpha: float, colormap: str) -> list[NDArray[np.uint8]]: ...


class _WeightDatabase(Protocol):
    @property
    def counts(self) -> NDArray[np.int64]: ...
    @property
    def top_channels(self) -> NDArray[np.int32]: ...
    def facts(self) -> list[tuple[str, str]]: ...
    def labels_of(self, cluster: int, most: int = 3) -> list[tuple[str, int]]: ...


def _facts_of(explanation: _Explanation, index: int) -> list[str]:
    numbers = (
        ("cluster {}", explanation.clusters),
        ("distance {:.3f}", explanation.distances),
        ("anomaly {:.2f}", explanation.anomaly),
    )
    facts = [form.format(values[index]) for form, values in numbers if values is not None]
    typicality = explanation.typicality_in_words(index)
    return [*facts, *([typicality] if typicality else []), *explanation.notes[index]]


def explanation_png(explanation: _Explanation) -> bytes | None:
    """Draw the first heat maps of a batch as a contact sheet.

    Args:
        explanation: The explanation of a batch.

    Returns:
        A PNG file; None for an empty batch.
    """
    maps = [colorize(heatmap) for heatmap in explanation.heatmaps[:_IMAGES]]
    if not maps:
        return None
    captions = [", ".join(_facts_of(explanation, index)) for index in range(len(maps))]
    rows = [slice(start, start + _COLUMNS) for start in range(0, len(maps), _COLUMNS)]
    return _png(grid([maps[row] for row in rows], [captions[row] for row in rows], picture_size=_PICTURE_SIZE))


def explanation_html(explanation: _Explanation) -> str:
    """Show the first heat maps of a batch and their facts in a table.

    Args:
        explanation: The explanation of a batch.

    Returns:
        Self-contained HTML.
    """
    rows = []
    for index, heatmap in enumerate(explanation.heatmaps[:_IMAGES]):
        image = Image.fromarray(colorize(heatmap))
        image.thumbnail((_PICTURE_SIZE, _PICTURE_SIZE))
        picture = f'<img alt="heat map" src="data:image/png;base64,{base64.b64encode(_png(image)).decode()}">'
        rows.append([str(index), picture, "<br>".join(map(escape, _facts_of(explanation, index)))])
    count = len(explanation.heatmaps)
    return _page(f"Explanation of {count} image{'' if count == 1 else 's'}", _table(rows), count - len(rows))


def database_html(database: _WeightDatabase) -> str:
    """Show the facts and the largest clusters of a weight database.

    Args:
        database: The weight database; its texts are untrusted and are escaped.

    Returns:
        Self-contained HTML.
    """
    facts = _table([escape(name), escape(value)] for name, value in database.facts())
    largest = np.argsort(-database.counts, kind="stable")[:_CLUSTERS].tolist()
    clusters = _table(
        (
            [
                str(cluster),
                str(database.counts[cluster]),
                escape(", ".join(f"{name} ({count})" for name, count in database.labels_of(cluster, _LABELS))),
                ", ".join(map(str, database.top_channels[cluster, :_CHANNELS].tolist())),
            ]
            for cluster in largest
        ),
        head=("cluster", "images", "labels", "strongest channels"),
    )
    return _page("Weight database", facts + clusters, len(database.counts) - len(largest))


def plot(
    explanation: _Explanation, images: Any = None, *, alpha: float = 0.5, colormap: str = "turbo"
) -> NDArray[np.object_]:
    """Draw heat maps with matplotlib.

    Args:
        explanation: The explanation of a batch.
        images: The explained images, as for `Explanation.overlay`, to draw over. None draws the maps alone.
        alpha: Opacity of the heat map, in [0, 1].
        colormap: Name of a colormap of the cmap library.

    Returns:
        (B,) matplotlib axes, with facts about the images as titles.

    Raises:
        DataError: If the number or kind of images does not fit.
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingDependencyError('plotting needs matplotlib; pip install "embedcam[train]"') from error
    if images is None:
        pictures = [colorize(heatmap, colormap) for heatmap in explanation.heatmaps]
    else:
        pictures = explanation.overlay(images, alpha=alpha, colormap=colormap)
    if not pictures:
        return np.empty(0, dtype=object)
    columns = min(len(pictures), _COLUMNS)
    rows = -(-len(pictures) // columns)
    _, table = pyplot.subplots(rows, columns, squeeze=False, figsize=(3 * columns, 3.4 * rows), layout="constrained")
    axes: NDArray[np.object_] = table.ravel()
    for axis in axes:
        axis.set_axis_off()
    for index, picture in enumerate(pictures):
        axes[index].imshow(picture)
        axes[index].set_title("\n".join(_facts_of(explanation, index)[:3]), fontsize="small")
    return axes[: len(pictures)]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = ["".join(f'<td style="text-align: left">{text}</td>' for text in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in [titles, *lines] if line)}</table>"


def _page(title: str, body: str, omitted: int) -> str:
    rest = f"<p>... and {omitted} more</p>" if omitted else ""
    return f"<div><p><b>{title}</b></p>{body}{rest}</div>"
