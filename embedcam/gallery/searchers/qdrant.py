"""`qdrant:URL/COLLECTION`: a collection of Qdrant, on a server or in a local folder."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..searching import SEARCHERS, Engine, asking, choose, library, parse_place, require_measure, similarities

_REMEDY = "check the address and the collection"
_MEASURES = {"Cosine": "inner product", "Dot": "inner product", "Euclid": "euclidean"}


class QdrantSearcher:
    """Searches a collection of Qdrant.

    Args:
        client: A `qdrant_client.QdrantClient`.
        collection: Name of the collection.
        id: Field of the payload that has the ids of the images; None if the points' own IDs are, of which integers are
            rows of the gallery.
        vector: Name of the vectors; None if only one has the embeddings' dimensions.
        metric: "cosine" or "euclidean", of the network.

    Raises:
        DataError: If there is no such collection, or the client cannot be asked.
    """

    def __init__(
        self,
        client: Any,
        collection: str,
        id: str | None = None,
        vector: str | None = None,
        *,
        metric: str = "cosine",
    ) -> None:
        self._client, self._collection, self._id, self._vector, self._metric = client, collection, id, vector, metric
        self._place = f"Qdrant's collection {collection!r}"
        with asking("Qdrant", _REMEDY):
            names = [each.name for each in client.get_collections().collections]
        if collection not in names:
            raise DataError(f"Qdrant has no collection {collection!r}; it has {', '.join(sorted(names)) or 'none'}")
        with asking(self._place, _REMEDY):
            vectors = client.get_collection(collection).config.params.vectors or {}
        self._vectors: dict[str, Any] = vectors if isinstance(vectors, dict) else {"": vectors}

    @classmethod
    def open(cls, argument: str, metric: str) -> QdrantSearcher:
        """Open a collection by the argument of its SPEC.

        Args:
            argument: URL/COLLECTION[,id=FIELD][,vector=NAME]; the API key of a server is read from the
                environment variable QDRANT_API_KEY.
            metric: Of the network.

        Returns:
            The searcher.
        """
        place, collection, options = parse_place(argument, "qdrant")
        qdrant = library("qdrant_client", "qdrant")
        if "://" in place:
            # An address that does not answer is one error, not a warning and an error.
            where = {"url": place, "api_key": os.environ.get("QDRANT_API_KEY"), "check_compatibility": False}
        elif (Path(place) / "meta.json").is_file():  # otherwise the client would make an empty folder
            where = {"path": place}
        else:
            raise DataError(f"{place} is no folder of Qdrant; give one, or an address such as http://localhost:6333")
        with asking(f"Qdrant at {place}", _REMEDY):
            client = qdrant.QdrantClient(**where)
        try:
            searcher = cls(client, collection, **options, metric=metric)
        except DataError:
            client.close()
            raise
        weakref.finalize(searcher, client.close)  # a local folder is locked until then
        return searcher

    def search(
        self, embeddings: NDArray[np.float32], top: int
    ) -> tuple[Sequence[Sequence[str | int]], Sequence[Sequence[float]]]:
        """Find the nearest images, see `Searcher`."""
        models = library("qdrant_client", "qdrant").models
        sizes = {name: own.size for name, own in self._vectors.items()}
        using = choose(sizes, self._vector, embeddings.shape[1], self._place, "vector")
        distance = self._vectors[using].distance.value
        measure = _MEASURES.get(distance, distance)
        require_measure(measure, self._metric, self._place)
        requests = [
            models.QueryRequest(query=each.tolist(), using=using or None, limit=top, with_payload=self._id is not None)
            for each in embeddings
        ]
        with asking(self._place, _REMEDY):
            answers = self._client.query_batch_points(self._collection, requests)
        return (
            [[self._name(point) for point in answer.points] for answer in answers],
            [
                similarities([point.score for point in answer.points], measure, self._metric).tolist()
                for answer in answers
            ],
        )

    def _name(self, point: Any) -> str | int:
        if self._id is None:
            name: str | int = point.id
            return name
        payload: dict[str, Any] = point.payload or {}
        if self._id not in payload:
            raise DataError(
                f"point {point.id} of {self._place} has no field {self._id!r}; "
                f"it has {', '.join(payload) or 'none'}: name one of them with id="
            )
        name = payload[self._id]
        return name


SEARCHERS.register("qdrant")(Engine(QdrantSearcher.open, "URL/COLLECTION[,id=FIELD][,vector=NAME]"))
