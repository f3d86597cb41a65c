"""Overlays with boxes, and the contact sheet of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .boxes import THRESHOLD, Box, draw_boxes, find_boxes
from .grid import grid
from .overlay import overlay

SHEET_IMAGES = 40
_SHEET_COLUMNS = 4
_PICTURE_SIZE = 160


@dataclass(frozen=True)
class DrawOptions:
    """Drawing options of overlays.

    Attributes:
        boxes: Draw boxes around strong regions.
        threshold: Minimum heat inside a box's region, in (0, 1].
        alpha: Opacity of the heat map, in [0, 1].
        colormap: Name of a colormap of the cmap library.
    """

    boxes: bool = False
    threshold: float = THRESHOLD
    alpha: float = 0.5
    colormap: str = "turbo"


def bounded(image: Image.Image, longest: int) -> NDArray[np.uint8]:
    """Downscale a picture that is larger than needed.

    Args:
        image: The picture.
        longest: Maximum length of its longer side, in pixels.

    Returns:
        uint8 (H, W, 3).
    """
    scale = longest / max(image.size)
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(image)


def scale_box(box: Box, size: tuple[int, ...], new_size: tuple[int, ...]) -> Box:
    """Scale a box to another image size, rounding outwards.

    Args:
        box: Box in an image of `size`.
        size: (H, W).
        new_size: (H', W').

    Returns:
        The box in an image of `new_size`.
    """
    (h, w), (height, width) = size[:2], new_size[:2]
    left, top = box.left * width // w, box.top * height // h
    return replace(box, left=left, top=top, right=-(-box.right * width // w), bottom=-(-box.bottom * height // h))


def draw_overlay(
    picture: NDArray[np.uint8], heatmap: NDArray[np.float32], draw: DrawOptions
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Draw a heat map over a picture, and optionally boxes.

    Args:
        picture: uint8 (H, W, 3).
        heatmap: (h, w) in [0, 1].
        draw: Drawing options.

    Returns:
        The overlay, uint8 (H, W, 3), and its boxes in pixels of the picture; no boxes if `draw.boxes` is False.
    """
    drawn = overlay(picture, heatmap, alpha=draw.alpha, colormap=draw.colormap)
    if not draw.boxes:
        return drawn, []
    size = (picture.shape[1], picture.shape[0])
    heat = np.asarray(Image.fromarray(heatmap).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    boxes = find_boxes(heat, draw.threshold)
    return draw_boxes(drawn, boxes), [
        {"left": b.left, "top": b.top, "right": b.right, "bottom": b.bottom, "score": float(b.score)} for b in boxes
    ]


class SheetEntry(NamedTuple):
    """A picture and its overlay on a contact sheet."""

    picture: NDArray[np.uint8]
    overlay: NDArray[np.uint8]
    picture_caption: str
    overlay_caption: str

    @classmethod
    def of(
        cls, picture: NDArray[np.uint8], heatmap: NDArray[np.float32], line: dict[str, Any], draw: DrawOptions
    ) -> SheetEntry:
        """Draw an entry: name and notes below the picture, typicality and cluster below the overlay.

        Args:
            picture: uint8 (H, W, 3).
            heatmap: (h, w) in [0, 1].
            line: The image's line of `explanations.jsonl`.
            draw: Drawing options.

        Returns:
            The entry.
        """
        name = Path(line["overlay"]).stem
        small = bounded(Image.fromarray(picture), _PICTURE_SIZE)  # boxes drawn at full size would be too thin
        typicality = line["typicality_in_words"]
        notes = [title for note in line["notes"] if (title := note.partition(":")[0]) != typicality]
        label = next(iter(line["cluster_labels"]), None)
        cluster = f"cluster {line['cluster']}{f' of {label}' if label else ''}"
        # Warnings come before the label, which may be long and is cut at the end.
        return cls(small, draw_overlay(small, heatmap, draw)[0], "\n".join([name, *notes]), f"{typicality}\n{cluster}")


def contact_sheet(entries: list[SheetEntry]) -> Image.Image:
    """Lay out entries, four per row.

    Args:
        entries: At least one entry.

    Returns:
        The contact sheet.
    """
    rows = [entries[start : start + _SHEET_COLUMNS] for start in range(0, len(entries), _SHEET_COLUMNS)]
    pictures = [[picture for entry in row for picture in (entry.picture, entry.overlay)] for row in rows]
    captions = [[text for entry in row for text in (entry.picture_caption, entry.overlay_caption)] for row in rows]
    return grid(pictures, captions, picture_size=_PICTURE_SIZE)
