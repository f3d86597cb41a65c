"""Rows of an index by the texts of its images, for any number of images."""

from __future__ import annotations

import numpy as np

from .index_file import IndexFile

_BLOCK = 2**16


class Names:
    """Finds images by id or path; keeps 16 bytes per image, not the texts.

    Args:
        file: The index.
        key: "ids" or "paths".

    Attributes:
        hashes: int64 (N,), sorted, of the texts in this process.
    """

    def __init__(self, file: IndexFile, key: str) -> None:
        self._file, self._key = file, key
        texts = (text for rows in file.blocks(_BLOCK) for text in file.texts(key, rows))
        hashes = np.fromiter(map(hash, texts), np.int64, len(file))
        self._rows = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self._rows]

    def row(self, text: str) -> int | None:
        """Find an image.

        Args:
            text: Its id or path.

        Returns:
            Its row, the first if there are several; None if there is none.
        """
        start, stop = (np.searchsorted(self.hashes, hash(text), side) for side in ("left", "right"))
        rows: list[int] = self._rows[start:stop].tolist()
        return next((row for row in rows if self._file.texts(self._key, slice(row, row + 1)) == [text]), None)
