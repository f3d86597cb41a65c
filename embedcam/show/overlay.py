"""A heat map in colour, alone and over its picture."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache

import numpy as np
from cmap import Catalog, Colormap
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..errors import EmbedcamError
from .checks import check_heatmap, check_picture


def colorize(heatmap: ArrayLike, colormap: str = "turbo") -> NDArray[np.uint8]:
    """Turn a heat map into colours.

    Args:
        heatmap: (H, W) in [0, 1].
        colormap: A name known to the cmap library ("turbo", "viridis", "inferno_r", ...).

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: If the heat map has another shape, is not finite, or leaves [0, 1].
        EmbedcamError: If there is no such colour map.
    """
    levels = np.rint(check_heatmap(heatmap) * 255.0).astype(np.uint8)
    colors: NDArray[np.uint8] = _colors(colormap)[levels]
    return colors


def overlay(
    image: NDArray[np.uint8], heatmap: ArrayLike, alpha: float = 0.5, colormap: str = "turbo"
) -> NDArray[np.uint8]:
    """Lay a heat map over its picture.

    Args:
        image: uint8 (H, W, 3) RGB.
        heatmap: (h, w) in [0, 1]; resized bilinearly to the picture when the sizes differ.
        alpha: How much of the heat map's colour is mixed in, the same everywhere: 0 leaves the picture,
            1 hides it.
        colormap: A name known to the cmap library.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: If the picture or the heat map is not what it must be.
        EmbedcamError: If alpha leaves [0, 1] or there is no such colour map.
    """
    check_picture(image)
    heat = check_heatmap(heatmap)
    if not 0.0 <= alpha <= 1.0:
        raise EmbedcamError(f"alpha must lie in [0, 1], got {alpha}; 0.5 shows picture and heat map alike")
    height, width = image.shape[:2]
    if heat.shape != (height, width):
        resized = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        heat = np.asarray(resized)
    pixels = image.astype(np.float32)
    pixels += np.float32(alpha) * (colorize(heat, colormap) - pixels)
    return np.rint(pixels).astype(np.uint8)


@cache
def _colors(name: str) -> NDArray[np.uint8]:
    """The 256 RGB colours of a colour map, (256, 3)."""
    try:
        table = Colormap(name).lut(256)
    except ValueError as error:
        close = get_close_matches(name, Catalog().short_keys(), n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "try 'turbo', 'viridis' or 'inferno'"
        raise EmbedcamError(f"there is no colour map {name!r}; {hint}") from error
    colors = np.rint(np.asarray(table)[:, :3] * 255.0).astype(np.uint8)
    colors.setflags(write=False)  # cached: nobody may change it
    return colors
