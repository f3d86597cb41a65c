"""The training images nearest to a picture."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..data import load
from ..database.weight_database import WeightDatabase
from ..errors import DataError
from ..show.drawing import bounded
from .limits import Refused
from .schemas import TrainingImage, encode_image

if TYPE_CHECKING:
    from ..gallery import Gallery

_MAX_IMAGES, _THUMBNAIL_SIZE, _CACHED_THUMBNAILS = 8, 192, 512
_SAME_EMBEDDING = 1e-3  # the network ran on other batches, perhaps on another device


class TrainingImages:
    """Looks up the exemplars of a weight database, and their pictures in the data set.

    Pictures are addressed by exemplar number, so no name from a request or database becomes a path.

    Args:
        database: The weight database, with or without exemplars.
        data: SPEC of the data set that the database was built from. None shows no thumbnails.
        gallery: An index that may have them too, or None.

    Raises:
        DataError: If the data set cannot be read, or has none of the exemplars.
    """

    def __init__(
        self, database: WeightDatabase | None, data: str | None = None, gallery: Gallery | None = None
    ) -> None:
        self._gallery = gallery
        self._exemplars = None if database is None else database.exemplars
        self._label_names = () if database is None or database.label_names is None else database.label_names
        self._cosine = database is not None and database.network.metric == "cosine"
        self._samples = None if data is None else load(data)
        self._rows = {} if self._samples is None else {name: row for row, name in enumerate(self._samples.ids)}
        self._cached_thumbnail = lru_cache(_CACHED_THUMBNAILS)(self._thumbnail)
        if data is not None:
            names = () if self._exemplars is None else self._exemplars.path
            if not any(name in self._rows for name in names):
                raise DataError(
                    f"{data} has none of the {len(names)} training images of the weight database; "
                    "use the data set that it was built from, or none"
                )

    def near(self, embedding: NDArray[np.float32], cluster: int) -> list[TrainingImage]:
        """List the nearest training images of a cluster.

        Args:
            embedding: (D,).
            cluster: Index of the cluster.

        Returns:
            At most 8 training images, nearest first; none without exemplars.
        """
        exemplars = self._exemplars
        if exemplars is None:
            return []
        members = np.flatnonzero(exemplars.cluster == cluster)
        points = exemplars.embeddings[members]
        distances = 1 - points @ embedding if self._cosine else np.linalg.norm(points - embedding, axis=1)
        nearest = np.argsort(distances, kind="stable")[:_MAX_IMAGES]
        return [self._training_image(int(members[index]), float(distances[index])) for index in nearest]

    def _training_image(self, number: int, distance: float) -> TrainingImage:
        assert self._exemplars is not None
        name, label = self._exemplars.path[number], int(self._exemplars.label[number])
        return TrainingImage(
            image=name,
            label=self._label_names[label] if 0 <= label < len(self._label_names) else None,
            distance=distance,
            thumbnail=f"exemplars/{number}" if name in self._rows else None,
            indexed=self._is_indexed(number),
        )

    def _is_indexed(self, number: int) -> bool:
        """Whether the index has this image, and not just one of its name."""
        assert self._exemplars is not None
        if self._gallery is None:
            return False
        try:
            embedding = self._gallery.items([self._gallery.row(self._exemplars.path[number])])[0].embedding
        except DataError:
            return False
        return np.allclose(embedding, self._exemplars.embeddings[number], atol=_SAME_EMBEDDING)

    def thumbnail(self, number: int) -> bytes:
        """Return a thumbnail of a training image.

        Args:
            number: Index of the exemplar.

        Returns:
            A JPEG file.

        Raises:
            Refused: If there is no such image.
            DataError: If it cannot be read.
        """
        exemplars = self._exemplars
        if exemplars is None or not 0 <= number < len(exemplars) or exemplars.path[number] not in self._rows:
            raise Refused(404, f"training image {number} has no thumbnail; use those listed in looks_like")
        return self._cached_thumbnail(number)

    def _thumbnail(self, number: int) -> bytes:
        assert self._exemplars is not None
        assert self._samples is not None
        picture = self._samples.image(self._rows[self._exemplars.path[number]])
        return encode_image(bounded(picture, _THUMBNAIL_SIZE), "JPEG")
