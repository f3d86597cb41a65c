"""Find biases: how much of what makes images similar lies off the object, by class and by pair of classes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..explain.maps import place
from ..gallery import Gallery
from ..gallery.matches import Match
from ..nets.inference import tensor_batches
from .bootstrap import interval
from .objects import Objects, Share, share_off
from .search import Search

ENOUGH = 5
"""Pairs that a row needs to be called biased."""


@dataclass(frozen=True)
class Pair:
    """A query and its nearest image with the same label, or with another.

    Attributes:
        query: Row of the query.
        hit: Row of the other in the gallery.
        labels: Of the two.
        share: Off the objects, averaged over the two images, or of the one whose object is known.
        similarity: Of the two, see `Match`.
    """

    query: int
    hit: int
    labels: tuple[str, str]
    share: Share
    similarity: float

    @property
    def right(self) -> bool:
        """Whether both have the same label."""
        return self.labels[0] == self.labels[1]

    @property
    def excess(self) -> float:
        """How much more lies off the object than by chance."""
        return self.share.off - self.share.expected


def pairs(found: Search, gallery: Gallery, objects: Objects, **reading: Any) -> Iterator[tuple[Pair, Match]]:
    """Explain the nearest right and the nearest wrong image of every query.

    Args:
        found: The queries, with their ranking.
        gallery: What was searched.
        objects: The objects in the images.
        reading: Options of `tensor_batches`: "batch_size", "strict", "workers".

    Yields:
        Each pair that has positive contributions and an image whose object is known, and its match.
    """
    loaded = tensor_batches(gallery.net, found.samples, what="explaining pairs", **reading)
    for rows, batch in loaded:
        items = gallery.see(batch, [found.samples.ids[row] for row in rows])
        for row, item in zip(rows.tolist(), items, strict=True):
            for hit in (int(found.ranking.right[row]), int(found.ranking.wrong[row])):
                if hit < 0:
                    continue
                match = gallery.explain_match(item, hit)
                share = share_of(positive(match), match, objects)
                if share is not None:
                    labels = str(found.queries.labels[row]), str(match.hit.label)
                    yield Pair(row, hit, labels, share, match.similarity), match


def positive(match: Match) -> list[NDArray[np.float32]]:
    """Map what adds to the similarity of a query and a hit.

    Args:
        match: The two.

    Returns:
        (H, W) of each: the positive contributions of its cells, at their places.
    """
    return [
        place(match.contributions(side)[None], item.geometry, item.preprocess.input_size)[0].clip(min=0)
        for side, item in (("query", match.query), ("hit", match.hit))
    ]


def share_of(maps: Sequence[NDArray[np.float32]], match: Match, objects: Objects) -> Share | None:
    """Measure how much of the maps of a query and a hit lies off their objects.

    Args:
        maps: (H, W) of each, not negative.
        match: The two.
        objects: The objects in the images.

    Returns:
        The mean over the images whose object is known; None if there is none, or the maps are zero.
    """
    regions = [objects.region(item) for item in (match.query, match.hit)]
    shares = [share_off(raw, region) for raw, region in zip(maps, regions, strict=True) if region is not None]
    usable = [share for share in shares if math.isfinite(share.off)]
    return Share(*np.mean(usable, axis=0).tolist()) if usable else None


def summarise(measured: list[Pair], kind: str) -> dict[str, Any]:
    """Summarise pairs by class and by pair of classes.

    Args:
        measured: The pairs.
        kind: Of the objects, see `Objects`.

    Returns:
        {"schema": 1, "object": kind, "pairs": ..., "rows": [...]}, each row with `group` ("all", "class" or "pair of
        classes"), `labels`, `right` (whether its pairs have the same label), the number of `pairs`, their mean
        `similarity`, `off` and its 95 % `interval`, `expected`, `excess` (off - expected) and its `excess_interval`,
        and `biased`: whether that lies above 0 and there are at least 5 pairs. Rows of classes are of right pairs, rows
        of pairs of classes of wrong ones, in either direction. Those with the largest excess come first.
    """
    groups: dict[tuple[str, tuple[str, ...], bool], list[Pair]] = defaultdict(list)
    for pair in measured:
        groups["all", (), pair.right].append(pair)
        if pair.right:
            groups["class", pair.labels[:1], True].append(pair)
        else:
            groups["pair of classes", tuple(sorted(pair.labels)), False].append(pair)
    rows = [_row(*key, members) for key, members in groups.items()]
    order = ("all", "class", "pair of classes")
    rows.sort(key=lambda row: (order.index(row["group"]), -row["right"], -row["excess"]))
    return {"schema": 1, "object": kind, "pairs": len(measured), "rows": rows}


def _row(group: str, labels: tuple[str, ...], right: bool, members: list[Pair]) -> dict[str, Any]:
    off, expected = np.array([pair.share for pair in members]).T
    low, high = interval(off - expected)
    return {
        "group": group,
        "labels": list(labels),
        "right": right,
        "pairs": len(members),
        "similarity": float(np.mean([pair.similarity for pair in members])),
        "off": float(off.mean()),
        "interval": interval(off),
        "expected": float(expected.mean()),
        "excess": float((off - expected).mean()),
        "excess_interval": [low, high],
        "biased": low > 0 and len(members) >= ENOUGH,
    }
