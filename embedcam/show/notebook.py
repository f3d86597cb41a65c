"""Explanations and weight databases as a notebook shows them: HTML, a picture, matplotlib axes."""

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

# More would make a notebook heavy, and nobody looks at them there.
_IMAGES, _CLUSTERS, _LABELS, _CHANNELS = 16, 100, 3, 5
_SIDE, _ACROSS = 160, 4


class Maps(Protocol):
    """What a notebook shows of an `Explanation`."""

    @property
    def heatmaps(self) -> NDArray[np.float32]:
        """(B, H, W) in [0, 1]."""
        ...

    @property
    def notes(self) -> list[list[str]]:
        """What a reader must know of each image."""
        ...

    @property
    def clusters(self) -> NDArray[np.int64] | None:
        """(B,) index of each image's cluster."""
        ...

    @property
    def distances(self) -> NDArray[np.float32] | None:
        """(B,) to the cluster's centroid."""
        ...

    @property
    def anomaly(self) -> NDArray[np.float32] | None:
        """(B,), above 1 for images unlike the training images."""
        ...

    def typicality_in_words(self, index: int) -> str:
        """Say how usual an image is for its cluster."""
        ...

    def overlay(self, images: Any, *, alpha: float, colormap: str) -> list[NDArray[np.uint8]]:
        """Lay the heat maps over the images."""
        ...


class Clusters(Protocol):
    """What a notebook shows of a `WeightDatabase`."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """(C,) images of each cluster."""
        ...

    @property
    def top_channels(self) -> NDArray[np.int32]:
        """(C, T) strongest channels of each cluster."""
        ...

    def facts(self) -> list[tuple[str, str]]:
        """Say what it is, in names and values."""
        ...

    def labels_of(self, cluster: int, most: int = 3) -> list[tuple[str, int]]:
        """List the commonest labels of a cluster, with their counts."""
        ...


def facts_of(explanation: Maps, index: int) -> list[str]:
    """Say in a few words each what an explanation knows of an image beside its heat map.

    Args:
        explanation: Of a batch.
        index: The image's, in it.

    Returns:
        Cluster, distance, typicality and anomaly, as far as they are known, and the notes.
    """
    numbers = (
        ("cluster {}", explanation.clusters),
        ("distance {:.3f}", explanation.distances),
        ("anomaly {:.2f}", explanation.anomaly),
    )
    known = [form.format(values[index]) for form, values in numbers if values is not None]
    words = explanation.typicality_in_words(index)
    return [*known, *([words] if words else []), *explanation.notes[index]]


def explanation_png(explanation: Maps) -> bytes | None:
    """Draw the first heat maps of a batch as one contact sheet.

    Args:
        explanation: Of a batch.

    Returns:
        A PNG file; None for an empty batch.
    """
    maps = [colorize(heatmap) for heatmap in explanation.heatmaps[:_IMAGES]]
    if not maps:
        return None
    captions = [", ".join(facts_of(explanation, index)) for index in range(len(maps))]
    rows = [slice(start, start + _ACROSS) for start in range(0, len(maps), _ACROSS)]
    return _png(grid([maps[row] for row in rows], [captions[row] for row in rows], cell_size=_SIDE))


def explanation_html(explanation: Maps) -> str:
    """Show the first heat maps of a batch in a table, each beside what is known of its image.

    Args:
        explanation: Of a batch.

    Returns:
        HTML that needs nothing else.
    """
    rows = []
    for index, heatmap in enumerate(explanation.heatmaps[:_IMAGES]):
        image = Image.fromarray(colorize(heatmap))
        image.thumbnail((_SIDE, _SIDE))
        picture = f'<img alt="heat map" src="data:image/png;base64,{base64.b64encode(_png(image)).decode()}">'
        rows.append([str(index), picture, "<br>".join(map(escape, facts_of(explanation, index)))])
    count = len(explanation.heatmaps)
    return _page(f"Explanation of {count} image{'' if count == 1 else 's'}", _table(rows), count - len(rows))


def database_html(database: Clusters) -> str:
    """Show what a weight database is, and its largest clusters.

    Args:
        database: A `WeightDatabase`; its texts may come from strangers, all are escaped.

    Returns:
        HTML that needs nothing else.
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


def plot(explanation: Maps, images: Any = None, *, alpha: float = 0.5, colormap: str = "turbo") -> NDArray[np.object_]:
    """Draw heat maps with matplotlib, side by side.

    Args:
        explanation: Of a batch.
        images: What was explained, as for `Explanation.overlay`, to lay the heat maps over; the maps alone if None.
        alpha: Weight of the heat map over an image, in [0, 1].
        colormap: Any name that the cmap library knows.

    Returns:
        (B,) matplotlib axes, each titled with what is known of its image.

    Raises:
        DataError: If the images do not fit.
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
    across = min(len(pictures), _ACROSS)
    down = -(-len(pictures) // across)
    _, table = pyplot.subplots(down, across, squeeze=False, figsize=(3 * across, 3.4 * down), layout="constrained")
    axes: NDArray[np.object_] = table.ravel()
    for each in axes:
        each.set_axis_off()
    for index, picture in enumerate(pictures):
        axes[index].imshow(picture)
        axes[index].set_title("\n".join(facts_of(explanation, index)[:3]), fontsize="small")
    return axes[: len(pictures)]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    cells = ["".join(f'<td style="text-align: left">{cell}</td>' for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in [titles, *cells] if row)}</table>"


def _page(title: str, body: str, hidden: int) -> str:
    rest = f"<p>... and {hidden} more</p>" if hidden else ""
    return f"<div><p><b>{title}</b></p>{body}{rest}</div>"
