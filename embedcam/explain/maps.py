"""From channel weights to a heat map: weighted sum, ReLU, fusing two layers, placing, normalising.

The functions use only operators that numpy arrays and torch tensors share, so that this module needs no torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..nets.geometry import PIXELS, Geometry

PLACEMENTS = ("receptive-field", "stretch")
# Share of a fused map's cells that are levelled; chosen on training images, see docs/heat-maps.md.
LEVELLED = 0.03


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
    batch, count, height, width = maps.shape
    cells = maps.reshape(batch, count, height * width)
    if channels is not None:
        of = channels[:, :, None]
        cells = np.take_along_axis(cells, of, 1) if isinstance(cells, np.ndarray) else cells.take_along_dim(of, 1)
    summed = weights[:, None, :] @ cells
    return summed.reshape(batch, height, width).clip(min=0)


def place(maps: Any, geometry: Geometry, size: tuple[int, int], onto: Geometry = PIXELS) -> Any:
    """Interpolate maps bilinearly to image size, each cell at the place that `geometry` gives it.

    Pixels beyond the outermost centres take the value of the nearest cell: nothing is invented there, and nothing
    rings. The interpolation is separable, so it is two small matrix products.

    Args:
        maps: (B, h, w), numpy or torch.
        geometry: Where the cells sit.
        size: (H, W) of the image; with `onto`, of the other map.
        onto: Where the wanted values sit: pixels, or the cells of another map.

    Returns:
        (B, H, W) of the same library and dtype.
    """
    _, height, width = maps.shape
    stride, first, onto_stride, onto_first = (
        *(geometry.cell_stride, geometry.first_cell_center),
        *(onto.cell_stride, onto.first_cell_center),
    )
    down = (height, size[0], stride[0], first[0], onto_stride[0], onto_first[0])
    across = (width, size[1], stride[1], first[1], onto_stride[1], onto_first[1])
    if isinstance(maps, np.ndarray):
        rows, columns = (_interpolation(*axis).astype(maps.dtype) for axis in (down, across))
    else:
        rows, columns = (_interpolation_tensor(maps.dtype, maps.device, *axis) for axis in (down, across))
    return rows @ maps @ columns.T


@lru_cache(maxsize=64)
def _interpolation(
    cells: int, count: int, stride: float, first: float, onto_stride: float, onto_first: float
) -> NDArray[np.float32]:
    """Build the (count, cells) matrix that interpolates linearly between cell centres, clamped at the ends."""
    wanted = onto_first + np.arange(count) * onto_stride
    position = np.clip((wanted - first) / stride, 0, cells - 1)
    lower = np.minimum(position.astype(int), max(cells - 2, 0))
    matrix = np.zeros((count, cells), dtype=np.float32)
    matrix[np.arange(count), lower] = 1 - (position - lower)
    if cells > 1:
        matrix[np.arange(count), lower + 1] = position - lower
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=64)
def _interpolation_tensor(dtype: Any, device: Any, *axis: Any) -> Any:
    """Keep the matrix on the device: copying it there takes longer than the product."""
    import torch

    with torch.inference_mode(False):  # or it could not be used where gradients are wanted
        return torch.tensor(_interpolation(*axis), dtype=dtype, device=device)


def fuse(coarse: Any, coarse_geometry: Geometry, fine: Any, fine_geometry: Geometry) -> Any:
    """Multiply a coarse map with a finer one, on the finer one's cells.

    A late layer knows what belongs to the object but not where it ends; an earlier one knows where, but lights up
    elsewhere too. Products are peaked, so the strongest `LEVELLED` share of the cells is brought to one level.

    Args:
        coarse: (B, h, w) not negative, numpy or torch.
        coarse_geometry: Where its cells sit.
        fine: (B, h', w') not negative, of the same library.
        fine_geometry: Where its cells sit.

    Returns:
        (B, h', w') not negative.
    """
    size = (int(fine.shape[1]), int(fine.shape[2]))
    product = fine * place(coarse, coarse_geometry, size, onto=fine_geometry)
    flat = product.reshape(len(product), size[0] * size[1])
    count = max(1, round(LEVELLED * flat.shape[1]))
    # Where so few cells are lit that levelling would put them out, they stay.
    if isinstance(flat, np.ndarray):
        level = np.partition(flat, -count, axis=1)[:, -count]
        level = np.where(level > 0, level, np.inf).astype(flat.dtype)
    else:
        level = flat.topk(count, dim=1).values[:, -1]
        level = level.where(level > 0, float("inf"))
    return product.clip(max=level[:, None, None])


def normalize(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each map to [0, 1] by its minimum and maximum; a flat map becomes zero, never NaN.

    Args:
        maps: (B, H, W) finite.

    Returns:
        float32 (B, H, W) in [0, 1].
    """
    low = maps.min(axis=(1, 2), keepdims=True)
    span = maps.max(axis=(1, 2), keepdims=True) - low
    scaled: NDArray[np.float32] = maps - low
    # By infinity where the span is zero, or so small that the quotient would overflow.
    scaled /= np.where(span > np.finfo(np.float32).tiny, span, np.inf)
    return scaled.astype(np.float32, copy=False)
