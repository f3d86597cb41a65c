"""From channel weights to a heat map: weighted sum, placing, fusing two layers, normalising.

The functions use operators that numpy arrays and torch tensors share, so that this module needs no torch.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..nets.geometry import PIXELS, Geometry

PLACEMENTS = ("receptive-field", "stretch")
# Of a fused map's cells, this many thousandths are clipped to one level; chosen on training images, see
# docs/heat-maps.md.
CLIPPED = 15
# Rounds of `spread` to the finer layer, chosen likewise.
ROUNDS = 4
# Relative to the largest of several values: differences up to this are rounding in float32.
ROUNDING = 1e-6
TINY = float(np.finfo(np.float32).tiny)


def combine(maps: Any, weights: Any) -> Any:
    """Sum the feature maps with their channel weights and keep the positive part.

    Args:
        maps: Feature maps (B, K, h, w), numpy or torch.
        weights: (B, K), of the same library as `maps`.

    Returns:
        (B, h, w), not negative.

    Source:
        Selvaraju et al. 2017, Grad-CAM (arXiv 1610.02391), equation 2.
    """
    batch, count, height, width = maps.shape
    summed = weights[:, None, :] @ maps.reshape(batch, count, height * width)
    return summed.reshape(batch, height, width).clip(min=0)


def place(maps: Any, geometry: Geometry, size: tuple[int, int], onto: Geometry = PIXELS) -> Any:
    """Interpolate maps bilinearly to image size, with each cell at the position that `geometry` gives it.

    Pixels beyond the outermost cell centres take the value of the nearest cell. The interpolation is separable: two
    small matrix products.

    Args:
        maps: (B, h, w), numpy or torch.
        geometry: Positions of the cells.
        size: (H, W) of the image; with `onto`, of the other map.
        onto: Positions of the values to interpolate: pixels, or the cells of another map.

    Returns:
        (B, H, W), of the same library and dtype.
    """
    rows, columns = interpolation(maps, geometry, size, onto)
    return rows @ maps @ columns


def interpolation(maps: Any, geometry: Geometry, size: tuple[int, int], onto: Geometry = PIXELS) -> tuple[Any, Any]:
    """Make the two matrices of `place`.

    Args:
        maps: (B, h, w), numpy or torch; only its shape, dtype and device count.
        geometry: Positions of the cells.
        size: (H, W) of the image, or of the other map.
        onto: Positions of the values to interpolate.

    Returns:
        (H, h) to multiply from the left and (w, W) from the right.
    """
    positions = (geometry.cell_stride, geometry.first_cell_center, onto.cell_stride, onto.first_cell_center)
    axes = [(maps.shape[1 + axis], size[axis], *(pair[axis] for pair in positions)) for axis in (0, 1)]
    if isinstance(maps, np.ndarray):
        rows, columns = (_constant(*axis).astype(maps.dtype) for axis in axes)
    elif all(isinstance(number, int | float) for axis in axes for number in axis):
        rows, columns = (_constant_tensor(maps.dtype, maps.device, *axis) for axis in axes)
    else:  # the sizes are symbols of a graph that is being exported
        import torch

        arange = partial(torch.arange, dtype=torch.float64, device=maps.device)
        rows, columns = (_hat(arange, *axis).to(maps.dtype) for axis in axes)
    return rows, columns.T


def _hat(
    arange: Any, cells: Any, count: Any, stride: float, first: float, onto_stride: float, onto_first: float
) -> Any:
    """Make the (count, cells) matrix of linear interpolation between cell centres, clamped at the ends."""
    position = ((onto_first + arange(count) * onto_stride - first) / stride).clip(min=0).clip(max=cells - 1)
    return (1 - abs(position[:, None] - arange(cells))).clip(min=0)


@lru_cache(maxsize=64)
def _constant(*axis: Any) -> NDArray[np.float64]:
    matrix: NDArray[np.float64] = _hat(np.arange, *axis)
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=64)
def _constant_tensor(dtype: Any, device: Any, *axis: Any) -> Any:
    """Keep the matrix on the device: copying it there takes longer than the product."""
    import torch

    with torch.inference_mode(False):  # or it could not be used where gradients are computed
        return torch.tensor(_constant(*axis), dtype=dtype, device=device)


def fuse(coarse: Any, fine: Any) -> Any:
    """Multiply two maps of the same cells, and clip the strongest 1.5 % of the product to one level.

    A late layer tells which object, an earlier one where it ends. Products are peaked, hence the clipping; the number
    of cells is rounded up. Where fewer cells are positive, nothing is clipped.

    Args:
        coarse: (B, h, w) tensor, not negative: the map of the later layer, placed onto the finer cells.
        fine: (B, h, w) tensor, not negative.

    Returns:
        (B, h, w), not negative.
    """
    product = fine * coarse
    cells = product.shape[1] * product.shape[2]
    count = (CLIPPED * cells + 999) // 1000
    level = product.flatten(1).topk(count, dim=1).values.amin(dim=1)[:, None, None]
    return product.minimum(level.where(level > 0, math.inf))


def spread(heat: Any, features: Any, rounds: int) -> Any:
    """Spread heat to the cells whose features go together with it.

    The covariance w of the features with the heat is the direction in which hot cells differ from the others;
    cells are mapped by the positive part of their features along w. Each further round starts from the product of both
    maps. Very many rounds without the product would give the first principal component, which ignores the heat.

    Args:
        heat: (B, h, w) tensor, not negative; that of a later layer is placed onto the cells of this one before.
        features: (B, K, h, w) tensor, the layer's maps.
        rounds: How many, at least 1.

    Returns:
        (B, h, w) in [0, 1].
    """
    flat = features.flatten(2)
    mean = flat.mean(dim=2, keepdim=True)
    centred = flat - mean
    hot = heat.flatten(1)[:, None]
    low, high = hot.amin(dim=2, keepdim=True), hot.amax(dim=2, keepdim=True)
    spread = hot - hot.mean(dim=2, keepdim=True)  # later, centring the features is enough
    for number in range(rounds):
        along = spread @ centred.transpose(1, 2)
        fine = (along @ centred).clip(min=0)
        top = fine.amax(dim=2, keepdim=True)
        if number < rounds - 1:
            spread = hot * (fine / top.clip(min=TINY))
    # Features or heat that differ among the cells by no more than rounding give a map of zeros.
    least = (along.abs() @ mean.abs() * (2 * ROUNDING)).clip(min=TINY)
    known = (top > least) & (low < (1 - 2 * ROUNDING) * high)
    return (fine / top.where(known, math.inf)).reshape(heat.shape)


def normalize(maps: Any) -> Any:
    """Scale each map to [0, 1] by its minimum and maximum; a flat map becomes zero, never NaN.

    Args:
        maps: (B, H, W) finite, numpy or torch.

    Returns:
        (B, H, W) in [0, 1], of the same library and dtype.
    """
    # A span so small that the quotient would overflow counts as none.
    if isinstance(maps, np.ndarray):
        low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
        span = np.where(high - low > TINY, high - low, math.inf)
    else:
        low, high = maps.amin((1, 2), True), maps.amax((1, 2), True)
        span = high - low
        span = span.where(span > TINY, math.inf)
    return (maps - low) / span
