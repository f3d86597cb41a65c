"""Boxes around the hot parts of a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor, ImageDraw
from scipy import ndimage

from ..errors import DataError, EmbedcamError
from .checks import check_heatmap, check_picture
from .fonts import Letters
from .text import fit

# Minimum heat inside a box: default maps are peaked, and objects reach far below half of their maximum. Chosen on
# training images, see docs/heat-maps.md.
THRESHOLD = 0.05


@dataclass(frozen=True)
class Box:
    """Bounding box of a connected component.

    Attributes:
        left: First column.
        top: First row.
        right: One past the last column.
        bottom: One past the last row.
        score: Mean heat of the component, in [0, 1].
        area: Number of pixels of the component.
    """

    left: int
    top: int
    right: int
    bottom: int
    score: float
    area: int


def find_boxes(heatmap: ArrayLike, threshold: float = THRESHOLD, min_area: int = 1) -> list[Box]:
    """Find the bounding box of each connected component of the pixels at or above a threshold.

    Pixels that share an edge or a corner are connected.

    Args:
        heatmap: (H, W) in [0, 1].
        threshold: Lowest heat of a component's pixels, in (0, 1].
        min_area: Smallest component, in pixels.

    Returns:
        The boxes, by descending area of the component; empty for an all-zero heat map.

    Raises:
        DataError: If the heat map has another shape, is not finite, or has values outside [0, 1].
        EmbedcamError: If the threshold is outside (0, 1].
    """
    heat = check_heatmap(heatmap)
    if not 0.0 < threshold <= 1.0:
        raise EmbedcamError(f"threshold must lie in (0, 1], got {threshold}; {THRESHOLD} is usual")
    inside = heat >= threshold
    components, _ = ndimage.label(inside, structure=np.ones((3, 3), dtype=bool))
    members = components[inside]
    areas, sums = np.bincount(members), np.bincount(members, weights=heat[inside])
    boxes = [
        Box(
            columns.start,
            rows.start,
            columns.stop,
            rows.stop,
            float(sums[index] / areas[index]),
            int(areas[index]),
        )
        for index, (rows, columns) in enumerate(ndimage.find_objects(components), start=1)
        if areas[index] >= min_area
    ]
    return sorted(boxes, key=lambda box: -box.area)


def mask_box(mask: NDArray[np.bool_]) -> Box | None:
    """Find the bounding box of all pixels of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        The box, with score 1; None for an empty mask.

    Raises:
        DataError: If the mask is not bool (H, W).
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise DataError(f"a mask must be bool (H, W), got {mask.dtype} {mask.shape}; compare it with 0 first")
    bounds = Image.fromarray(mask.view(np.uint8)).getbbox()
    return None if bounds is None else Box(*bounds, score=1.0, area=int(mask.sum()))


def iou(a: Box, b: Box) -> float:
    """Compute the intersection over union of two boxes.

    Args:
        a: First box.
        b: Second box.

    Returns:
        Value in [0, 1]: 0 without overlap, 1 for equal boxes.
    """
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = ((box.right - box.left) * (box.bottom - box.top) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: Sequence[Box],
    labels: Sequence[str] | None = None,
    color: str | tuple[int, int, int] = "white",
) -> NDArray[np.uint8]:
    """Draw boxes, with optional labels, on a copy of a picture.

    Args:
        image: uint8 (H, W, 3) RGB.
        boxes: Boxes in the picture's pixels; the first is drawn last, on top.
        labels: One label per box, shortened to the picture's width; None for no labels.
        color: Colour of lines and label backgrounds: a CSS colour, or RGB in 0..255.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: If the picture is not uint8 (H, W, 3).
        EmbedcamError: If a box exceeds the picture, the number of labels differs from the number of boxes, or the
            colour is unknown.
    """
    check_picture(image)
    if labels is not None and len(labels) != len(boxes):
        raise EmbedcamError(f"{len(boxes)} boxes need as many labels, got {len(labels)}; pass one per box or None")
    height, width = image.shape[:2]
    for box in boxes:
        if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
            raise EmbedcamError(f"{box} exceeds the picture of {width} x {height} pixels; find boxes at its size")
    rgb = _rgb(color)
    contrast = (0, 0, 0) if _is_light(rgb) else (255, 255, 255)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 110))
    casing = max(1, line // 2)
    for box in reversed(boxes):
        # A casing of the opposite shade keeps the line visible on any picture and colour map.
        frame = _around(box, line + casing, picture.size)
        draw.rectangle(frame, outline=contrast, width=line + 2 * casing)
        left, top, right, bottom = frame
        inner = (
            left + casing,
            top + casing,
            max(left + casing, right - casing),
            max(top + casing, bottom - casing),
        )
        draw.rectangle(inner, outline=rgb, width=line)
    # Labels are drawn after all lines, so that no line crosses them.
    for box, label in reversed(list(zip(boxes, labels or [], strict=False))):
        _draw_label(draw, _around(box, line + casing, picture.size), label, rgb, contrast, picture.size)
    return np.array(picture)


def _around(box: Box, margin: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    # The outermost columns and rows of a frame around a box, clipped to a picture of (width, height).
    left, top = max(box.left - margin, 0), max(box.top - margin, 0)
    right, bottom = min(box.right - 1 + margin, size[0] - 1), min(box.bottom - 1 + margin, size[1] - 1)
    return left, top, right, bottom


def _draw_label(
    draw: ImageDraw.ImageDraw,
    frame: tuple[int, int, int, int],
    label: str,
    background: tuple[int, int, int],
    foreground: tuple[int, int, int],
    size: tuple[int, int],
) -> None:
    # Above the frame, or inside it if there is no room above.
    letters = Letters(max(10, round(min(size) / 20)))
    pad = max(2, round(min(size) / 110))
    lines = fit(label, letters, size[0] - 2 * pad)
    if not lines:
        return
    width, height = round(letters.length(lines[0])) + 2 * pad, letters.height + pad
    left = max(0, min(frame[0], size[0] - width))
    top = frame[1] - height if frame[1] >= height else min(frame[1], size[1] - height)
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=background)
    letters.write(draw, (left + pad, top + pad / 2), lines[0], foreground)


def _rgb(color: str | tuple[int, int, int]) -> tuple[int, int, int]:
    try:
        red, green, blue = (ImageColor.getrgb(color) if isinstance(color, str) else color)[:3]
    except ValueError as error:
        raise EmbedcamError(f"unknown colour {color!r}; pass a CSS colour or (red, green, blue)") from error
    return red, green, blue


def _is_light(rgb: tuple[int, int, int]) -> bool:
    # Rec. 601 luma: whether black has more contrast to the colour than white.
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 128
