"""Explained matches: why a query and a hit are similar, from the cell embeddings of both. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.preprocess import Preprocess
from ..explain.explanation import Explanation
from ..explain.maps import place
from ..nets.geometry import Geometry
from .searching import Hit


@dataclass(frozen=True)
class Item:
    """An image as the comparison sees it.

    Attributes:
        id: Its name.
        path: Of its file; empty if unknown.
        label: Its class, or None.
        embedding: float32 (D,).
        cells: float32 (h, w, D), its cell embeddings.
        geometry: Where the cells lie.
        preprocess: From the picture to what the network saw.
    """

    id: str
    path: str
    label: str | None
    embedding: NDArray[np.float32]
    cells: NDArray[np.float32]
    geometry: Geometry
    preprocess: Preprocess

    def place_of(self, cell: tuple[int, int]) -> tuple[float, float]:
        """Return the centre (y, x) of a cell, as a share of the network's input."""
        pairs = zip(cell, self.geometry.cell_stride, self.geometry.first_cell_center, strict=True)
        centre = (first + index * stride for index, stride, first in pairs)
        y, x = (each / side for each, side in zip(centre, self.preprocess.input_size, strict=True))
        return min(max(y, 0.0), 1.0), min(max(x, 0.0), 1.0)


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
        score: Of the search engine that found the hit; None if the index was searched.
    """

    query: Item
    hit: Item
    similarity: float
    distance: float
    common: NDArray[np.float32]
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

    @cached_property
    def shared(self) -> tuple[Explanation, Explanation]:
        """What speaks for the match: maps of the query and of the hit, on one scale."""
        return self._explained(1)

    @cached_property
    def differs(self) -> tuple[Explanation, Explanation]:
        """What speaks against it, on the same scale as `shared`."""
        return self._explained(-1)

    def _explained(self, sign: int) -> tuple[Explanation, Explanation]:
        placed = [
            place(
                self.contributions(side)[None] * self.contributions(side).size,
                item.geometry,
                item.preprocess.input_size,
            )
            for side, item in (("query", self.query), ("hit", self.hit))
        ]
        scale = max(float(np.abs(maps).max()) for maps in placed) or 1.0
        first, second = (
            Explanation((sign * maps).clip(min=0) / scale, (sign * maps).clip(min=0), [[]], preprocess=item.preprocess)
            for maps, item in zip(placed, (self.query, self.hit), strict=True)
        )
        return first, second

    def correspondences(self, most: int = 5) -> list[Correspondence]:
        """Find places of the query and of the hit that go together.

        A pair counts if each of the two cells is the other's most similar one, by the cosine of their embeddings, and
        if it adds at least a tenth of what the strongest pair adds to the similarity.

        Args:
            most: How many at most.

        Returns:
            The pairs, the strongest first; none if nothing adds to the similarity.
        """
        ours, theirs = (item.cells.reshape(-1, len(self.common)) - self.common for item in (self.query, self.hit))
        products = ours @ theirs.T
        lengths = np.outer(np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1))
        cosines = products / np.maximum(lengths, np.finfo(np.float32).tiny)
        there, back = cosines.argmax(axis=1), cosines.argmax(axis=0)
        mutual = np.flatnonzero(back[there] == np.arange(len(ours)))
        strengths = products[mutual, there[mutual]]
        widths = self.query.cells.shape[1], self.hit.cells.shape[1]
        return [
            Correspondence(
                self.query.place_of(divmod(int(mutual[row]), widths[0])),
                self.hit.place_of(divmod(int(there[mutual[row]]), widths[1])),
                float(strengths[row]),
            )
            for row in np.argsort(-strengths, kind="stable")[:most]
            if strengths[row] > 0 and strengths[row] >= strengths.max() / 10
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
            "rest": {side: self.rest(side) for side in ("query", "hit")},
            "correspondences": [pair._asdict() for pair in self.correspondences()],
        }


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
