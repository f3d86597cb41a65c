"""Images as matches compare them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.preprocess import Preprocess
from ..nets.geometry import Geometry


class Grid(NamedTuple):
    """Vectors at places of an image, whose directions are compared.

    Attributes:
        vectors: (h, w, C).
        geometry: Where they lie.
    """

    vectors: NDArray[Any]
    geometry: Geometry


@dataclass(frozen=True)
class Item:
    """An image as the comparison sees it.

    Attributes:
        id: Its name.
        path: Path of its file; empty if unknown.
        label: Its class, or None.
        embedding: float32 (D,).
        cells: float32 (h, w, D), its cell embeddings.
        geometry: Where the cells lie.
        preprocess: From the picture to what the network saw.
        descriptors: What corresponding places are found with; None if the index has none.
    """

    id: str
    path: str
    label: str | None
    embedding: NDArray[np.float32]
    cells: NDArray[np.float32]
    geometry: Geometry
    preprocess: Preprocess
    descriptors: Grid | None = None

    @property
    def grid(self) -> Grid:
        """The cells and their geometry."""
        return Grid(self.cells, self.geometry)

    def shares(self, cells: NDArray[Any], geometry: Geometry) -> NDArray[np.float32]:
        """Convert places.

        Args:
            cells: (..., 2) row and column, perhaps between cells.
            geometry: Of the cells.

        Returns:
            float32 (..., 2) y and x as shares of the network's input.
        """
        pixels = np.asarray(geometry.first_cell_center) + cells * np.asarray(geometry.cell_stride)
        shares: NDArray[Any] = pixels / self.preprocess.input_size
        return shares.clip(0, 1).astype(np.float32)

    def rows_of(self, shares: NDArray[Any], grid: Grid) -> NDArray[np.float32]:
        """Convert places back, up to the outermost cells; see `shares`."""
        pixels = shares * np.asarray(self.preprocess.input_size) - np.asarray(grid.geometry.first_cell_center)
        rows: NDArray[Any] = pixels / np.asarray(grid.geometry.cell_stride)
        return rows.clip(0, np.array(grid.vectors.shape[:2]) - 1).astype(np.float32)


def units(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Scale vectors (..., C) to length 1; zero stays zero.

    Args:
        vectors: Of any type.

    Returns:
        float32 of the same shape.
    """
    vectors = vectors.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return units
