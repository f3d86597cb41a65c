"""From channel weights to a heat map: weighted sum, ReLU, placing, normalising.

The functions use only operators that numpy arrays and torch tensors share, so that this module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLACEMENTS = ("receptive-field", "stretch")


@dataclass(frozen=True)
class Geometry:
    """Where the cells of a feature map sit in the image.

    Cell (i, j) is centred at `first_cell_center + (i, j) * cell_stride` in continuous input pixels: pixel p spans
    [p, p + 1).

    Attributes:
        cell_stride: (y, x) pixels from one cell's centre to the next.
        first_cell_center: (y, x) centre of cell (0, 0).
    """

    cell_stride: tuple[float, float]
    first_cell_center: tuple[float, float]

    @classmethod
    def stretch(cls, map_size: tuple[int, int], input_size: tuple[int, int]) -> Geometry:
        """Lay the cells out evenly, as a plain bilinear resize (without aligned corners) does.

        Args:
            map_size: (h, w) of the feature map.
            input_size: (H, W) of the image.

        Returns:
            The geometry of the plain resize.
        """
        stride = (input_size[0] / map_size[0], input_size[1] / map_size[1])
        return cls(stride, (stride[0] / 2, stride[1] / 2))


def combine(maps: Any, weights: Any, channels: Any = None) -> Any:
    """Sum the feature maps with their channel weights and keep the positive part (Grad-CAM, equation 2).

    Args:
        maps: Feature maps (B, K, h, w), numpy or torch.
        weights: (B, K), or (B, T) for the channels listed in `channels`; of the same library as `maps`.
        channels: (B, T) integer indices of the channels to use, or None for all.

    Returns:
        (B, h, w) not negative.

    Source:
        Selvaraju et al. 2017, Grad-CAM (arXiv 1610.02391), equation 2.
    """
    if channels is not None:
        maps = maps[np.arange(len(maps))[:, None], channels]
    batch, count, height, width = maps.shape
    summed = weights[:, None, :] @ maps.reshape(batch, count, height * width)
    return summed.reshape(batch, height, width).clip(min=0)


def place(maps: Any, geometry: Geometry, size: tuple[int, int]) -> Any:
    """Interpolate maps bilinearly to image size, each cell at the place that `geometry` gives it.

    Pixels beyond the outermost centres take the value of the nearest cell: nothing is invented there, and nothing
    rings. The interpolation is separable, so it is two small matrix products.

    Args:
        maps: (B, h, w), numpy or torch.
        geometry: Where the cells sit.
        size: (H, W) of the image.

    Returns:
        (B, H, W) of the same library and dtype.
    """
    _, height, width = maps.shape
    rows = _interpolation(height, size[0], geometry.cell_stride[0], geometry.first_cell_center[0])
    columns = _interpolation(width, size[1], geometry.cell_stride[1], geometry.first_cell_center[1])
    if not isinstance(maps, np.ndarray):
        return maps.new_tensor(rows) @ maps @ maps.new_tensor(columns).T
    return rows.astype(maps.dtype) @ maps @ columns.T.astype(maps.dtype)


@lru_cache(maxsize=64)
def _interpolation(cells: int, pixels: int, stride: float, first: float) -> NDArray[np.float32]:
    """Build the (pixels, cells) matrix that interpolates linearly between cell centres, clamped at the ends."""
    position = np.clip((np.arange(pixels) + 0.5 - first) / stride, 0, cells - 1)
    lower = np.minimum(position.astype(int), max(cells - 2, 0))
    matrix = np.zeros((pixels, cells), dtype=np.float32)
    matrix[np.arange(pixels), lower] = 1 - (position - lower)
    if cells > 1:
        matrix[np.arange(pixels), lower + 1] = position - lower
    matrix.flags.writeable = False
    return matrix


def normalize(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each map to [0, 1] by its minimum and maximum; a flat map becomes zero, never NaN.

    Args:
        maps: (B, H, W) finite.

    Returns:
        float32 (B, H, W) in [0, 1].
    """
    low = maps.min(axis=(1, 2), keepdims=True)
    span = maps.max(axis=(1, 2), keepdims=True) - low
    # Divide by 1 where the span is zero (or so small that the quotient would overflow).
    usable = span > np.finfo(np.float32).tiny
    scaled = np.where(usable, (maps - low) / np.where(usable, span, 1), 0)
    clipped: NDArray[np.float32] = np.clip(scaled, 0, 1, dtype=np.float32)
    return clipped
