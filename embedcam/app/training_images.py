"""The training images that a picture looks like, by name or, where the data set is at hand, to be seen."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..data import load
from ..database.weight_database import WeightDatabase
from ..errors import DataError
from ..show.drawing import bounded
from .answers import LooksLike, file_of
from .limits import Refused

_MOST, _SIDE, _KEPT = 8, 192, 512


class TrainingImages:
    """Looks up the training images that a weight database keeps.

    Args:
        database: With exemplars or without.
        data: SPEC of the data set that it was built from, or None. Its pictures are found by their number among the
            exemplars: no name that comes from elsewhere becomes a path.

    Raises:
        DataError: If the data set cannot be read, or holds none of the training images.
    """

    def __init__(self, database: WeightDatabase | None, data: str | None = None) -> None:
        self._exemplars = None if database is None else database.exemplars
        self._names = () if database is None or database.label_names is None else database.label_names
        self._cosine = database is not None and database.network.metric == "cosine"
        self._samples = None if data is None else load(data)
        self._rows = {} if self._samples is None else {name: row for row, name in enumerate(self._samples.ids)}
        self._drawn = lru_cache(_KEPT)(self._draw)
        if data is not None:
            known = () if self._exemplars is None else self._exemplars.path
            if not any(name in self._rows for name in known):
                raise DataError(
                    f"{data} holds none of the {len(known)} training images that are known; give the data set that the "
                    "weight database was built from, or leave it out"
                )

    def near(self, embedding: NDArray[np.float32], cluster: int) -> list[LooksLike]:
        """List the training images of a cluster that lie nearest.

        Args:
            embedding: (D,).
            cluster: Its index.

        Returns:
            The nearest first; none where none are kept.
        """
        exemplars = self._exemplars
        if exemplars is None:
            return []
        members = np.flatnonzero(exemplars.cluster == cluster)
        points = exemplars.embeddings[members]
        distances = 1 - points @ embedding if self._cosine else np.linalg.norm(points - embedding, axis=1)
        near = np.argsort(distances, kind="stable")[:_MOST]
        return [self._one(int(members[place]), float(distances[place])) for place in near]

    def _one(self, number: int, distance: float) -> LooksLike:
        assert self._exemplars is not None
        name, label = self._exemplars.path[number], int(self._exemplars.label[number])
        return LooksLike(
            image=name,
            label=self._names[label] if 0 <= label < len(self._names) else None,
            distance=distance,
            thumbnail=f"exemplars/{number}" if name in self._rows else None,
        )

    def thumbnail(self, number: int) -> bytes:
        """Show a training image.

        Args:
            number: Its index among the exemplars.

        Returns:
            A small JPEG file.

        Raises:
            Refused: If there is no such image.
            DataError: If it cannot be read.
        """
        exemplars = self._exemplars
        if exemplars is None or not 0 <= number < len(exemplars) or exemplars.path[number] not in self._rows:
            raise Refused(
                404, f"no picture of training image {number}; those that an answer's looks_like names have one"
            )
        return self._drawn(number)

    def _draw(self, number: int) -> bytes:
        assert self._exemplars is not None
        assert self._samples is not None
        picture = self._samples.image(self._rows[self._exemplars.path[number]])
        return file_of(bounded(picture, _SIDE), "JPEG")
