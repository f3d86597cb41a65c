"""What a video frame shows: a heat map or the box of its hottest part, and a line of text; quick enough to go live."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from .boxes import Box, mask_box
from .checks import check_heatmap, check_picture
from .fonts import Letters
from .overlay import colorize
from .text import fit

_LEVELS = np.arange(256, dtype=np.float32)[None] / 255


def tint(image: NDArray[np.uint8], heatmap: ArrayLike, alpha: float = 0.5, colormap: str = "turbo") -> Image.Image:
    """Lay a heat map over a frame: what `overlay` gives, to within a level, in a tenth of the time.

    Args:
        image: uint8 (H, W, 3) RGB.
        heatmap: (h, w) in [0, 1]; resized bilinearly to the frame.
        alpha: How much of the heat map's colour is mixed in, in [0, 1].
        colormap: A name known to the cmap library.

    Returns:
        The frame with its heat map, RGB.

    Raises:
        DataError: If the frame or the heat map is not what it must be.
        EmbedcamError: If there is no such colour map.
    """
    check_picture(image)
    heat = _resized(check_heatmap(heatmap), image)
    # Pillow looks colours up in a palette and mixes without a float a pixel.
    colors = Image.fromarray((heat * 255 + 0.5).astype(np.uint8))
    colors.putpalette(colorize(_LEVELS, colormap).tobytes())
    return Image.blend(Image.fromarray(image), colors.convert("RGB"), alpha)


def hottest_box(image: NDArray[np.uint8], raw: NDArray[np.float32], above: float = 0.8) -> Box | None:
    """Put one box around all that is hotter than a share of the maximum, as Faster-Grad-CAM's box mode does.

    Args:
        image: uint8 (H, W, 3), in whose pixels the box is wanted.
        raw: (h, w) not negative, a map before normalising: its minimum stays above 0.
        above: Share of the maximum, in (0, 1).

    Returns:
        The box, whose score is 1; None for an all-zero map.

    Source:
        Faster-Grad-CAM (github.com/shinmura0/Faster-Grad-CAM), `get_x_y_limit`, with 0.8.
    """
    check_picture(image)
    heat = _resized(raw, image)
    return mask_box(heat > above * heat.max())


def caption(image: Image.Image, text: str) -> None:
    """Write a line of text into the top left corner of a frame, in place.

    Args:
        image: RGB.
        text: What to write, shortened to the frame's width; nothing if empty.
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
