"""Label images: over their picture, with a colour bar of class names, and beside the heat maps of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import DataError, EmbedcamError
from .checks import check_picture
from .fonts import Letters
from .grid import grid
from .overlay import overlay
from .text import fit

Color = tuple[int, int, int]

_INK = "#16191d"
_LONGEST_NAME = 10  # times the height of its letters


def label_overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    colors: Sequence[Color],
    alpha: float = 0.6,
    unlabelled: int | None = None,
) -> NDArray[np.uint8]:
    """Lay the classes' colours over a picture.

    Args:
        image: uint8 (H, W, 3) RGB.
        labels: (h, w) indices into `colors`; brought to the picture's size by nearest neighbour.
        colors: RGB in 0..255, one a class.
        alpha: How much of a class's colour is mixed in: 0 leaves the picture, 1 hides it.
        unlabelled: An index whose pixels show the picture as it is; it needs no colour.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: If the picture or the label image is not what it must be, or an index has no colour.
        EmbedcamError: If alpha leaves [0, 1].
    """
    check_picture(image)
    if not 0.0 <= alpha <= 1.0:
        raise EmbedcamError(f"alpha must lie in [0, 1], got {alpha}; 0.6 shows picture and classes alike")
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise DataError(
            f"a label image must hold integers (H, W), got {labels.dtype} {labels.shape}; "
            "take the argmax over the classes of one image"
        )
    labelled = labels != unlabelled
    wrong = labels[labelled & ((labels < 0) | (labels >= len(colors)))]
    if wrong.size:
        raise DataError(
            f"the label image holds index {wrong[0]}, but there are {len(colors)} colours; give one a class"
        )
    height, width = image.shape[:2]
    # Nearest neighbour: the label pixel in which the picture pixel's centre lies.
    rows = (2 * np.arange(height) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[1] // (2 * width)
    labels, labelled = labels[np.ix_(rows, columns)], labelled[np.ix_(rows, columns)]
    mixed = image.copy()
    classes = np.asarray(colors, dtype=np.float64)[labels[labelled]]
    mixed[labelled] = np.rint((1.0 - alpha) * image[labelled] + alpha * classes)
    return mixed


def with_color_bar(
    picture: Image.Image | NDArray[np.uint8],
    names: Sequence[str],
    colors: Sequence[Color],
    margin: int = 0,
) -> Image.Image:
    """Put a colour bar of class names to the right of a picture, as high as the picture.

    Args:
        picture: A Pillow picture, or uint8 (H, W, 3).
        names: The classes, from top to bottom; they are readable from 12 pixels of height a class on.
        colors: RGB in 0..255, one a class.
        margin: Pixels left free above and below the bar, less than half the picture's height.

    Returns:
        The picture with the bar, RGB.

    Raises:
        DataError: If an array is not uint8 (H, W, 3).
        EmbedcamError: If there is no class, or not one colour a class.
    """
    if not isinstance(picture, Image.Image):
        check_picture(picture)
        picture = Image.fromarray(picture)
    if not names or len(names) != len(colors):
        raise EmbedcamError(
            f"a colour bar needs one colour a class, got {len(names)} classes and {len(colors)} colours"
        )
    row_height = (picture.height - 2 * margin) / len(names)
    edges = [margin + round(row_height * row) for row in range(len(names) + 1)]
    size = min(18, max(8, round(0.7 * row_height)))
    letters = Letters(size)
    texts = [" ".join(fit(name, letters, _LONGEST_NAME * size)) for name in names]
    gap, bar_width = max(4, size // 2), max(12, round(1.5 * size))
    text_width = max(round(letters.length(text)) for text in texts)
    left = picture.width + gap
    sheet = Image.new("RGB", (left + bar_width + gap + text_width + gap, picture.height), "white")
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for text, color, top, bottom in zip(texts, colors, edges, edges[1:], strict=False):
        if bottom > top:
            draw.rectangle((left, top, left + bar_width - 1, bottom - 1), fill=color)
        center = (left + bar_width + gap, (top + bottom) // 2)
        letters.write(draw, center, text, _INK, anchor="lm")
    return sheet


def layers_figure(
    image: NDArray[np.uint8],
    labellings: Mapping[str, NDArray[np.integer]],
    heatmaps: Mapping[str, Mapping[str, NDArray[np.floating]]],
    names: Sequence[str],
    colors: Sequence[Color],
    unlabelled: int | None = None,
    cell_size: int = 240,
) -> Image.Image:
    """Draw a segmentation with its colour bar, and its heat maps with layers as rows and classes as columns.

    Args:
        image: uint8 (H, W, 3) RGB.
        labellings: Caption -> label image (h, w), such as the prediction and the labels made by hand.
        heatmaps: Layer -> class -> heat map (h, w) in [0, 1]; every layer with the same classes.
        names: The classes in the order of their indices.
        colors: RGB in 0..255, one a class.
        unlabelled: An index whose pixels show the picture as it is.
        cell_size: The longest side of a picture, in pixels, at least 32.

    Returns:
        The figure, RGB.

    Raises:
        DataError: If a picture, label image or heat map is not what it must be.
        EmbedcamError: If there is no heat map, or the layers differ in their classes.
    """
    classes = list(next(iter(heatmaps.values()), ()))
    for layer, maps in heatmaps.items():
        if list(maps) != classes:
            raise EmbedcamError(
                f"layer {layer!r} has heat maps of {', '.join(maps)}, expected {', '.join(classes)}; "
                "give every layer the same classes"
            )
    overlays = [label_overlay(image, labels, colors, unlabelled=unlabelled) for labels in labellings.values()]
    scene = grid(
        [[picture] for picture in (image, *overlays)],
        captions=[[caption] for caption in ("picture", *labellings)],
        column_titles=[""],  # keeps the first pictures of both parts at one height
        cell_size=cell_size,
    )
    maps_sheet = grid(
        [[overlay(image, heatmap) for heatmap in maps.values()] for maps in heatmaps.values()],
        column_titles=classes,
        row_titles=list(heatmaps),
        cell_size=cell_size,
    )
    scene = with_color_bar(scene, names, colors, margin=cell_size // 6)
    figure = Image.new("RGB", (scene.width + maps_sheet.width, max(scene.height, maps_sheet.height)), "white")
    figure.paste(scene, (0, 0))
    figure.paste(maps_sheet, (scene.width, 0))
    return figure
