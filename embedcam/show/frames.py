"""Draw on video frames in real time: heat map, box and a line of text."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from .boxes import Box, mask_box
from .checks import check_alpha, check_heatmap, check_picture
from .fonts import Letters
from .overlay import colorize
from .text import fit

_LEVELS = np.arange(256, dtype=np.float32)[None] / 255


def tint(image: NDArray[np.uint8], heatmap: ArrayLike, alpha: float = 0.5, colormap: str = "turbo") -> Image.Image:
    """Draw a heat map over a frame, ten times as fast as `overlay` and equal up to rounding.

    Args:
        image: uint8 (H, W, 3) RGB.
        heatmap: (h, w) in [0, 1], resized bilinearly to the size of the frame.
        alpha: Opacity of the heat map, in [0, 1].
        colormap: Name of a colormap of the cmap library.

    Returns:
        The frame with the heat map, RGB.

    Raises:
        DataError: If the frame or the heat map is invalid.
        EmbedcamError: If alpha is not in [0, 1], or the colormap is unknown.
    """
    check_picture(image)
    check_alpha(alpha)
    heat = _resized(check_heatmap(heatmap), image)
    # Palette lookup and blending in Pillow avoid float arrays.
    colors = Image.fromarray((heat * 255 + 0.5).astype(np.uint8))
    colors.putpalette(colorize(_LEVELS, colormap).tobytes())
    return Image.blend(Image.fromarray(image), colors.convert("RGB"), alpha)


def hottest_box(image: NDArray[np.uint8], raw: NDArray[np.float32], above: float = 0.8) -> Box | None:
    """Find the box of all pixels above a fraction of the maximum, as the box mode of Faster-Grad-CAM does.

    Args:
        image: uint8 (H, W, 3); the box is in its pixels.
        raw: (h, w), a non-negative map before normalising.
        above: Fraction of the maximum, in (0, 1).

    Returns:
        The box, with score 1; None for an all-zero map.

    Source:
        Faster-Grad-CAM (github.com/shinmura0/Faster-Grad-CAM), `get_x_y_limit`, with 0.8.
    """
    check_picture(image)
    heat = _resized(raw, image)
    return mask_box(heat > above * heat.max())


def caption(image: Image.Image, text: str) -> None:
    """Draw a line of text in the top left corner of a frame, in place.

    Args:
        image: RGB frame.
        text: The text, shortened to the width of the frame. Nothing is drawn if it is empty.
    """
    letters = Letters(max(10, round(min(image.size) / 24)))
    pad = max(2, letters.size // 4)
    lines = fit(text, letters, image.width - 2 * pad)
    if not lines:
        return
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, round(letters.length(lines[0])) + 2 * pad - 1, letters.height + pad), fill=0)
    letters.write(draw, (pad, pad / 2), lines[0], "white")


def _resized(heat: NDArray[np.floating], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    size = (image.shape[1], image.shape[0])
    resized = Image.fromarray(heat.astype(np.float32, copy=False)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized)
