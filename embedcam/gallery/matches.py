"""Explained matches: why a query and a hit are similar, from the cell embeddings of both. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.preprocess import Preprocess
from ..explain.explanation import Explanation
from ..explain.maps import place
from ..nets.geometry import Geometry
from .searching import Hit


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


# A peak is the mean of the cells up to so many from the best one, weighted by the softmax of their cosines at this
# temperature; chosen on training images.
_WINDOW, _SOFTNESS = 2, 0.05
# Corresponding places are at least so many cells apart; a cell apart is allowed, whatever the rounding.
_APART = 0.99
# Of the softmax over whom a cell may belong to; and rivals that are at least so similar to the match are none.
_TEMPERATURE, _SIMILAR = 0.07, 0.5
# Rivals count as if there were so many, as of clusters of the published method.
_CLUSTERS = 50


@dataclass(frozen=True)
class Match:
    """A query and a hit, whose similarity is decomposed over the cells of either.

    The similarity (z - m) . (z' - m) is the sum over the query's n cells of (e_i - m) . (z' - m) / n and a rest, and
    likewise over the hit's. The embedding m is zero for cosine networks. The rest has what no cell adds and, for images
    of an index, what rounding the cells lost.

    Attributes:
        query: As compared.
        hit: As compared.
        similarity: Cosine, or the product of the two differences from the gallery's mean embedding.
        distance: 1 - cosine, or Euclidean.
        common: float32 (D,), the embedding m.
        rivals: float32 (R, D), embeddings of other images of the gallery.
        score: Of the search engine that found the hit; None if the index was searched.
    """

    query: Item
    hit: Item
    similarity: float
    distance: float
    common: NDArray[np.float32]
    rivals: NDArray[np.float32]
    score: float | None = None

    def contributions(self, side: str = "query") -> NDArray[np.float32]:
        """Decompose the similarity over the cells of one side.

        Args:
            side: "query" or "hit".

        Returns:
            float32 (h, w), signed.
        """
        ours, other = (self.query, self.hit) if side == "query" else (self.hit, self.query)
        values: NDArray[np.float32] = (ours.cells - self.common) @ (other.embedding - self.common)
        return values / np.float32(values.size)

    def rest(self, side: str = "query") -> float:
        """Return what no cell of one side contributes.

        Args:
            side: "query" or "hit".

        Returns:
            The similarity less the sum of the contributions.
        """
        return self.similarity - float(self.contributions(side).sum(dtype=np.float64))

    def evidence(self, side: str = "query") -> NDArray[np.float32]:
        """Select what speaks for this match rather than for any other.

        Each positive contribution is multiplied by the square of the share that the other image has in the cell,
        relative to the largest share in the picture. With the mean c of the rivals r and s(x) = cos(e_i - c, x - c),
        the share is

            exp(s(z') / T) / (exp(s(z') / T) + 50 * mean over r of exp(s(r) / T)),

        where rivals with cos(r - c, z' - c) of .5 or more count as 0: they often show the same.

        Args:
            side: "query" or "hit".

        Returns:
            float32 (h, w), not negative, at most the contributions.
        """
        contributions = self.contributions(side).clip(min=0)
        if not len(self.rivals):
            return contributions
        item, other = (self.query, self.hit) if side == "query" else (self.hit, self.query)
        centre = self.rivals.mean(axis=0)
        cells, asked, rivals = (_units(each - centre) for each in (item.cells, other.embedding, self.rivals))
        own = np.exp(cells @ asked / _TEMPERATURE)
        others = np.exp(cells @ rivals.T / _TEMPERATURE) @ (rivals @ asked < _SIMILAR).astype(np.float32)
        share: NDArray[np.float32] = own / (own + others * np.float32(_CLUSTERS / len(rivals)))
        evidence: NDArray[np.float32] = contributions * (share / share.max()) ** 2
        return evidence

    @cached_property
    def shared(self) -> tuple[Explanation, Explanation]:
        """Heat maps of the query and of the hit, on one scale: what speaks for the match, see `evidence`."""
        return self._explained(self.evidence, 1)

    @cached_property
    def differs(self) -> tuple[Explanation, Explanation]:
        """Heat maps of what speaks against it: the negative contributions, relative to the largest of either sign."""
        return self._explained(self.contributions, -1)

    def _explained(self, of: Callable[[str], NDArray[np.float32]], sign: int) -> tuple[Explanation, Explanation]:
        sides = {"query": self.query, "hit": self.hit}
        placed = [
            place(of(side)[None] * item.cells[..., 0].size, item.geometry, item.preprocess.input_size)
            for side, item in sides.items()
        ]
        scale = max(float(np.abs(maps).max()) for maps in placed) or 1.0
        first, second = (
            Explanation((sign * maps).clip(min=0) / scale, (sign * maps).clip(min=0), [[]], preprocess=item.preprocess)
            for maps, item in zip(placed, sides.values(), strict=True)
        )
        return first, second

    def transfer(self, places: ArrayLike) -> NDArray[np.float32]:
        """Find the places of the hit that go with places of the query.

        Each place goes where the descriptors are most similar, between the cells around the best one; without
        descriptors, the cell embeddings are compared.

        Args:
            places: (n, 2) y and x as shares of the query's input.

        Returns:
            float32 (n, 2), shares of the hit's input.
        """
        ours, theirs = self._grids
        rows = self.query.rows_of(np.asarray(places, np.float32).reshape(-1, 2), ours)
        return self.hit.shares(_peaks(_between(ours.vectors, rows), theirs.vectors), theirs.geometry)

    @cached_property
    def _grids(self) -> tuple[Grid, Grid]:
        """What is compared: of unit vectors."""
        ours, theirs = self.query.descriptors, self.hit.descriptors
        if ours is None or theirs is None:
            ours, theirs = (Grid(item.cells - self.common, item.geometry) for item in (self.query, self.hit))
        return Grid(_units(ours.vectors), ours.geometry), Grid(_units(theirs.vectors), theirs.geometry)

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

    def to_dict(self) -> dict[str, Any]:
        """Return the match as values that JSON can represent."""
        return {
            "query": self.query.id,
            "hit": self.hit.id,
            "path": self.hit.path,
            "label": self.hit.label,
            "similarity": self.similarity,
            "distance": self.distance,
            "score": self.score,
            "contributions": {side: self.contributions(side).tolist() for side in ("query", "hit")},
            "evidence": {side: self.evidence(side).tolist() for side in ("query", "hit")},
            "rest": {side: self.rest(side) for side in ("query", "hit")},
            "correspondences": [pair._asdict() for pair in self.correspondences()],
        }


def _units(vectors: NDArray[Any]) -> NDArray[np.float32]:
    vectors = vectors.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return units


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


def versus(first: Match, second: Match) -> tuple[NDArray[np.float32], float]:
    """Explain why a query is nearer to one hit than to another.

    Args:
        first: The query with one hit.
        second: The same query with the other.

    Returns:
        float32 (h, w), what each cell of the query adds to the difference of the two similarities, and the rest.
    """
    return first.contributions() - second.contributions(), first.rest() - second.rest()


@dataclass(frozen=True)
class Matches:
    """The hits of some queries.

    Attributes:
        queries: The queries.
        hits: For each query its matches, the most similar first.
        missing: For each query the hits that could not be explained, by their rank; empty if there are none.
    """

    queries: list[Item]
    hits: list[list[Match]]
    missing: list[dict[int, Hit]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, query: int) -> list[Match]:
        return self.hits[query]

    def __iter__(self) -> Iterator[list[Match]]:
        return iter(self.hits)

    def __repr__(self) -> str:
        return f"<Matches of {len(self)} queries, {sum(map(len, self.hits))} hits>"
