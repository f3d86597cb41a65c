"""Evaluate a search: embed queries and what is searched, or take the latter from a gallery index, and rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.samples import Samples
from ..errors import DataError
from ..gallery.index_file import IndexFile
from ..nets.inference import embed
from ..nets.network import Network
from .ranking import Ranking, Side, rank

_BLOCK = 2**12


@dataclass(frozen=True)
class Search:
    """Queries that were searched for.

    Attributes:
        samples: The readable queries.
        queries: Their embeddings.
        ranking: How what was searched ranks for each of them.
        skipped: Number of queries that could not be read.
    """

    samples: Samples
    queries: Side
    ranking: Ranking
    skipped: int

    def result(self) -> dict[str, Any]:
        """Summarise the search.

        Returns:
            {"schema": 1, the scores of `Ranking.scores`, "skipped": ...}.
        """
        return {"schema": 1, **self.ranking.scores(), "skipped": self.skipped}


def has_classes_of(queries: Samples, gallery: Samples) -> bool:
    """Tell whether a gallery has every class of the queries.

    Args:
        queries: Images.
        gallery: Images that may be searched.

    Returns:
        Whether it has; False without labels.
    """
    if queries.labels is None or gallery.labels is None:
        return False
    return bool(np.isin(queries.labels, gallery.labels).all())


def search(net: Network, queries: Samples, references: Samples | Side | None, **reading: Any) -> Search:
    """Embed queries, and rank what is searched for each of them.

    Memory grows by 4 D bytes per image, and by another 4 D per image that is searched.

    Args:
        net: The network.
        queries: Images with labels.
        references: What is searched; None for the queries themselves (leave-one-out).
        reading: Options of `embed`: "batch_size", "strict", "workers".

    Returns:
        The search.

    Raises:
        DataError: If labels are missing, no query has a right reference, or an image cannot be used.
    """
    ours, rows = _side(net, queries, "queries", **reading)
    theirs = (
        references
        if references is None or isinstance(references, Side)
        else _side(net, references, "gallery", **reading)[0]
    )
    ranking = rank(ours, theirs)
    if not ranking.first.any():
        camera = " by another camera" if ranking.cameras else ""
        raise DataError(
            f"none of the {len(rows)} queries has an image of its label{camera} among the {ranking.searched} that are "
            "searched; search images of the same classes"
        )
    return Search(queries.subset(rows), ours, ranking, len(queries) - len(rows))


def _side(net: Network, samples: Samples, what: str, **reading: Any) -> tuple[Side, Any]:
    if samples.labels is None:
        raise DataError("retrieval is scored by labels, but the images have none; give images with labels")
    embedded = embed(net, samples, what=f"embedding {what}", pooled=False, **reading)
    return Side.of(samples, embedded.kept, embedded.embeddings), embedded.kept


def side_of_index(path: Path, everything: Samples) -> Side:
    """Read the embeddings, ids and labels of a gallery index.

    Args:
        path: The index.
        everything: All images of the data set that is evaluated, for the cameras of those in the index.

    Returns:
        The side; without cameras if the data set has none.

    Raises:
        DatabaseError: If the index cannot be read.
        DataError: If an image has no label, or no camera where others have one.
    """
    with IndexFile(path) as file:
        blocks = list(file.blocks(_BLOCK))
        embeddings = np.concatenate([file.read("embeddings", rows) for rows in blocks])
        labels = np.concatenate([file.read("labels", rows) for rows in blocks])
        ids = [name for rows in blocks for name in file.texts("ids", rows)]
        names = np.array(file.label_names)
    if (labels < 0).any():
        raise DataError(f"{ids[int(labels.argmin())]} in {path} has no label; index images with labels")
    cameras = getattr(everything, "cameras", None)
    if cameras is not None:
        places = {name: row for row, name in enumerate(everything.ids)}
        if unknown := [name for name in ids if name not in places]:
            raise DataError(f"the camera of {unknown[0]} in {path} is unknown; index images of the same data set")
        cameras = cameras[[places[name] for name in ids]]
    return Side(embeddings, names[labels], cameras, np.array(ids))
