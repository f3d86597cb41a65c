"""`lancedb:URI/TABLE`: a table of LanceDB, in a folder or on object storage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..searching import SEARCHERS, Engine, asking, choose, library, parse_place


class LanceSearcher:
    """Searches a table of LanceDB.

    Args:
        table: A table that `lancedb.connect(...).open_table(...)` returns.
        id: Column with the ids of the images; integers are rows of the gallery.
        vector: Column with the embeddings; None if only one has their dimensions.
        metric: "cosine" or "euclidean", of the network.

    Raises:
        DataError: If there is no such column.
    """

    def __init__(self, table: Any, id: str = "id", vector: str | None = None, *, metric: str = "cosine") -> None:
        self._table, self._id, self._vector, self._metric = table, id, vector, metric
        self._place = f"LanceDB's table {table.name!r}"
        if id not in table.schema.names:
            raise DataError(f"{self._place} has no column {id!r}; it has {', '.join(table.schema.names)}")
        sizes = {each.name: getattr(each.type, "list_size", None) for each in table.schema}
        self._sizes = {name: size for name, size in sizes.items() if size is not None}

    @classmethod
    def open(cls, argument: str, metric: str) -> LanceSearcher:
        """Open a table by the argument of its SPEC.

        Args:
            argument: URI/TABLE[,id=COLUMN][,vector=COLUMN]; the URI is a folder, or an address on object storage.
            metric: Of the network.

        Returns:
            The searcher.
        """
        uri, name, options = parse_place(argument, "lancedb")
        lancedb = library("lancedb", "lancedb")
        if "://" not in uri and not Path(uri).is_dir():  # otherwise LanceDB would make an empty folder
            raise DataError(f"{uri} is no folder of LanceDB; give one, or an address such as s3://bucket/folder")
        with asking(f"LanceDB at {uri}", "check the address and the access to it"):
            database = lancedb.connect(uri)
            try:
                table = database.open_table(name)
            except (ValueError, FileNotFoundError):
                tables = database.list_tables().tables
                if name in tables:
                    raise
                known = ", ".join(tables) or "none"
                raise DataError(f"LanceDB at {uri} has no table {name!r}; it has {known}") from None
        return cls(table, **options, metric=metric)

    def search(
        self, embeddings: NDArray[np.float32], top: int
    ) -> tuple[Sequence[Sequence[str | int]], Sequence[Sequence[float]]]:
        """Find the nearest images, see `Searcher`."""
        column = choose(self._sizes, self._vector, embeddings.shape[1], self._place, "column of vectors")
        cosine = self._metric == "cosine"
        ids, scores = [], []
        for embedding in embeddings:
            with asking(self._place, "check the table and its index"):
                query = self._table.search(embedding, vector_column_name=column)
                query = query.distance_type("cosine" if cosine else "l2").select([self._id, "_distance"])
                rows = query.limit(top).to_arrow()
            distances = rows["_distance"].to_numpy()
            # LanceDB returns 1 - cosine, or the square of the distance.
            scores.append((1 - distances if cosine else -np.sqrt(np.maximum(distances, 0))).tolist())
            ids.append(rows[self._id].to_pylist())
        return ids, scores


SEARCHERS.register("lancedb")(Engine(LanceSearcher.open, "URI/TABLE[,id=COLUMN][,vector=COLUMN]"))
