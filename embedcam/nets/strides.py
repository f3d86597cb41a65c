"""Layers with strides before the feature layer, and sets of them that may be undone together."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import layers
from .network import Network

# Rows by which an input is enlarged to see how many more a layer returns, and the strides that are told by that number.
_EXTRA, _FACTORS = 48, (1, 2, 3, 4)


class Stride(NamedTuple):
    """A layer whose stride is undone; those of one level run side by side, those of the first level run first."""

    layer: str
    level: int
    factor: tuple[int, int]
    axes: tuple[int, int]  # rows and columns of its input and output


class _Step(NamedTuple):
    """What a layer did to the grid in a forward pass."""

    layer: str
    size: tuple[int, int]
    factor: tuple[int, int]
    axes: tuple[int, int]


def factors(strides: tuple[Stride, ...]) -> dict[int, tuple[int, int]]:
    """Return the factor (y, x) of each level.

    Args:
        strides: Those that are undone.

    Returns:
        Factors by level.
    """
    return {stride.level: stride.factor for stride in strides}


def density(strides: tuple[Stride, ...]) -> tuple[int, int]:
    """Return how many cells (y, x) there are for one of the plain network.

    Args:
        strides: Those that are undone.

    Returns:
        The products of the factors.
    """
    every = factors(strides).values()
    return math.prod(y for y, _ in every), math.prod(x for _, x in every)


def _steps(net: Network, images: Tensor) -> list[_Step]:
    """List the layers with a stride that run before the feature layer has run."""
    steps: list[_Step] = []
    looking = True

    def look(name: str, module: nn.Module, inputs: Any, options: Any, output: object) -> None:
        nonlocal looking
        if looking and inputs and all(isinstance(each, Tensor) and each.ndim == 4 for each in (inputs[0], output)):
            looking = False  # while layers inside this one run on the enlarged input
            step = _step(name, module, inputs, options, output)
            steps.extend([] if step is None else [step])
            looking = True
        looking = looking and name != net.layer

    with contextlib.ExitStack() as hooks, layers.uncompiled():
        for name, module in layers.original(net.body).named_modules():
            if name:
                hook = module.register_forward_hook(
                    lambda module, inputs, options, output, name=name: look(name, module, inputs, options, output),
                    with_kwargs=True,
                )
                hooks.callback(hook.remove)
        net.embed(images)
    return steps


def _step(name: str, module: nn.Module, inputs: Any, options: Any, output: Any) -> _Step | None:
    """Measure the stride of a layer that returns fewer cells than it takes, by enlarging its input."""
    image, *others = inputs
    last = image.shape[3] <= output.shape[3]  # (B, h, w, K)
    axes = (1, 2) if last else (2, 3)
    if any(output.shape[axis] > image.shape[axis] for axis in axes):
        return None
    if all(output.shape[axis] == image.shape[axis] for axis in axes):
        return None
    pads = [0, 0] * last + [0, _EXTRA, 0, _EXTRA]
    try:
        larger = module.forward(functional.pad(image, pads), *others, **options)
    except Exception:  # a layer for one size of maps
        return None
    known = {_EXTRA // factor: factor for factor in _FACTORS}
    y, x = (known.get(larger.shape[axis] - output.shape[axis]) for axis in axes)
    if y is None or x is None or y == x == 1:  # such as adaptive pooling
        return None
    return _Step(name, (output.shape[axes[0]], output.shape[axes[1]]), (y, x), axes)


def candidates(net: Network, images: Tensor, grid: torch.Size, undo: int) -> Iterator[tuple[Stride, ...]]:
    """Find sets of layers that make up the last strides.

    Args:
        net: A network in evaluation mode.
        images: (B, 3, H, W), on which it runs once.
        grid: (h, w) cells of the feature layer.
        undo: Number of strides.

    Yields:
        The innermost layers, then those that hold them.
    """
    steps = _steps(net, images)
    inner = [step for step in steps if not any(_within(other, step) for other in steps)]
    reached = [step.size for step in inner if step.size[0] >= grid[0] and step.size[1] >= grid[1]]
    sizes = sorted(set(reached))[:undo]
    if len(sizes) < undo:
        return
    chosen = {step.layer: step for step in inner if step.size in sizes}
    while True:
        levels = sorted(sizes, reverse=True)
        yield tuple(Stride(s.layer, levels.index(s.size), s.factor, s.axes) for s in chosen.values())
        outer = {step.layer: step for step in (_holder(step, steps) for step in chosen.values())}
        if outer.keys() == chosen.keys():
            return
        chosen = outer


def _within(inner: _Step, outer: _Step) -> bool:
    return inner.layer.startswith(f"{outer.layer}.")


def _holder(step: _Step, steps: list[_Step]) -> _Step:
    """Return the next layer around a strided one that has the same stride and returns maps of the same size."""
    around = [s for s in steps if _within(step, s) and (s.size, s.factor) == (step.size, step.factor)]
    return max(around, key=lambda each: len(each.layer), default=step)
