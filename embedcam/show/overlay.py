"""Draw heat maps in colour, alone or over a picture."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache

import numpy as np
from cmap import Catalog, Colormap
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..errors import EmbedcamError
from .checks import check_alpha, check_heatmap, check_picture

# Orange and blue, which the colour-blind tell apart.
_FOR, _AGAINST = np.array([255, 140, 0], np.float32), np.array([20, 80, 255], np.float32)


def colorize(heatmap: ArrayLike, colormap: str = "turbo") -> NDArray[np.uint8]:
    """Apply a colormap to a heat map.

    Args:
        heatmap: (H, W) in [0, 1].
        colormap: Name of a colormap of the cmap library ("turbo", "viridis", "inferno_r", ...).

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: If the heat map has another shape, is not finite, or is not in [0, 1].
        EmbedcamError: If the colormap is unknown.
    """
    levels = np.rint(check_heatmap(heatmap) * 255.0).astype(np.uint8)
    colors: NDArray[np.uint8] = _colors(colormap)[levels]
    return colors


def overlay(
    image: NDArray[np.uint8], heatmap: ArrayLike, alpha: float = 0.5, colormap: str = "turbo"
) -> NDArray[np.uint8]:
    """Draw a heat map over a picture.

    Args:
        image: uint8 (H, W, 3) RGB.
        heatmap: (h, w) in [0, 1], resized bilinearly to the size of the picture.
        alpha: Opacity of the heat map, in [0, 1].
        colormap: Name of a colormap of the cmap library.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: If the picture or the heat map is invalid.
        EmbedcamError: If alpha is not in [0, 1], or the colormap is unknown.
    """
    check_picture(image)
    heat = check_heatmap(heatmap)
    check_alpha(alpha)
    heat = _resized(heat, image)
    pixels = image.astype(np.float32)
    pixels += np.float32(alpha) * (colorize(heat, colormap) - pixels)
    return np.rint(pixels).astype(np.uint8)


def overlay_signed(image: NDArray[np.uint8], signed: ArrayLike, alpha: float = 0.7) -> NDArray[np.uint8]:
    """Draw evidence over the grey picture: orange for, blue against, and nothing where there is none.

    Args:
        image: uint8 (H, W, 3) RGB.
        signed: (h, w) in [-1, 1], resized bilinearly to the size of the picture.
        alpha: Opacity of the strongest evidence, in [0, 1].

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: If the picture or the map is invalid.
        EmbedcamError: If alpha is not in [0, 1].
    """
    check_picture(image)
    check_alpha(alpha)
    values = np.asarray(signed, dtype=np.float32)
    check_heatmap(np.abs(values))
    values = _resized(values, image)[..., None]
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None]
    drawn = grey + np.float32(alpha) * np.abs(values) * (np.where(values > 0, _FOR, _AGAINST) - grey)
    return np.rint(drawn).clip(0, 255).astype(np.uint8)


def _resized(values: NDArray[np.floating], image: NDArray[np.uint8]) -> NDArray[np.floating]:
    height, width = image.shape[:2]
    if values.shape == (height, width):
        return values
    resized = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


@cache
def _colors(name: str) -> NDArray[np.uint8]:
    try:
        table = Colormap(name).lut(256)
    except ValueError as error:
        close = get_close_matches(name, Catalog().short_keys(), n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "try 'turbo', 'viridis' or 'inferno'"
        raise EmbedcamError(f"unknown colormap {name!r}; {hint}") from error
    colors = np.rint(np.asarray(table)[:, :3] * 255.0).astype(np.uint8)
    colors.setflags(write=False)  # cached
    return colors
