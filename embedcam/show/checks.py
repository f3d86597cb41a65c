"""Checks of the arguments of drawing functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, EmbedcamError

_ROUNDING = 1e-3  # of half-precision networks and of resizing


def check_picture(picture: NDArray[np.uint8]) -> None:
    """Check that an array is an RGB picture.

    Args:
        picture: uint8 (H, W, 3).

    Raises:
        DataError: If the type or shape differs, or a side is 0.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise DataError(
            f"a picture must be uint8 (H, W, 3), got {picture.dtype} {picture.shape}; "
            "undo the normalisation with Preprocess.restore, or convert a grey picture to RGB"
        )


def check_heatmap(heatmap: ArrayLike) -> NDArray[np.floating]:
    """Check that an array is a finite heat map in [0, 1].

    Args:
        heatmap: (H, W) in [0, 1].

    Returns:
        The heat map as a float array, with rounding errors clipped to [0, 1].

    Raises:
        DataError: If the shape or type differs, or a value is not finite or outside [0, 1].
    """
    array = np.asarray(heatmap)
    if array.ndim != 2 or array.size == 0:
        raise DataError(f"a heat map must be (H, W), got shape {array.shape}; pass one map of the batch at a time")
    if array.dtype.kind not in "fiub":
        raise DataError(f"a heat map must hold real numbers, got {array.dtype}; pass a float array")
    if array.dtype.kind != "f":
        array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError("a heat map must be finite, got NaN or infinity; see the notes of its explanation")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise DataError(f"a heat map must lie in [0, 1], got {low:.4g} to {high:.4g}; pass .heatmaps, not .raw")
    clipped: NDArray[np.floating] = np.clip(array, 0.0, 1.0)
    return clipped


def check_alpha(alpha: float) -> None:
    """Check that an opacity lies in [0, 1].

    Args:
        alpha: Opacity.

    Raises:
        EmbedcamError: If it does not.
    """
    if not 0.0 <= alpha <= 1.0:
        raise EmbedcamError(f"alpha must lie in [0, 1], got {alpha}; 0 shows only the picture, 1 only the colours")
