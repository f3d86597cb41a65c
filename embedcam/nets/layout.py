"""The layout of a layer's output: which axes are images, channels and cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..errors import LayerError


class Reading(Protocol):
    """Converts the output of a layer to feature maps: a measured `Layout`, or the user's function in `GivenLayout`."""

    def maps(self, output: Tensor, input_size: tuple[int, int]) -> Tensor:
        """Convert an output, or a gradient with respect to it, to feature maps (B, K, h, w)."""
        ...


@dataclass(frozen=True)
class Layout:
    """The axes of a layer's output, as `Survey.layout` measures them.

    Attributes:
        batch: Axis of the images.
        channels: Axis of the channels.
        cells: Axes of the rows and columns of cells; one axis if the cells are tokens, row by row.
        prefix: Number of tokens before the cells, such as class and register tokens.
        suffix: Number of tokens after the cells.
        grid: (h, w) of the tokens' cells at `input_size`; None unless they are tokens.
        input_size: (H, W) at which the grid was measured.
        fixed: Whether the grid is the same at every input size; otherwise it grows in proportion.
    """

    batch: int
    channels: int
    cells: tuple[int, ...]
    prefix: int = 0
    suffix: int = 0
    grid: tuple[int, int] | None = None
    input_size: tuple[int, int] | None = None
    fixed: bool = False

    @property
    def is_tokens(self) -> bool:
        """Whether the cells are tokens along one axis."""
        return len(self.cells) == 1

    def tokens(self, output: Tensor) -> Tensor:
        """Bring tokens into the usual order of axes.

        Args:
            output: The output of a layer with tokens.

        Returns:
            (B, n, K), with the tokens before and after the cells.
        """
        return output.permute(self.batch, *self.cells, self.channels)

    def maps(self, output: Tensor, input_size: tuple[int, int]) -> Tensor:
        """Convert an output, or a gradient with respect to it, to feature maps.

        Args:
            output: The output of the layer.
            input_size: (H, W) of the images that it was computed for.

        Returns:
            (B, K, h, w).

        Raises:
            LayerError: If the output has another number of axes, or its tokens do not fill a grid.
        """
        order = (self.batch, self.channels, *self.cells)
        if output.ndim != len(order):
            raise LayerError(
                f"the layer's output has shape {tuple(output.shape)}, but {len(order)} axes when its layout was "
                "measured; choose a layer whose output always has the same axes"
            )
        if not self.is_tokens:
            return output if order == (0, 1, 2, 3) else output.permute(order)
        cells = self.tokens(output)[:, self.prefix : output.shape[self.cells[0]] - self.suffix]
        height, width = self.grid_at(input_size, cells.shape[1])
        return cells.transpose(1, 2).reshape(cells.shape[0], cells.shape[2], height, width)

    def grid_at(self, input_size: tuple[int, int], count: int) -> tuple[int, int]:
        """Find the grid of tokens at an input size.

        Args:
            input_size: (H, W) of the images.
            count: Number of cells.

        Returns:
            (h, w), with h * w = `count`.

        Raises:
            LayerError: If no grid with this number of cells has about the proportions of the images.
        """
        assert self.grid is not None
        assert self.input_size is not None
        if self.fixed or input_size == self.input_size:
            grids = [self.grid]
        else:
            sides = [cells * to / size for cells, to, size in zip(self.grid, input_size, self.input_size, strict=True)]
            rows, columns = ((math.floor(side + 1e-6), math.ceil(side - 1e-6)) for side in sides)
            grids = [(h, w) for h in rows for w in columns]
        for height, width in grids:
            if height * width == count:
                return height, width
        raise LayerError(
            f"{count} tokens do not fill a grid of {' x '.join(map(str, grids[0]))} cells on images of "
            f"{input_size[0]} x {input_size[1]} pixels; use the network's input size, or wrap(..., to_maps=...)"
        )


@dataclass(frozen=True)
class GivenLayout:
    """A layout that only the user knows.

    Attributes:
        to_maps: From the layer's output, or a gradient with respect to it, to feature maps (B, K, h, w).
    """

    to_maps: Callable[[Tensor], Tensor]

    def maps(self, output: Tensor, _input_size: tuple[int, int]) -> Tensor:
        """Convert an output to feature maps by the user's function.

        Args:
            output: The output of the layer.

        Returns:
            (B, K, h, w).

        Raises:
            LayerError: If the function returns something else.
        """
        maps = self.to_maps(output)
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise LayerError(
                f"to_maps must return feature maps (B, K, h, w), got {got} from {tuple(output.shape)}; check "
                "the order of its axes"
            )
        return maps
