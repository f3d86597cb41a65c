"""Measure where a feature-map cell sits in the image, from where its gradient comes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize
from torch import Tensor, nn

from ..errors import LayerError
from ..nets.geometry import Geometry
from . import layers

Array = NDArray[np.float64]
Line = tuple[float, float]  # (stride, first centre) along one axis

IMAGES = 8  # of noise, at most; half as many are enough to confirm a candidate, one if it is right on the line
CELLS = 6  # probed in each image
# How much more of the profiles than the best line a candidate may leave unexplained: a share of what that line leaves,
# and a share of all. Measured at 22 layers of convolutional networks and transformers: the true geometry leaves up to
# 1.06 times as much, one that is a quarter of a cell off at least 1.25 times.
WORSE, NEGLIGIBLE = 1.1, 0.005
# The same for a line of the even tiling's stride: up to 1.022 times where that is the stride, from 1.03 times on where
# it is 4 to 9 % off.
WORSE_STRIDE = 1.025
UNUSABLE = 0.4  # what the best line may leave; at those layers up to 0.3, and over 0.4 where all cells see everything
NARROWEST = 0.25  # standard deviation of a bump in pixels

T = TypeVar("T")


# Under inference mode, nothing has a gradient.
@torch.inference_mode(False)
def probe(model: nn.Module, layer: str, input_size: tuple[int, int], candidates: Sequence[Geometry] = ()) -> Geometry:
    """Measure the stride and the first cell's centre of a layer's output from gradients.

    The model is run on noise. For some cells of the middle, the squared gradient of a random mixture of the cell's
    channels, summed over colours and over rows or columns, is the cell's profile along the other axis. After
    subtracting what all cells have in common, such as global attention, the profiles are explained as bumps of one
    width with their centres on a line. What explains them about as well as the best line is preferred to it: a
    candidate, then the even tiling of the image, then a line with the stride of that tiling. Where gradients are
    missing, zero or tell no places, the first candidate is taken, or else the even tiling.

    The measurement is of weights as they are: learned kernels that look to one side move it.

    Args:
        model: Any module that takes images (1, 3, H, W).
        layer: Dotted name of the feature layer.
        input_size: (H, W) in pixels.
        candidates: Geometries to prefer, best first.

    Returns:
        The geometry in continuous input pixels; what is measured is rounded to hundredths.

    Raises:
        LayerError: If the layer does not exist, does not run, or has no spatial output.
    """
    image = layers.as_input(model, torch.zeros(1, 3, *input_size))
    size = run(model, layer, image, lambda _, maps: (int(maps.shape[2]), int(maps.shape[3])), torch.no_grad())
    geometries = (*candidates, Geometry.stretch(size, input_size))
    lines = [[(g.cell_stride[n], g.first_cell_center[n]) for g in geometries] for n in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    seen: list[tuple[Array, Array, Array, Array]] = []
    chosen = [(own[0], False) for own in lines]
    for _ in range(IMAGES):
        rows, columns = (_middle(count, generator) for count in size)
        columns = columns[torch.randperm(CELLS, generator=generator)]  # not to rise with the rows
        try:
            seen.append((rows, columns, *_profiles(model, layer, input_size, (rows, columns), generator)))
        except RuntimeError:  # a network without derivatives
            break
        y, x, along_y, along_x = (np.concatenate(part) for part in zip(*seen, strict=True))
        chosen = [_line(along_y, y, lines[0]), _line(along_x, x, lines[1])]
        if all(sure for _, sure in chosen):
            break
    (stride_y, first_y), (stride_x, first_x) = (line for line, _ in chosen)
    return Geometry((stride_y, stride_x), (first_y, first_x))


def run(
    model: nn.Module,
    layer: str,
    image: Tensor,
    look: Callable[[Tensor, Tensor], T],
    gradients: contextlib.AbstractContextManager[Any],
) -> T:
    """Run a model in evaluation mode, look at a layer's output, and leave the model as it was.

    Args:
        model: Any module that takes images.
        layer: Dotted name of the layer.
        image: (1, 3, H, W).
        look: Called with the layer's first output and its feature maps (1, K, h, w) as soon as they are there, since
            a later layer may work in place.
        gradients: Whether to build the graph: `torch.no_grad()` or `torch.enable_grad()`.

    Returns:
        What `look` returns.

    Raises:
        LayerError: If the layer does not exist, does not run, or has no spatial output.
    """
    module, channels_last = layers.resolve(model, layer), layers.channels_last(model, layer)
    size = (int(image.shape[2]), int(image.shape[3]))
    seen: list[T] = []

    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not seen:
            seen.append(look(output, layers.as_maps(output, size, channels_last=channels_last)))

    handle = module.register_forward_hook(hook)
    try:
        # Compiled code shows neither its layers nor its operations.
        with layers.uncompiled(), layers.evaluating(model), gradients:
            model(image)
    finally:
        handle.remove()
    if not seen:
        raise LayerError(f"layer {layer!r} did not run or does not put out one tensor; choose another")
    return seen[0]


def _middle(count: int, generator: torch.Generator) -> Array:
    """Choose cells of the middle half of an axis: nearer the image's border, padding eats into the profiles.

    They lie at random in equal parts of it, since even steps could fall in with the windows of an attention.
    """
    first, last = (count - 1) // 4, -(-(count - 1) * 3 // 4)
    places = (np.arange(CELLS) + torch.rand(CELLS, generator=generator).numpy()) / CELLS
    cells: Array = np.floor(first + places * (last + 1 - first))
    return cells


def _profiles(
    model: nn.Module,
    layer: str,
    input_size: tuple[int, int],
    cells: tuple[Array, Array],
    generator: torch.Generator,
) -> tuple[Array, Array]:
    """Measure the profiles (CELLS, H) and (CELLS, W) on one image; each sums to 1, or to 0 without a gradient."""
    image = layers.as_input(model, torch.randn(1, 3, *input_size, generator=generator)).requires_grad_()

    def energy(maps: Tensor, y: int, x: int) -> Tensor:
        signs = torch.randint(0, 2, (maps.shape[1],), generator=generator).to(maps.device) * 2 - 1
        mixture = (maps[0, :, y, x].float() * signs).sum()
        (gradient,) = torch.autograd.grad(mixture, image, retain_graph=True)
        return gradient[0].float().square().sum(dim=0).cpu()

    def look(_output: Tensor, maps: Tensor) -> Tensor:
        return torch.stack([energy(maps, int(y), int(x)) for y, x in zip(*cells, strict=True)])

    energies = np.nan_to_num(run(model, layer, image, look, torch.enable_grad()).numpy().astype(np.float64), posinf=0)
    energies /= np.maximum(energies.sum(axis=(1, 2), keepdims=True), np.finfo(np.float64).tiny)
    return energies.sum(axis=2), energies.sum(axis=1)


def _line(profiles: Array, index: Array, candidates: list[Line]) -> tuple[Line, bool]:
    """Choose the line on which the bumps of the profiles (n, length) of the cells `index` lie.

    The last of the candidates is the even tiling. The second answer is whether a further image would tell no more.
    """
    enough = len(index) >= IMAGES * CELLS // 2
    lively = profiles.any(axis=1)
    profiles, index = profiles[lively], index[lively]
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
    if not left <= UNUSABLE or np.median(heights) <= 0 or not inside:  # what is left may be no number
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
    """Find the best (stride, first centre, width), starting from the even tiling and from the profiles' peaks."""
    smooth = gaussian_filter1d(profiles - profiles.mean(axis=0), even / 2, axis=1)
    peaks = smooth.argmax(axis=1) + 0.5
    one, other = np.nonzero(index[:, None] < index)
    stride = np.median((peaks[other] - peaks[one]) / (index[other] - index[one]))
    first = np.median(peaks - stride * index)
    starts = [(s, f, width * even) for s, f in ((even, even / 2), (stride, first)) for width in (0.5, 2)]
    return min((_fit(profiles, index, start, [0, 1, 2]) for start in starts), key=lambda fit: fit[1])[0]


def _inner(index: Array, best: tuple[float, float, float], length: int) -> NDArray[np.bool_]:
    """Keep the cells whose bump lies inside the image, and at least three: beyond the border it is cut."""
    stride, first, width = best
    room = {int(i): min(first + stride * i, length - first - stride * i) / width for i in index}
    third = sorted(room.values())[-3:][0]
    return np.array([room[int(i)] >= min(2, third) for i in index])


def _fit(
    profiles: Array, index: Array, start: tuple[float, float, float], free: list[int]
) -> tuple[tuple[float, float, float], float]:
    """Vary some of (stride, first centre, width); give the best and the share that it leaves unexplained."""
    values = np.array(start)
    steps = np.array([start[2] / 8, start[2] / 2, start[2] / 2])[free]

    def left(varied: Array) -> float:
        values[free] = varied
        return _unexplained(profiles, index, *values)[0]

    simplex = values[free] + np.vstack([np.zeros(len(free)), np.diag(steps)])
    found = minimize(
        left, simplex[0], method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 3e-3, "fatol": 1e-5}
    )
    values[free] = found.x
    stride, first, width = values.tolist()
    return (stride, first, max(width, NARROWEST)), float(found.fun)


def _unexplained(profiles: Array, index: Array, stride: float, first: float, width: float) -> tuple[float, Array]:
    """Explain profiles as bumps plus something common to all; give the share left, and the bumps' heights."""
    pixels = np.arange(profiles.shape[1]) + 0.5
    bumps = np.exp(-0.5 * ((pixels - first - stride * index[:, None]) / max(width, NARROWEST)) ** 2)
    # Least squares of (profile - mean profile) against (bump - mean bump): the common part cancels.
    wanted = profiles - profiles.mean(axis=0)
    products = bumps @ bumps.T
    normal = np.diag(np.diag(products)) - products / len(bumps)
    right = (bumps * wanted).sum(axis=1)
    heights = np.linalg.solve(normal + 1e-9 * (np.trace(normal) + 1e-9) * np.eye(len(bumps)), right)
    total = (wanted**2).sum()
    return float(1 - heights @ right / total), heights
