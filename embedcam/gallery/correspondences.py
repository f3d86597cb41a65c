"""Find places of two images that correspond. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError
from .items import Grid, Item, units

# A peak is the mean of the cells up to so many from the best one, weighted by the softmax of their cosines at this
# temperature; chosen on training images.
_WINDOW, _SOFTNESS = 2, 0.05
# Corresponding places are at least so many cells apart; a cell apart is allowed, whatever the rounding.
_APART = 0.99


class Correspondence(NamedTuple):
    """A place of the query and the place of the hit that goes with it.

    Attributes:
        query: (y, x) as a share of the query's input.
        hit: (y, x) as a share of the hit's input.
        strength: What the two cells add to the similarity, times the number of pairs of cells.
    """

    query: tuple[float, float]
    hit: tuple[float, float]
    strength: float


@dataclass(frozen=True)
class Pair:
    """Two images whose places are compared.

    Attributes:
        query: One image.
        hit: The other.
        common: float32 (D,), the embedding that counts as no evidence; subtracted from cell embeddings.
    """

    query: Item
    hit: Item
    common: NDArray[np.float32]

    def transfer(self, places: ArrayLike) -> NDArray[np.float32]:
        """Find the places of the hit that go with places of the query.

        Each place goes where the descriptors are most similar, between the cells around the best one; without
        descriptors, the cell embeddings are compared.

        Args:
            places: (n, 2) y and x as shares of the query's input.

        Returns:
            float32 (n, 2), shares of the hit's input.

        Raises:
            DataError: If a place is not finite.
        """
        ours, theirs = self._grids
        shares = np.asarray(places, np.float32).reshape(-1, 2)
        if not np.isfinite(shares).all():
            raise DataError("a place is not finite; give y and x from 0 to 1")
        rows = self.query.rows_of(shares, ours)
        return self.hit.shares(_peaks(_between(ours.vectors, rows), theirs.vectors), theirs.geometry)

    @cached_property
    def _grids(self) -> tuple[Grid, Grid]:
        """What is compared: of unit vectors."""
        ours, theirs = self.query.descriptors, self.hit.descriptors
        if ours is None or theirs is None:
            ours, theirs = (Grid(item.cells - self.common, item.geometry) for item in (self.query, self.hit))
        return Grid(units(ours.vectors), ours.geometry), Grid(units(theirs.vectors), theirs.geometry)

    def correspondences(self, most: int = 5) -> list[Correspondence]:
        """Find places of the query and of the hit that go together.

        A pair of places counts if their descriptors are each other's most similar ones, and if its two cells add at
        least a tenth of what those of the strongest pair add to the similarity. Of pairs that are closer together than
        a cell in either image, the strongest counts.

        Args:
            most: How many at most.

        Returns:
            The pairs, the strongest and most similar first; none if nothing adds to the similarity.
        """
        ours, theirs = self._grids
        cosines = (
            ours.vectors.reshape(-1, ours.vectors.shape[2]) @ theirs.vectors.reshape(-1, theirs.vectors.shape[2]).T
        )
        there, back = cosines.argmax(axis=1), cosines.argmax(axis=0)
        mutual = np.flatnonzero(back[there] == np.arange(len(there)))
        items, grids, cells = (self.query, self.hit), (ours, theirs), (mutual, there[mutual])
        places = [
            item.shares(np.stack(np.unravel_index(numbers, grid.vectors.shape[:2]), axis=1), grid.geometry)
            for item, grid, numbers in zip(items, grids, cells, strict=True)
        ]
        near = [item.rows_of(own, item.grid) for item, own in zip(items, places, strict=True)]
        own, other = (
            item.cells[tuple(rows.round().astype(np.int64).T)] - self.common
            for item, rows in zip(items, near, strict=True)
        )
        strengths = (own * other).sum(axis=1)
        chosen: list[int] = []
        certain = strengths * cosines[mutual, there[mutual]].clip(min=0) ** 2
        for row in np.argsort(-certain, kind="stable").tolist():
            if len(chosen) == most or certain[row] <= 0:
                break
            if strengths[row] >= strengths.max() / 10 and all(
                np.abs(rows[chosen] - rows[row]).max(axis=1).min(initial=1) > _APART for rows in near
            ):
                chosen.append(row)
        query, hit = (own[chosen].tolist() for own in places)
        return [
            Correspondence((y, x), (v, u), strength)
            for (y, x), (v, u), strength in zip(query, hit, strengths[chosen].tolist(), strict=True)
        ]


def _between(vectors: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate (h, w, C) vectors bilinearly at (n, 2) rows and columns: (n, C)."""
    sides = np.array(vectors.shape[:2])
    low = np.minimum(rows.astype(np.int64), np.maximum(sides - 2, 0))
    high, (y, x) = np.minimum(low + 1, sides - 1), (rows - low).T[:, :, None]
    top, bottom = (vectors[r, low[:, 1]] * (1 - x) + vectors[r, high[:, 1]] * x for r in (low[:, 0], high[:, 0]))
    values: NDArray[np.float32] = top * (1 - y) + bottom * y
    return values


def _peaks(vectors: NDArray[np.float32], grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """Find where (n, C) vectors are most similar to a grid (h, w, C): (n, 2) rows and columns, between cells."""
    height, width, dim = grid.shape
    scores = vectors @ grid.reshape(-1, dim).T
    best = scores.argmax(axis=1)
    cells = np.stack(np.unravel_index(np.arange(height * width), (height, width)), axis=1).astype(np.float32)
    near = np.abs(cells - cells[best][:, None]).max(axis=2) <= _WINDOW
    weights = np.exp((scores - scores.max(axis=1, keepdims=True)) / _SOFTNESS) * near
    peaks: NDArray[np.float32] = weights @ cells / weights.sum(axis=1, keepdims=True)
    return peaks
