"""Heat maps laid over their pictures, with boxes, and the contact sheet of the first of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .boxes import draw_boxes, find_boxes
from .grid import grid
from .overlay import overlay

SHEET_IMAGES = 40
_SHEET_PAIRS_A_ROW = 4
_SHEET_CELL = 160


@dataclass(frozen=True)
class DrawOptions:
    """How overlays look.

    Attributes:
        boxes: Draw boxes around strong regions too.
        threshold: Least heat inside a box's region, in (0, 1].
        alpha: Weight of the heat map, in [0, 1].
        colormap: Any name that the cmap library knows.
    """

    boxes: bool = False
    threshold: float = 0.5
    alpha: float = 0.5
    colormap: str = "turbo"


def bounded(image: Image.Image, longest: int) -> NDArray[np.uint8]:
    """Shrink a picture, in place, if it is larger than needed.

    Args:
        image: The picture.
        longest: Most pixels of its longer side.

    Returns:
        uint8 (H, W, 3).
    """
    image.thumbnail((longest, longest))
    return np.asarray(image)


def draw_overlay(
    picture: NDArray[np.uint8], heatmap: NDArray[np.float32], draw: DrawOptions
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Lay a heat map over a picture, with boxes if they are wanted.

    Args:
        picture: uint8 (H, W, 3).
        heatmap: (h, w) in [0, 1].
        draw: How it looks.

    Returns:
        The overlay, of the picture's size, and its boxes in its pixels.
    """
    drawn = overlay(picture, heatmap, alpha=draw.alpha, colormap=draw.colormap)
    if not draw.boxes:
        return drawn, []
    size = (picture.shape[1], picture.shape[0])
    heat = np.asarray(Image.fromarray(heatmap).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    boxes = find_boxes(heat, draw.threshold)
    known = [
        {"left": b.left, "top": b.top, "right": b.right, "bottom": b.bottom, "score": float(b.score)} for b in boxes
    ]
    return draw_boxes(drawn, boxes), known


class Pair(NamedTuple):
    """A picture and its overlay as they stand on a contact sheet."""

    picture: NDArray[np.uint8]
    drawn: NDArray[np.uint8]
    picture_caption: str
    drawn_caption: str

    @classmethod
    def of(
        cls, picture: NDArray[np.uint8], heatmap: NDArray[np.float32], line: dict[str, Any], draw: DrawOptions
    ) -> Pair:
        """Make a pair small, and say under the picture which one it is and what to mind, under its overlay the rest.

        Args:
            picture: uint8 (H, W, 3).
            heatmap: (h, w) in [0, 1].
            line: Its line of `explanations.jsonl`.
            draw: How overlays look.

        Returns:
            The pair.
        """
        name = Path(line["overlay"]).stem
        small = bounded(Image.fromarray(picture), _SHEET_CELL)  # boxes drawn at full size would be too thin to see
        usual = line["typicality_in_words"]
        notes = [said for note in line["notes"] if (said := note.partition(":")[0]) != usual]
        label = next(iter(line["cluster_labels"]), None)
        about = f"cluster {line['cluster']}{f' of {label}' if label else ''}"
        # A long label is cut at the end; what warns the reader stands before it.
        return cls(small, draw_overlay(small, heatmap, draw)[0], "\n".join([name, *notes]), f"{usual}\n{about}")


def contact_sheet(pairs: list[Pair]) -> Image.Image:
    """Lay out pairs, four a row.

    Args:
        pairs: At least one.

    Returns:
        The sheet.
    """
    rows = [pairs[start : start + _SHEET_PAIRS_A_ROW] for start in range(0, len(pairs), _SHEET_PAIRS_A_ROW)]
    pictures = [[cell for pair in row for cell in (pair.picture, pair.drawn)] for row in rows]
    captions = [[text for pair in row for text in (pair.picture_caption, pair.drawn_caption)] for row in rows]
    return grid(pictures, captions, cell_size=_SHEET_CELL)
