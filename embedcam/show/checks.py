"""What every drawing function demands of its arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

# Half-precision networks and resizing leave the range by rounding only; anything beyond this is a mistake.
_ROUNDING = 1e-3


def check_picture(picture: NDArray[np.uint8]) -> None:
    """Refuse what is not an RGB picture.

    Args:
        picture: uint8 (H, W, 3).

    Raises:
        DataError: If the type or the shape differ, or a side is 0.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise DataError(
            f"a picture must be uint8 (H, W, 3), got {picture.dtype} {picture.shape}; "
            "undo the normalisation with Preprocess.restore, or convert a grey picture to RGB"
        )


def check_heatmap(heatmap: ArrayLike) -> NDArray[np.floating]:
    """Refuse what is not one finite heat map in [0, 1].

    Args:
        heatmap: (H, W) in [0, 1].

    Returns:
        The heat map as a float array; what rounding left outside [0, 1] is clipped.

    Raises:
        DataError: If it has another number of dimensions, no pixel, NaN or infinity, or leaves the range.
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
