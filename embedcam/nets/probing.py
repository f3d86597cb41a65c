"""Measure the positions of feature-map cells in the image from their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize
from torch import Tensor, nn

from . import layers
from .geometry import Geometry
from .grad_mode import GradientsKept
from .layout import Reading
from .passes import in_channels, noise, run

Array = NDArray[np.float64]
Line = tuple[float, float]  # (stride, first centre) along one axis

IMAGES = 8  # of noise, at most; half are enough to confirm a candidate, one if it lies exactly on the line
CELLS = 6  # probed in each image
# Tolerance of a candidate's unexplained share: relative to that of the best line, and absolute. At 22 layers of
# convolutional networks and transformers, the true geometry leaves up to 1.06 times as much unexplained as the best
# line, one that is off by a quarter of a cell at least 1.25 times.
WORSE, NEGLIGIBLE = 1.1, 0.005
# The same for a line with the stride of the even tiling: up to 1.022 times if that is the stride, at least 1.03 times
# if it is off by 4 to 9 %.
WORSE_STRIDE = 1.025
UNUSABLE = 0.4  # unexplained share of the best line: up to 0.3 at those layers, above 0.4 if all cells see everything
NARROWEST = 0.25  # standard deviation of a bump in pixels


# In inference mode, there are no gradients.
@torch.inference_mode(False)
def probe(
    model: nn.Module, layer: str, input_size: tuple[int, int], reading: Reading, candidates: Sequence[Geometry] = ()
) -> Geometry:
    """Measure the stride and the first cell's centre of a layer's output from gradients.

    The model runs on noise. For some central cells, the squared gradient of a random mixture of the cell's channels,
    summed over colors and over rows or columns, is the cell's profile along the other axis. The mean profile, such as
    that of global attention, is subtracted; the rest is fitted by bumps of equal width with their centres on a line.
    Instead of the best line, a simpler geometry is returned if it fits about as well: a candidate, the even tiling of
    the image, or a line with the stride of that tiling, in this order. If gradients are missing, zero or not
    localised, the first candidate is returned, or the even tiling if there is none.

    The result depends on the weights: asymmetric kernels shift it.

    Args:
        model: A module that takes images (1, C, H, W).
        layer: Dotted name of the feature layer.
        input_size: (H, W) in pixels.
        reading: Converts the layer's output to feature maps.
        candidates: Geometries to prefer, best first.

    Returns:
        The geometry in continuous input pixels; measured values are rounded to hundredths.

    Raises:
        LayerError: If the layer does not exist, does not run, or has no spatial output.
    """
    with torch.no_grad():
        maps = run(model, layer, noise(model, input_size), lambda output: reading.maps(output, input_size))
    size = (int(maps.shape[2]), int(maps.shape[3]))
    geometries = (*candidates, Geometry.stretch(size, input_size))
    lines = [[(g.cell_stride[n], g.first_cell_center[n]) for g in geometries] for n in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    seen: list[tuple[Array, Array, Array, Array]] = []
    chosen = [(own[0], False) for own in lines]
    for _ in range(IMAGES):
        rows, columns = (_middle(count, generator) for count in size)
        columns = columns[torch.randperm(CELLS, generator=generator)]  # not to rise with the rows
        try:
            seen.append((rows, columns, *_profiles(model, layer, input_size, reading, (rows, columns), generator)))
        except RuntimeError:  # a network without derivatives
            break
        y, x, along_y, along_x = (np.concatenate(part) for part in zip(*seen, strict=True))
        chosen = [_line(along_y, y, lines[0]), _line(along_x, x, lines[1])]
        if all(sure for _, sure in chosen):
            break
    (stride_y, first_y), (stride_x, first_x) = (line for line, _ in chosen)
    return Geometry((stride_y, stride_x), (first_y, first_x))


def _middle(count: int, generator: torch.Generator) -> Array:
    """Draw cells from the middle half of an axis, since padding changes the profiles near the border.

    One is drawn from each of equal parts: even steps could coincide with the windows of an attention.
    """
    first, last = (count - 1) // 4, -(-(count - 1) * 3 // 4)
    fractions = (np.arange(CELLS) + torch.rand(CELLS, generator=generator).numpy()) / CELLS
    cells: Array = np.floor(first + fractions * (last + 1 - first))
    return cells


def _profiles(
    model: nn.Module,
    layer: str,
    input_size: tuple[int, int],
    reading: Reading,
    cells: tuple[Array, Array],
    generator: torch.Generator,
) -> tuple[Array, Array]:
    """Measure the profiles (CELLS, H) and (CELLS, W) on one image; each sums to 1, or to 0 without a gradient."""
    image = torch.randn(1, in_channels(model, input_size), *input_size, generator=generator)
    image = layers.as_input(model, image).requires_grad_()

    def energy(maps: Tensor, y: int, x: int) -> Tensor:
        signs = torch.randint(0, 2, (maps.shape[1],), generator=generator).to(maps.device) * 2 - 1
        mixture = (maps[0, :, y, x].float() * signs).sum()
        (gradient,) = torch.autograd.grad(mixture, image, retain_graph=True)
        return gradient[0].float().square().sum(dim=0).cpu()

    def look(output: Tensor) -> Tensor:
        maps = reading.maps(output, input_size)
        return torch.stack([energy(maps, int(y), int(x)) for y, x in zip(*cells, strict=True)])

    with GradientsKept(), torch.enable_grad():
        energies = np.nan_to_num(run(model, layer, image, look).numpy().astype(np.float64), posinf=0)
    energies /= np.maximum(energies.sum(axis=(1, 2), keepdims=True), np.finfo(np.float64).tiny)
    return energies.sum(axis=2), energies.sum(axis=1)


def _line(profiles: Array, index: Array, candidates: list[Line]) -> tuple[Line, bool]:
    """Fit the line on which the bumps of the profiles (n, length) of the cells `index` lie.

    The last candidate is the even tiling. Also returned is whether further images are unnecessary.
    """
    enough = len(index) >= IMAGES * CELLS // 2
    has_gradient = profiles.any(axis=1)
    profiles, index = profiles[has_gradient], index[has_gradient]
    profiles = profiles / profiles.sum(axis=1, keepdims=True)
    if len(set(index.tolist())) < 2 or np.ptp(profiles, axis=0).max() < 1e-6 * profiles.max():
        return candidates[0], True
    best = _best(profiles, index, candidates[-1][0])
    keep = _inner(index, best, profiles.shape[1])
    profiles, index = profiles[keep], index[keep]
    (stride, first, width), left = _fit(profiles, index, best, [0, 1, 2])
    heights = _unexplained(profiles, index, stride, first, width)[1]
    centers = first + stride * index
    inside = stride > 0 and centers.min() >= 0 and centers.max() <= profiles.shape[1]
    if not left <= UNUSABLE or np.median(heights) <= 0 or not inside:  # `left` may be NaN
        return candidates[0], enough
    for line in candidates:
        if _fit(profiles, index, (*line, width), [2])[1] <= WORSE * left + NEGLIGIBLE:
            off = np.abs(line[1] + line[0] * index - centers).max()
            return line, enough or bool(off <= line[0] / 16)
    middle, even = index.mean(), candidates[-1][0]
    (_, even_first, _), even_left = _fit(profiles, index, (even, first + (stride - even) * middle, width), [1, 2])
    if even_left <= WORSE_STRIDE * left:
        stride, first = even, even_first
    return (round(stride, 2), round(first, 2)), False


def _best(profiles: Array, index: Array, even: float) -> tuple[float, float, float]:
    """Fit (stride, first centre, width), starting from the even tiling and from the peaks of the profiles."""
    smooth = gaussian_filter1d(profiles - profiles.mean(axis=0), even / 2, axis=1)
    peaks = smooth.argmax(axis=1) + 0.5
    one, other = np.nonzero(index[:, None] < index)
    stride = np.median((peaks[other] - peaks[one]) / (index[other] - index[one]))
    first = np.median(peaks - stride * index)
    starts = [(s, f, width * even) for s, f in ((even, even / 2), (stride, first)) for width in (0.5, 2)]
    return min((_fit(profiles, index, start, [0, 1, 2]) for start in starts), key=lambda fit: fit[1])[0]


def _inner(index: Array, best: tuple[float, float, float], length: int) -> NDArray[np.bool_]:
    """Select the cells whose bump is not cut off by the border of the image, and at least three."""
    stride, first, width = best
    room = {int(i): min(first + stride * i, length - first - stride * i) / width for i in index}
    third = sorted(room.values())[-3:][0]
    return np.array([room[int(i)] >= min(2, third) for i in index])


def _fit(
    profiles: Array, index: Array, start: tuple[float, float, float], free: list[int]
) -> tuple[tuple[float, float, float], float]:
    """Optimise some of (stride, first centre, width); return the optimum and its unexplained share."""
    values = np.array(start)
    steps = np.array([start[2] / 8, start[2] / 2, start[2] / 2])[free]

    def left(varied: Array) -> float:
        values[free] = varied
        return _unexplained(profiles, index, *values)[0]

    simplex = values[free] + np.vstack([np.zeros(len(free)), np.diag(steps)])
    optimum = minimize(
        left, simplex[0], method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 3e-3, "fatol": 1e-5}
    )
    values[free] = optimum.x
    stride, first, width = values.tolist()
    return (stride, first, max(width, NARROWEST)), float(optimum.fun)


def _unexplained(profiles: Array, index: Array, stride: float, first: float, width: float) -> tuple[float, Array]:
    """Fit profiles by bumps plus a common profile; return the unexplained share and the heights of the bumps."""
    pixels = np.arange(profiles.shape[1]) + 0.5
    bumps = np.exp(-0.5 * ((pixels - first - stride * index[:, None]) / max(width, NARROWEST)) ** 2)
    # Least squares of (profile - mean profile) against (bump - mean bump): the common profile cancels.
    residuals = profiles - profiles.mean(axis=0)
    products = bumps @ bumps.T
    normal = np.diag(np.diag(products)) - products / len(bumps)
    right = (bumps * residuals).sum(axis=1)
    heights = np.linalg.solve(normal + 1e-9 * (np.trace(normal) + 1e-9) * np.eye(len(bumps)), right)
    total = (residuals**2).sum()
    return float(1 - heights @ right / total), heights
