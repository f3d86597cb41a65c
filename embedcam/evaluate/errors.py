"""Explain failures of a search: what made a query match the wrong image?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gallery import Gallery
from ..gallery.matches import Match, versus
from .bias import share_of
from .objects import Objects, Share
from .ranking import Side
from .search import Search


@dataclass(frozen=True)
class Failure:
    """A query whose nearest image has another label.

    Attributes:
        wrong: The query and that image.
        right: The query and the nearest image with its label.
        margin: How much nearer the wrong one is: the difference of the similarities for cosine networks, of the
            distances for Euclidean ones.
        share: How much of what the query and the wrong image share lies off their objects; None if no object is known.
    """

    wrong: Match
    right: Match
    margin: float
    share: Share | None

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as values that JSON can represent."""
        signed, rest = versus(self.wrong, self.right)
        return {
            "query": self.wrong.query.id,
            "label": self.wrong.query.label,
            "margin": self.margin,
            "off_object": None if self.share is None else self.share._asdict(),
            "wrong": self.wrong.to_dict(),
            "right": self.right.to_dict(),
            "wrong_rather_than_right": {"contributions": signed.tolist(), "rest": rest},
        }


def failures(found: Search, references: Side, gallery: Gallery, objects: Objects, most: int) -> list[Failure]:
    """Explain the worst failures.

    Args:
        found: The queries, with their ranking.
        references: What was searched, in the order of the gallery.
        gallery: The same images.
        objects: The objects in the images.
        most: How many failures at most: those with the largest margin.

    Returns:
        The failures. Those with most of the shared heat off the object come first if masks or boxes are known, else
        those with the largest margin. Queries without any right image are no failures.
    """
    margins = _margins(found, references, cosine=gallery.record.network.metric == "cosine")
    worst = [row for row in np.argsort(-margins, kind="stable")[:most] if margins[row] > 0]
    explained = [_explained(int(row), float(margins[row]), found, gallery, objects) for row in worst]
    if objects.kind == "border":
        return explained
    return sorted(explained, key=lambda each: (-each.share.off if each.share else 0.0, -each.margin))


def count_failures(found: Search) -> int:
    """Count the queries whose nearest image has another label, although there is a right one.

    Args:
        found: The queries, with their ranking.

    Returns:
        The number.
    """
    return int((found.ranking.first > 1).sum())


def _margins(found: Search, references: Side, *, cosine: bool) -> NDArray[np.float64]:
    ranking, own = found.ranking, found.queries.embeddings
    margins = np.full(len(own), -np.inf)
    wrong = np.flatnonzero(ranking.first > 1)
    theirs = references.embeddings
    if cosine:
        difference = theirs[ranking.wrong[wrong]].astype(np.float64) - theirs[ranking.right[wrong]]
        margins[wrong] = (own[wrong] * difference).sum(axis=1)
    else:
        far, near = (
            np.linalg.norm(own[wrong] - theirs[rows[wrong]], axis=1) for rows in (ranking.right, ranking.wrong)
        )
        margins[wrong] = far - near
    return margins


def _explained(row: int, margin: float, found: Search, gallery: Gallery, objects: Objects) -> Failure:
    query = gallery.see([found.samples.image(row)], [found.samples.ids[row]])[0]
    query = replace(query, label=str(found.queries.labels[row]))
    wrong, right = (gallery.explain_match(query, int(rows[row])) for rows in (found.ranking.wrong, found.ranking.right))
    share = share_of([shared.raw[0] for shared in wrong.shared], wrong, objects)
    return Failure(wrong, right, margin, share)
