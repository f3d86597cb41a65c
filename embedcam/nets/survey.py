"""Measure the layout of layers: run a model at a few input sizes and see which dimensions move."""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import LayerError
from . import layers
from .layout import Layout
from .passes import noise, observing
from .token_order import ordered, said_prefix
from .tracking import Tracker

BATCHES = (2, 3)
# Most tokens beside the cells, where a network takes one input size only and the number cannot be measured.
_MOST_EXTRA = 16
_SMALL = 64  # pixels; half of that may be a single cell

_Grids = set[tuple[int, int]]


class _Pass(NamedTuple):
    """The shapes of one forward pass."""

    batch: int
    size: tuple[int, int]
    shapes: dict[str, tuple[int, ...]]
    traced: dict[str, tuple[int, int]]  # axes of rows and columns, where every operation up to the layer is known
    grids: _Grids  # of all traced tensors


class Survey:
    """The shapes of all layers in a few forward passes; all of a convolutional network is known from the first.

    Args:
        model: A module that takes images (B, C, H, W).
        input_size: (H, W) of the images.

    Attributes:
        runs: How often each layer with a tensor as output runs in one pass, in the order in which they finish.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int]) -> None:
        self.model, self.input_size = layers.original(model), input_size
        self.runs: Counter[str] = Counter()
        self._first = self._run(BATCHES[0], input_size, self.runs)

    def layout(self, name: str) -> Layout:
        """Return the layout of a layer's output.

        Args:
            name: Dotted name of the layer.

        Returns:
            Its axes. The order of tokens is not checked, see `measure`.

        Raises:
            LayerError: If the layer did not run, runs more than once, or its output is no grid of cells.
        """
        shape = self._first.shapes.get(name)
        if shape is None:
            raise LayerError(f"layer {name!r} did not run, or its output is not a tensor; choose another")
        if self.runs[name] > 1:
            raise LayerError(
                f"layer {name!r} runs {self.runs[name]} times in a forward pass, as in test-time augmentation; choose "
                "a layer that runs once, or wrap the module inside that embeds one image"
            )
        if len(shape) not in (3, 4):
            raise self._no_grid(name, "it needs 3 or 4 axes")
        batch = self._batch_axis(name)
        others = [axis for axis in range(len(shape)) if axis != batch]
        return self._maps(name, batch, others) if len(shape) == 4 else self._tokens(name, batch, others)

    def size(self, name: str, layout: Layout) -> tuple[int, int]:
        """Return the grid (h, w) of a layer at the survey's input size.

        Args:
            name: Dotted name of the layer.
            layout: Its layout.

        Returns:
            Numbers of rows and columns.
        """
        if layout.grid is not None:
            return layout.grid
        shape = self._first.shapes[name]
        return shape[layout.cells[0]], shape[layout.cells[1]]

    def certain(self, layout: Layout) -> bool:
        """Tell whether the number of tokens is no coincidence: it changes with the image, or is that of a convolution.

        Args:
            layout: Of tokens.

        Returns:
            False if the network takes one size only and the tokens are not exactly the cells of a convolution.
        """
        return not layout.fixed or (layout.prefix == 0 and layout.grid in self._first.grids)

    @property
    def repeated(self) -> list[str]:
        """Names of the layers that run more than once, outermost first."""
        return sorted((name for name, count in self.runs.items() if count > 1), key=lambda name: name.count("."))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a layer's last output in the first pass, of `BATCHES[0]` images."""
        return self._first.shapes[name]

    def _batch_axis(self, name: str) -> int:
        shape = self._first.shapes[name]
        if name in self._first.traced and shape[0] == BATCHES[0]:
            return 0
        others = [(each.batch, each.shapes[name]) for each in self._other_batch if name in each.shapes]
        for axis, length in enumerate(shape):
            if length == BATCHES[0] and all(o[axis] == batch for batch, o in others if len(o) == len(shape)):
                return axis
        raise self._no_grid(name, "none of its axes is the batch, as in windows or augmented copies of each image")

    def _maps(self, name: str, batch: int, others: list[int]) -> Layout:
        traced = self._first.traced.get(name)
        if traced is not None:
            rows, columns = (axis % 4 for axis in traced)
            if batch in (rows, columns):
                raise self._no_grid(name, "its cells are spread over the batch")
            return Layout(batch, next(axis for axis in others if axis not in (rows, columns)), (rows, columns))
        shape = self._first.shapes[name]
        moving = [self._moves(name, axis) for axis in others]
        if any(any(both) for both in moving):
            rows_of = [axis for axis, both in zip(others, moving, strict=True) if both == (True, False)]
            columns_of = [axis for axis, both in zip(others, moving, strict=True) if both == (False, True)]
            if len(rows_of) == len(columns_of) == 1:
                cells = (rows_of[0], columns_of[0])
                return Layout(batch, next(axis for axis in others if axis not in cells), cells)
            raise self._no_grid(name, "no two of its axes move with the height and the width of the image")
        grids = self._halved
        fitting = [pair for pair in (others[:2], others[1:]) if (shape[pair[0]], shape[pair[1]]) in grids]
        if len(fitting) != 1:
            reason = "both orders of its axes are possible" if fitting else "it has the size of no grid in the network"
            raise self._no_grid(name, reason)
        cells = (fitting[0][0], fitting[0][1])
        return Layout(batch, next(axis for axis in others if axis not in cells), cells)

    def _tokens(self, name: str, batch: int, others: list[int]) -> Layout:
        shape = self._first.shapes[name]
        moving = [axis for axis in others if any(self._moves(name, axis))]
        if len(moving) > 1:
            raise self._no_grid(name, "both axes move with the size of the image")
        for axis in moving or others:
            found = self._moved_grid(name, axis) if moving else self._known_grid(shape[axis])
            channels = next(other for other in others if other != axis)
            if found is not None and shape[channels] > 1:
                grid, extra = found
                fixed = not moving
                return Layout(batch, channels, (axis,), extra, 0, grid, self.input_size, fixed)
        raise self._no_grid(name, "its number of tokens is not that of a grid in the network")

    def _moved_grid(self, name: str, axis: int) -> tuple[tuple[int, int], int] | None:
        """Find the grid of tokens, and how many more there are, from their number at three sizes."""
        seen = [self._first, *self._moved]
        counts = [each.shapes[name][axis] for each in seen]
        known = {
            counts[0] - h * w: (h, w)
            for h, w in _halves(self._first.grids)
            if all(
                any(n - y * x == counts[0] - h * w and (y == h or x == w) for y, x in _halves(each.grids))
                for n, each in zip(counts[1:], seen[1:], strict=True)
            )
        }
        extra = min((more for more in known if more >= 0), default=None)
        if extra is not None:
            return known[extra], extra
        # No convolution made the cells: their number is proportional to each side.
        rests: set[float] = set()
        for count, each in zip(counts[1:], seen[1:], strict=True):
            factor = math.prod(each.size) / math.prod(self.input_size)
            rests.add(round((count - factor * counts[0]) / (1 - factor), 6))
        rest = rests.pop() if len(rests) == 1 else -1.0
        even = _even_grid(counts[0] - int(rest), self.input_size) if rest >= 0 and rest.is_integer() else None
        return None if even is None else (even, int(rest))

    def _known_grid(self, count: int) -> tuple[tuple[int, int], int] | None:
        """Find the grid of tokens whose number is the same at all sizes, among the grids of the convolutions."""
        grids = [(count - h * w, (h, w)) for h, w in self._halved if min(h, w) > 1]
        said = said_prefix(self.model)
        grids = [each for each in grids if each[0] == said] or [each for each in grids if 0 <= each[0] <= _MOST_EXTRA]
        if grids:
            extra, grid = min(grids)
            return grid, extra
        # Without a convolution before it, the grid is one of patches cut by views.
        for extra in () if self._moved or self._first.grids - {self.input_size} else (0, 1, said or 0):
            even = _even_grid(count - extra, self.input_size)
            if even is not None:
                return even, extra
        return None

    def _moves(self, name: str, axis: int) -> tuple[bool, bool]:
        """Return whether an axis changes with the height and with the width of the image."""
        length = self._first.shapes[name][axis]
        changed = [
            name in each.shapes and len(each.shapes[name]) > axis and each.shapes[name][axis] != length
            for each in self._moved
        ]
        return (changed[0], changed[1]) if changed else (False, False)

    def _no_grid(self, name: str, reason: str) -> LayerError:
        return LayerError(
            f"layer {name!r} has output {self._first.shapes[name]} for {BATCHES[0]} images, which is no grid of cells: "
            f"{reason}; choose another layer, or describe it with wrap(..., to_maps=...)"
        )

    @cached_property
    def _moved(self) -> list[_Pass]:
        """A pass on images of another height and one of another width; none if the network takes one size only."""
        height, width = self.input_size
        taller = self._try([(side, width) for side in _others(height)])
        wider = self._try([(height, side) for side in _others(width)])
        return [taller, wider] if taller is not None and wider is not None else []

    @cached_property
    def _halved(self) -> _Grids:
        """The grids that are the same at all input sizes, and those with half as many rows and columns, and so on.

        All grids are, if the network takes one size only.
        """
        return _halves(self._first.grids.intersection(*(each.grids for each in self._moved)))

    @cached_property
    def _other_batch(self) -> list[_Pass]:
        return self._moved or [self._run(BATCHES[1], self.input_size)]

    def _try(self, sizes: list[tuple[int, int]]) -> _Pass | None:
        for size in sizes:
            try:
                seen = self._run(BATCHES[1], size)
            except Exception:  # vision transformers assert, others fail in a matrix product
                continue
            if seen.grids != self._first.grids or any(
                seen.shapes[name][1:] != shape[1:] for name, shape in self._first.shapes.items() if name in seen.shapes
            ):
                return seen
        return None

    # In inference mode, operations are not dispatched one by one.
    @torch.inference_mode(False)
    def _run(self, batch: int, size: tuple[int, int], runs: Counter[str] | None = None) -> _Pass:
        images = noise(self.model, size, batch)
        tracker = Tracker(images)
        seen = _Pass(batch, size, {}, {}, set())

        def record(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen.shapes[name] = tuple(output.shape)
            grid = tracker.of(output)
            if grid is not None:
                seen.traced[name] = grid.axes
            if runs is not None:
                runs[name] += 1

        before = [(vars(module), vars(module).copy()) for module in self.model.modules()]
        try:
            with layers.evaluating(self.model), torch.no_grad(), observing(self.model, record), tracker:
                self.model(images)
        finally:
            for attributes, values in before:  # such as a window size that a small image has changed
                attributes.update({name: each for name, each in values.items() if isinstance(each, int | tuple)})
        seen.grids.update(each for each, _ in tracker.met)
        return seen


def measure(model: nn.Module, layer: str, input_size: tuple[int, int], survey: Survey | None = None) -> Layout:
    """Measure the layout of a layer's output.

    Args:
        model: A module that takes images (B, C, H, W).
        layer: Dotted name of the layer.
        input_size: (H, W) of the images.
        survey: Of this model, if there is one.

    Returns:
        The layout; where it consists of tokens, their order was checked by gradients.

    Raises:
        LayerError: If the layer does not exist, does not run once, or its output is no grid of cells in rows.
    """
    layer = layers.path(model, layer)
    survey = survey or Survey(model, input_size)
    layout = survey.layout(layer)
    return ordered(model, layer, layout, survey.certain(layout)) if layout.is_tokens else layout


def _halves(grids: _Grids) -> _Grids:
    """Return grids, and those with half as many rows and columns, rounded down or up, and so on."""
    return {
        (rows, columns)
        for height, width in grids
        for n in range(6)
        for rows in {height >> n, -(-height >> n)}
        for columns in {width >> n, -(-width >> n)}
        if rows * columns > 1
    }


def _others(side: int) -> tuple[int, int]:
    """Return two other sides to try."""
    return (side * 2, side // 2) if side <= _SMALL else (side // 2, side * 2)


def _even_grid(count: int, input_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the grid of square patches that cover an image evenly."""
    height, width = input_size
    for patch in range(2, min(height, width) + 1):
        if height % patch == width % patch == 0 and (height // patch) * (width // patch) == count:
            return height // patch, width // patch
    return None
