"""Explained matches: why a query and a hit are similar, from the cell embeddings of both. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..explain.explanation import Explanation
from ..explain.maps import place
from .correspondences import Pair
from .items import Item, units
from .searching import Hit

if TYPE_CHECKING:
    from typing_extensions import Self

# Of the softmax over whom a cell may belong to; and rivals that are at least so similar to the match are none.
_TEMPERATURE, _SIMILAR = 0.07, 0.5
# Rivals count as if there were so many, as of clusters of the published method.
_CLUSTERS = 50


class Rivals(NamedTuple):
    """Other images of the gallery, as `Match.evidence` compares them.

    Attributes:
        centre: float32 (D,), their mean embedding.
        directions: float32 (R, D) of length 1, from the centre to their embeddings.
    """

    centre: NDArray[np.float32]
    directions: NDArray[np.float32]

    @classmethod
    def of(cls, embeddings: NDArray[np.float32]) -> Self:
        """Prepare embeddings.

        Args:
            embeddings: float32 (R, D), at least one.

        Returns:
            The rivals.
        """
        centre = embeddings.mean(axis=0)
        return cls(centre, units(embeddings - centre))


@dataclass(frozen=True)
class Match(Pair):
    """A query and a hit, whose similarity is decomposed over the cells of either.

    The similarity (z - m) . (z' - m) is the sum over the query's n cells of (e_i - m) . (z' - m) / n and a rest, and
    likewise over the hit's. The embedding m is zero for cosine networks. The rest has what no cell adds and, for images
    of an index, what rounding the cells lost.

    Attributes:
        query: As compared.
        hit: As compared.
        common: float32 (D,), the embedding m.
        similarity: Cosine, or the product of the two differences from the gallery's mean embedding.
        distance: 1 - cosine, or Euclidean.
        rivals: Other images of the gallery.
        score: Of the search engine that found the hit; None if the index was searched.
    """

    similarity: float
    distance: float
    rivals: Rivals
    score: float | None = None

    def contributions(self, side: str = "query") -> NDArray[np.float32]:
        """Decompose the similarity over the cells of one side.

        Args:
            side: "query" or "hit".

        Returns:
            float32 (h, w), signed.
        """
        return _of(self._contributions, side)

    @cached_property
    def _contributions(self) -> dict[str, NDArray[np.float32]]:
        contributions = {}
        for side, (ours, other) in self._sides.items():
            contributions[side] = (ours.cells - self.common) @ (other.embedding - self.common)
            contributions[side] /= np.float32(contributions[side].size)
        return contributions

    @property
    def _sides(self) -> dict[str, tuple[Item, Item]]:
        return {"query": (self.query, self.hit), "hit": (self.hit, self.query)}

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
        return _of(self._evidence, side)

    @cached_property
    def _evidence(self) -> dict[str, NDArray[np.float32]]:
        centre, rivals = self.rivals
        evidence = {}
        for side, (ours, other) in self._sides.items():
            cells, asked = units(ours.cells - centre), units(other.embedding - centre)
            own = np.exp(cells @ asked / _TEMPERATURE)
            others = np.exp(cells @ rivals.T / _TEMPERATURE) @ (rivals @ asked < _SIMILAR).astype(np.float32)
            share = own / (own + others * np.float32(_CLUSTERS / len(rivals)))
            evidence[side] = self._contributions[side].clip(min=0) * (share / share.max()) ** 2
        return evidence

    @cached_property
    def shared(self) -> tuple[Explanation, Explanation]:
        """Heat maps of the query and of the hit, on one scale: what speaks for the match, see `evidence`."""
        return self._explained(self._evidence, 1)

    @cached_property
    def differs(self) -> tuple[Explanation, Explanation]:
        """Heat maps of what speaks against it: the negative contributions, relative to the largest of either sign."""
        return self._explained(self._contributions, -1)

    def _explained(self, of: Mapping[str, NDArray[np.float32]], sign: int) -> tuple[Explanation, Explanation]:
        placed = [
            place(of[side][None] * item.cells[..., 0].size, item.geometry, item.preprocess.input_size)
            for side, (item, _) in self._sides.items()
        ]
        scale = max(float(np.abs(maps).max()) for maps in placed) or 1.0
        first, second = (
            Explanation((sign * maps).clip(min=0) / scale, (sign * maps).clip(min=0), [[]], preprocess=item.preprocess)
            for maps, item in zip(placed, (self.query, self.hit), strict=True)
        )
        return first, second

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
            "contributions": {side: cells.tolist() for side, cells in self._contributions.items()},
            "evidence": {side: cells.tolist() for side, cells in self._evidence.items()},
            "rest": {side: self.rest(side) for side in self._sides},
            "correspondences": [pair._asdict() for pair in self.correspondences()],
        }


def _of(sides: Mapping[str, NDArray[np.float32]], side: str) -> NDArray[np.float32]:
    if side not in sides:
        raise DataError(f"the sides of a match are 'query' and 'hit', got {side!r}")
    return sides[side]


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
