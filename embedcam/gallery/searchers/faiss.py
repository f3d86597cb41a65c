"""`faiss:FILE`: an index that FAISS wrote."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.items import PATH_KEYS
from ...data.texts import read_lines, read_table
from ...errors import DataError
from ..searching import SEARCHERS, Engine, asking, choose, library, parse, require_measure, similarities


class FaissSearcher:
    """Searches an index of FAISS, which is read into memory.

    Args:
        file: Written by `faiss.write_index`.
        ids: A file with the image of each number of the index: one per line; a table (.csv) with a column "id" or
            "path"; or an array (.npy) of texts or integers. None if the numbers are rows of the gallery.
        metric: "cosine" or "euclidean", of the network.

    Raises:
        DataError: If a file cannot be read, they do not belong together, or the index compares in another way.
    """

    def __init__(self, file: str | Path, ids: str | Path | None = None, *, metric: str = "cosine") -> None:
        faiss = library("faiss", "torch")
        self._place, self._metric = f"FAISS index {file}", metric
        if not Path(file).is_file():
            raise DataError(f"no FAISS index {file}; give the path of a file written by faiss.write_index")
        with asking(self._place, "give a file written by faiss.write_index"):
            self._index = faiss.read_index(str(file))
        measures = {faiss.METRIC_INNER_PRODUCT: "inner product", faiss.METRIC_L2: "euclidean"}
        self._measure = measures.get(self._index.metric_type, f"FAISS's metric {self._index.metric_type}")
        require_measure(self._measure, metric, self._place)
        self._ids, self._ids_file = None if ids is None else _read_ids(Path(ids)), ids

    @classmethod
    def open(cls, argument: str, metric: str) -> FaissSearcher:
        """Open an index by the argument of its SPEC.

        Args:
            argument: FILE[,ids=FILE].
            metric: Of the network.

        Returns:
            The searcher.
        """
        file, options = parse(argument, "faiss", ("ids",))
        return cls(file, options.get("ids"), metric=metric)

    def search(
        self, embeddings: NDArray[np.float32], top: int
    ) -> tuple[Sequence[Sequence[str | int]], Sequence[Sequence[float]]]:
        """Find the nearest images, see `Searcher`."""
        choose({"": self._index.d}, None, embeddings.shape[1], self._place, "vector")
        with asking(self._place, "write it again"):
            found, numbers = self._index.search(np.ascontiguousarray(embeddings), top)
        if self._measure == "euclidean":
            found = np.sqrt(np.maximum(found, 0))  # FAISS squares distances
        scores = similarities(found, self._measure, self._metric)
        kept = numbers >= 0  # fewer images than asked for
        return (
            [[self._name(number) for number in row[own].tolist()] for row, own in zip(numbers, kept, strict=True)],
            [row[own].tolist() for row, own in zip(scores, kept, strict=True)],
        )

    def _name(self, number: int) -> str | int:
        if self._ids is None:
            return number
        if number >= len(self._ids):
            raise DataError(
                f"{self._place} has an image of number {number}, {self._ids_file} has {len(self._ids)} ids; "
                "give one for each number, counted from 0"
            )
        return self._ids[number]


def _read_ids(file: Path) -> Sequence[str | int]:
    try:
        if file.suffix.lower() == ".npy":
            array: NDArray[Any] = np.load(file, allow_pickle=False)
            if array.ndim != 1 or array.dtype.kind not in "Uiu":
                raise DataError(f"{file} has shape {array.shape} of {array.dtype}, expected texts or integers (N,)")
            names: list[str | int] = array.tolist()
            return names
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read ids from {file}: {error}; give an array without Python objects") from error
    if file.suffix.lower() != ".csv":
        return read_lines(file)
    columns, table = read_table(file)
    column = next((key for key in ("id", *PATH_KEYS) if key in columns), None)
    if column is None:
        raise DataError(f"{file} has no column 'id' or 'path'; name the column of the ids in its first line")
    return [row[column] for row in table]


SEARCHERS.register("faiss")(Engine(FaissSearcher.open, "FILE[,ids=FILE]"))
