"""Draw segmentations: overlays of label images, colour bars, and figures with heat maps per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from embedcam.errors import DataError, EmbedcamError
from embedcam.show.checks import check_alpha, check_picture
from embedcam.show.fonts import Letters
from embedcam.show.grid import grid
from embedcam.show.overlay import overlay
from embedcam.show.text import fit

Color = tuple[int, int, int]

_INK = "#16191d"
_MAX_NAME_WIDTH = 10  # in units of the letter height


def label_overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    colors: Sequence[Color],
    alpha: float = 0.6,
    unlabelled: int | None = None,
) -> NDArray[np.uint8]:
    """Draw a label image over a picture.

    Args:
        image: uint8 (H, W, 3) RGB.
        labels: (h, w) indices into `colors`, resized to the picture by nearest neighbour.
        colors: RGB colours in 0..255, one per class.
        alpha: Opacity of the colours, in [0, 1].
        unlabelled: Index of unlabelled pixels, which are not coloured.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: If the picture or the label image is invalid, or an index has no colour.
        EmbedcamError: If alpha is not in [0, 1].
    """
    check_picture(image)
    check_alpha(alpha)
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise DataError(
            f"a label image must hold integers (H, W), got {labels.dtype} {labels.shape}; "
            "pass the argmax over the classes of one image"
        )
    labelled = labels != unlabelled
    wrong = labels[labelled & ((labels < 0) | (labels >= len(colors)))]
    if wrong.size:
        raise DataError(
            f"the label image has index {wrong[0]}, but there are {len(colors)} colours; pass one per class"
        )
    height, width = image.shape[:2]
    # Nearest neighbour: the label pixel that contains the center of the picture's pixel.
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
    """Add a colour bar with class names to the right of a picture.

    Args:
        picture: A Pillow picture, or uint8 (H, W, 3).
        names: Class names, from top to bottom. They need 12 pixels of height per class to be readable.
        colors: RGB colours in 0..255, one per class.
        margin: Pixels above and below the bar, less than half the height of the picture.

    Returns:
        The picture with the bar, RGB.

    Raises:
        DataError: If an array is not uint8 (H, W, 3).
        EmbedcamError: If there is no class, or the numbers of classes and colours differ.
    """
    if not isinstance(picture, Image.Image):
        check_picture(picture)
        picture = Image.fromarray(picture)
    if not names or len(names) != len(colors):
        raise EmbedcamError(
            f"a colour bar needs one colour per class, got {len(names)} classes and {len(colors)} colours"
        )
    row_height = (picture.height - 2 * margin) / len(names)
    edges = [margin + round(row_height * row) for row in range(len(names) + 1)]
    size = min(18, max(8, round(0.7 * row_height)))
    letters = Letters(size)
    texts = [" ".join(fit(name, letters, _MAX_NAME_WIDTH * size)) for name in names]
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
    picture_size: int = 240,
) -> Image.Image:
    """Draw segmentations with a colour bar, and heat maps with layers as rows and classes as columns.

    Args:
        image: uint8 (H, W, 3) RGB.
        labellings: Caption -> label image (h, w), such as prediction and ground truth.
        heatmaps: Layer -> class -> heat map (h, w) in [0, 1]; the same classes for every layer.
        names: Class names.
        colors: RGB colours in 0..255, one per class.
        unlabelled: Index of unlabelled pixels, which are not coloured.
        picture_size: Longer side of a picture, in pixels, at least 32.

    Returns:
        The figure, RGB.

    Raises:
        DataError: If a picture, label image or heat map is invalid.
        EmbedcamError: If there is no heat map, or the classes of the layers differ.
    """
    classes = list(next(iter(heatmaps.values()), ()))
    for layer, maps in heatmaps.items():
        if list(maps) != classes:
            raise EmbedcamError(
                f"layer {layer!r} has heat maps of {', '.join(maps)}, expected {', '.join(classes)}; "
                "pass the same classes for every layer"
            )
    overlays = [label_overlay(image, labels, colors, unlabelled=unlabelled) for labels in labellings.values()]
    scene = grid(
        [[picture] for picture in (image, *overlays)],
        captions=[[caption] for caption in ("picture", *labellings)],
        column_titles=[""],  # aligns the first row with that of the heat maps
        picture_size=picture_size,
    )
    maps_sheet = grid(
        [[overlay(image, heatmap) for heatmap in maps.values()] for maps in heatmaps.values()],
        column_titles=classes,
        row_titles=list(heatmaps),
        picture_size=picture_size,
    )
    scene = with_color_bar(scene, names, colors, margin=picture_size // 6)
    figure = Image.new("RGB", (scene.width + maps_sheet.width, max(scene.height, maps_sheet.height)), "white")
    figure.paste(scene, (0, 0))
    figure.paste(maps_sheet, (scene.width, 0))
    return figure
