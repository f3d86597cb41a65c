"""The images of a gallery index, read and searched without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..data.preprocess import Preprocess
from ..database.neighbors import Neighbors
from ..errors import DataError
from .format import TEXTS
from .index_file import IndexFile
from .items import Grid, Item
from .matches import Rivals
from .names import Names

if TYPE_CHECKING:
    from typing_extensions import Self

# Embeddings up to this size in bytes are kept in memory; of larger galleries, blocks are read for every search.
_IN_MEMORY = 2**28
_BLOCK = 2**16
_RIVALS = 64


class StoredImages:
    """The images of an index; a `Gallery` has them too.

    Args:
        file: The index.

    Attributes:
        record: What the images have in common.
        path: Path of the index.
    """

    def __init__(self, file: IndexFile) -> None:
        self._file, self.path, self.record = file, file.path, file.record
        self._neighbors: Neighbors | None = None
        self._names: dict[str, Names] = {}

    @property
    def preprocess(self) -> Preprocess:
        """Turns a picture into an input of the network."""
        return self.record.network.preprocess

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._file)

    def facts(self) -> list[tuple[str, str]]:
        """Summarise the index in a few lines.

        Returns:
            (name, value) of each line.
        """
        net, (height, width) = self.record.network, self.record.cells
        size, space = " x ".join(map(str, net.preprocess.input_size)), self.record.space
        described = []
        if space is not None:
            (rows, columns), components = space.cells, space.projection.shape[1]
            finer = f"{space.layer} and " if space.layer else ""
            described = [("Descriptors", f"{rows} x {columns} of {components} dimensions, of {finer}{net.layer}")]
        return [
            ("Images", f"{len(self)}, {len(self._file.label_names)} labels"),
            ("Network", f"{net.architecture}, {net.metric}, {net.dim} dimensions, sha256 {net.sha256[:12]}"),
            ("Input", f"{size} pixels, {net.preprocess.interpolation}"),
            ("Feature layer", f"{net.layer}, {height} x {width} cells"),
            *described,
            ("Per image", f"{self.record.bytes_per_image:,} bytes and its name"),
            ("Made", f"{self.record.created} by embedcam {self.record.embedcam_version}"),
        ]

    def nearest(self, embeddings: NDArray[np.float32], top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find the nearest images.

        Args:
            embeddings: float32 (B, D).
            top: Number of images; fewer if there are fewer.

        Returns:
            Rows of the index and distances (B, top), the nearest first.
        """
        net = self.record.network
        if len(self) * net.dim * 4 <= _IN_MEMORY:
            if self._neighbors is None:
                self._neighbors = Neighbors(self._file.read("embeddings", slice(0, len(self))), net.metric)
            return self._neighbors.search(embeddings, top)
        rows: NDArray[np.int64] = np.empty((len(embeddings), 0), np.int64)
        distances: NDArray[np.float32] = np.empty((len(embeddings), 0), np.float32)
        for block in self._file.blocks(_BLOCK):
            own, away = Neighbors(self._file.read("embeddings", block), net.metric).search(embeddings, top)
            rows = np.concatenate([rows, own + block.start], axis=1)
            distances = np.concatenate([distances, away], axis=1)
            order = np.argsort(distances, axis=1, kind="stable")[:, :top]
            rows, distances = np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
        return rows, distances

    def items(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Item]:
        """Read images of the index.

        Args:
            rows: Their numbers.

        Returns:
            What is stored of them.

        Raises:
            DataError: If there is no image of a number.
        """
        at, geometry = np.asarray(rows, np.int64), self.record.geometry
        if ((at < 0) | (at >= len(self))).any():
            raise DataError(f"{self.path} has images 0 to {len(self) - 1}, asked for {at.min()} to {at.max()}")
        embeddings, cells, scales, labels, *codes = (self._file.read(name, at) for name in self._file.arrays)
        cells = embeddings[:, None, None] + cells * scales[:, None, None, None]
        ids, paths = (self._file.texts(name, at) for name in TEXTS)
        classes = [None if label < 0 else self._file.label_names[label] for label in labels.tolist()]
        grids = [self._grid(each) for each in codes[0]] if codes else [None] * len(at)
        return [
            Item(name, path, label, embedding, own, geometry, self.preprocess, grid)
            for name, path, label, embedding, own, grid in zip(
                ids, paths, classes, embeddings, cells, grids, strict=True
            )
        ]

    def _grid(self, codes: NDArray[np.int8]) -> Grid:
        assert self.record.space is not None
        return Grid(codes, self.record.space.geometry)

    def blocks(self, size: int = 4096) -> Iterator[tuple[range, list[str], NDArray[np.float32]]]:
        """Read all images in blocks, such as to fill a search engine.

        Args:
            size: Images per block.

        Yields:
            Rows of the index, ids, and embeddings float32 (n, D) of the images.
        """
        for rows in self._file.blocks(size):
            yield range(rows.start, rows.stop), self._file.texts("ids", rows), self._file.read("embeddings", rows)

    def row(self, name: str) -> int:
        """Find an image by its id.

        Args:
            name: The id.

        Returns:
            Its row in the index.

        Raises:
            DataError: If there is none.
        """
        row = self._row("ids", name)
        if row is None:
            raise DataError(f"{self.path} has no image {name!r}; give one of its ids")
        return row

    def _row(self, key: str, text: str) -> int | None:
        if key not in self._names:
            self._names[key] = Names(self._file, key)
        return self._names[key].row(text)

    @cached_property
    def rivals(self) -> Rivals:
        """64 images, or all if there are fewer; see `Match.evidence`."""
        rows = np.unique(np.linspace(0, len(self) - 1, _RIVALS).astype(np.int64))
        return Rivals.of(self._file.read("embeddings", rows))

    @cached_property
    def common(self) -> NDArray[np.float32]:
        """The embedding (D,) that counts as no evidence: zero for cosine, the mean of the gallery for Euclidean."""
        total = np.zeros(self.record.network.dim)
        if self.record.network.metric == "euclidean":
            for rows in self._file.blocks(_BLOCK):
                total += self._file.read("embeddings", rows).sum(axis=0, dtype=np.float64) / len(self)
        return total.astype(np.float32)
