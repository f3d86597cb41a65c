"""A report on a weight database, explained test images and scores, as one HTML file that needs no network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import MissingDependencyError
from ..utils.files import write_text
from .checks import check_picture

# Pixels of the longer side, twice the size on the page, for high-density screens.
_THUMBNAIL_SIDE, _PICTURE_SIDE = 192, 448
_TOP_LABELS, _TOP_CHANNELS = 4, 6


@dataclass(frozen=True)
class Column:
    """A column of a table of scores.

    Attributes:
        key: Of the score in the rows.
        heading: Shown above.
        description: What the score is, in one line.
        higher_is_better: None if neither direction is better.
        decimals: Shown of a value.
    """

    key: str
    heading: str
    description: str
    higher_is_better: bool | None = True
    decimals: int = 3

    def text(self, row: Mapping[str, Any]) -> str:
        """Format the column's value in a row.

        Args:
            row: With the score by its key.

        Returns:
            The number; a dash for what is missing or not finite.
        """
        return _number(row.get(self.key), self.decimals)


RETRIEVAL = (
    Column("recall_at_1", "Recall@1", "share of images whose nearest neighbour has the same label"),
    Column("recall_at_5", "Recall@5", "share of images with the same label among the 5 nearest neighbours"),
    Column("recall_at_10", "Recall@10", "share of images with the same label among the 10 nearest neighbours"),
    Column("map", "mAP", "mean precision at the ranks of the images of the same label"),
    Column("map_at_r", "MAP@R", "how well all images of the label rank ahead of the others"),
    Column("nmi", "NMI", "agreement of k-means clusters with the labels"),
)


@dataclass(frozen=True)
class Thumbnail:
    """A training image near a cluster's centroid.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        caption: A few words under it.
    """

    image: NDArray[np.uint8]
    caption: str = ""


@dataclass(frozen=True)
class ClusterCard:
    """A cluster in the report.

    Attributes:
        number: Index in the weight database.
        size: Number of training images.
        labels: (name, count) of the training images' labels, in any order; empty without labels.
        thumbnails: Training images nearest to the centroid, the nearest first.
        channels: (channel index, weight), in any order.
    """

    number: int
    size: int
    labels: Sequence[tuple[str, int]] = ()
    thumbnails: Sequence[Thumbnail] = ()
    channels: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class ExampleCard:
    """An explained test image in the report.

    Attributes:
        name: The image's id.
        image: uint8 (H, W, 3) RGB.
        overlay: uint8 (H, W, 3) RGB, the image with its heat map.
        cluster: Index of the nearest cluster.
        distance: From the embedding to that cluster's centroid.
        typicality: How usual that distance is for the cluster, in [0, 1]; None if unknown.
        mask: (H, W) bool, True on the object; None if there is none.
        label: Of the image; None if unknown.
        cluster_label: The most frequent label of the cluster; None if unknown.
        notes: Warnings of the explanation.
        evidence: uint8 (H, W, 3) RGB, the image with the evidence for its cluster and against another; None if there is
            none.
        versus: Name of that other cluster.
    """

    name: str
    image: NDArray[np.uint8]
    overlay: NDArray[np.uint8]
    cluster: int
    distance: float
    typicality: float | None = None
    mask: NDArray[np.bool_] | None = None
    label: str | None = None
    cluster_label: str | None = None
    notes: Sequence[str] = ()
    evidence: NDArray[np.uint8] | None = None
    versus: str = ""

    @property
    def differs(self) -> bool:
        """Whether both labels are known and the image's is not the cluster's most frequent one."""
        return None not in (self.label, self.cluster_label) and self.label != self.cluster_label


@dataclass(frozen=True)
class Report:
    """The content of the page.

    Attributes:
        title: Heading.
        facts: (name, value) of the network, the data and the database.
        clusters: In any order; shown with the largest first.
        examples: Explained test images, shown in this order.
        scores: One row per method, with "method", "default", "backprop" and any of the scores.
        columns: Of the scores; one without any value is left out.
        retrieval: Any of the scores of `RETRIEVAL`.
    """

    title: str
    facts: Sequence[tuple[str, object]] = ()
    clusters: Sequence[ClusterCard] = ()
    examples: Sequence[ExampleCard] = ()
    scores: Sequence[Mapping[str, Any]] = ()
    columns: Sequence[Column] = ()
    retrieval: Mapping[str, float | None] = field(default_factory=dict)


def write_report(report: Report, path: str | Path) -> None:
    """Write a report as one HTML file, with images and style inside and without scripts.

    Args:
        report: What to show. All texts are escaped, so they may come from untrusted files.
        path: The file.

    Raises:
        DataError: If a picture is not uint8 (H, W, 3).
        MissingDependencyError: If jinja2 is not installed.
        OutputError: If the file cannot be written.
    """
    write_page(
        path,
        "report.html",
        report=report,
        clusters=[_ranked(cluster) for cluster in sorted(report.clusters, key=lambda c: (-c.size, c.number))],
        columns=[c for c in report.columns if any(row.get(c.key) is not None for row in report.scores)],
        best=_best(report),
        retrieval=[column for column in RETRIEVAL if report.retrieval.get(column.key) is not None],
        differing=sum(example.differs for example in report.examples),
        numbers={cluster.number for cluster in report.clusters},
    )


def write_page(path: str | Path, template: str, **content: Any) -> None:
    """Write one HTML file from a template, with images and style inside and without scripts.

    Args:
        path: The file.
        template: Its name in `show/templates`.
        content: What it shows. All texts are escaped, so they may come from untrusted files.

    Raises:
        DataError: If a picture is not uint8 (H, W, 3).
        MissingDependencyError: If jinja2 is not installed.
        OutputError: If the file cannot be written.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError('writing a report needs jinja2; pip install "embedcam[train]"') from error
    environment = Environment(
        loader=PackageLoader("embedcam.show", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(thumbnail=_thumbnail, picture=_picture, number=_number)
    write_text(path, environment.get_template(template).render(**content))


def _ranked(cluster: ClusterCard) -> dict[str, Any]:
    """Sort a cluster's labels and channels, and compute the length of each bar in percent."""
    labels = sorted(cluster.labels, key=lambda item: -item[1])
    channels = sorted(cluster.channels, key=lambda item: -item[1])[:_TOP_CHANNELS]
    strongest = max((weight for _, weight in channels), default=0.0)
    return {
        "card": cluster,
        "labels": [(name, n, 100 * n / max(cluster.size, 1)) for name, n in labels[:_TOP_LABELS] if n],
        "others": cluster.size - sum(n for _, n in labels[:_TOP_LABELS]),
        "channels": [(k, w, max(0.0, 100 * w / strongest) if strongest > 0 else 0.0) for k, w in channels],
    }


def _best(report: Report) -> dict[str, float]:
    """Find the best value of each column, where there are several."""
    best = {}
    for column in report.columns:
        values = [row.get(column.key) for row in report.scores]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if len(finite) > 1 and column.higher_is_better is not None:
            best[column.key] = max(finite) if column.higher_is_better else min(finite)
    return best


def _number(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def _thumbnail(image: NDArray[Any]) -> str:
    return _data_uri(image, _THUMBNAIL_SIDE)


def _picture(image: NDArray[Any]) -> str:
    return _data_uri(image, _PICTURE_SIDE)


def _data_uri(image: NDArray[Any], longest_side: int) -> str:
    """Encode a picture or a mask as a data URI, no larger than the page needs."""
    if image.dtype == np.bool_ and image.ndim == 2 and image.size:
        picture = Image.fromarray(image.astype(np.uint8) * 255)
        picture.thumbnail((longest_side, longest_side), Image.Resampling.NEAREST)
        return _encode(picture.convert("1"), "png", optimize=True)
    check_picture(image)
    picture = Image.fromarray(image)
    picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    if picture.getcolors(256):  # drawings are smaller and sharper as PNG, photographs much smaller as JPEG
        return _encode(picture, "png", optimize=True)
    # Chroma subsampling would blur the edges of a heat map.
    return _encode(picture, "jpeg", quality=85, subsampling=0)


def _encode(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
