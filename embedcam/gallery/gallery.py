"""Search a gallery index and explain what is found: the network sees the query, and no gallery image."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.images import read_image
from ..data.preprocess import Preprocess
from ..database.neighbors import Neighbors, searchable
from ..errors import DataError
from .format import TEXTS, IndexFile
from .items import Grid, Item
from .matches import Match, Matches, Rivals
from .names import Names
from .searching import Hit, Searcher, find

if TYPE_CHECKING:
    from ..nets.network import Network

logger = logging.getLogger("embedcam")

# Embeddings up to this size in bytes are kept in memory; of larger galleries, blocks are read for every search.
_IN_MEMORY = 2**28
_BLOCK = 2**16
_RIVALS = 64
# Quantised embeddings of search engines change similarities by less; those of other images by more.
_TOLERANCE = 0.1


class Gallery:
    """A gallery that can be searched and whose matches are explained; made by `Gallery.open`.

    Args:
        file: An index.
        net: The network that the index was made with; None for the one that it records.

    Attributes:
        record: What the images have in common.
        path: Path of the index.

    Raises:
        DatabaseError: If the index is one of another network.
    """

    def __init__(self, file: IndexFile, net: Network | None = None) -> None:
        self._file, self.path, self.record = file, file.path, file.record
        self._net = None if net is None else self._same(net)
        self._neighbors: Neighbors | None = None
        self._names: dict[str, Names] = {}

    @classmethod
    def open(cls, path: str | Path, net: Network | None = None) -> Gallery:
        """Open an index.

        Args:
            path: A file written by `index` or `embedcam index`.
            net: The network that it was made with; None for the one that it records, which is loaded when images are
                searched for, and not to explain stored ones.

        Returns:
            The gallery.

        Raises:
            DatabaseError: If there is no such file, it is damaged or newer, or of another network.
        """
        return cls(IndexFile(Path(path)), net)

    @property
    def net(self) -> Network:
        """The network, loaded on first use if none was given."""
        if self._net is None:
            self._net = self._same(self.record.network.load(self.path.parent))
        return self._net

    def _same(self, net: Network) -> Network:
        self.record.require_same(net, self.path)
        return net

    @property
    def preprocess(self) -> Preprocess:
        """Turns a picture into an input of the network."""
        return self.record.network.preprocess if self._net is None else self._net.preprocess

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._file)

    def __repr__(self) -> str:
        net = self.record.network
        return f"<Gallery of {len(self)} images, {net.architecture} at {net.layer}>"

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

    def search(
        self, images: Any, top: int = 10, *, searcher: Searcher | None = None, ids: Sequence[str] | None = None
    ) -> Matches:
        """Find the most similar images of the gallery, and explain why they are.

        Args:
            images: Pictures, Pillow images or uint8 (H, W, 3); or a batch (B, 3, H, W), normalised, of the network's
                input size.
            top: Number of hits per query.
            searcher: What finds them; None for an exact search of the index. See `open_searcher`.
            ids: Names of the queries; their numbers if None.

        Returns:
            The matches.

        Raises:
            NetworkError: If the gallery was opened without a network, and the recorded one cannot be loaded.
            DataError: If the images are none of these, an embedding is not finite, or the searcher cannot search.
        """
        queries = self.see(images, ids)
        embeddings = np.stack([query.embedding for query in queries])
        if searcher is None:
            return self.explain_hits(
                queries, [[Hit(row) for row in own] for own in self.nearest(embeddings, top)[0].tolist()]
            )
        matches = self.explain_hits(queries, find(searcher, embeddings, top))
        self._compare_scores(matches)
        return matches

    def explain_hits(self, images: Any, hits: Sequence[Sequence[Hit]], *, ids: Sequence[str] | None = None) -> Matches:
        """Explain hits of any search.

        A hit that is not in the gallery is explained from its picture, on which the network runs.

        Args:
            images: As for `search`; or what `see` returned of them.
            hits: For each image its hits, the best first.
            ids: Names of the images; their numbers if None.

        Returns:
            The matches; hits that are in neither the index nor a file are `missing`, with a warning.

        Raises:
            NetworkError: As for `search`.
            DataError: If the images are none of these, or not as many as there are lists of hits.
        """
        given = isinstance(images, list) and all(isinstance(image, Item) for image in images)
        queries: list[Item] = images if given else self.see(images, ids)
        if len(hits) != len(queries):
            raise DataError(f"got hits of {len(hits)} queries for {len(queries)} images; give a list of hits for each")
        rows = {hit: self._row_of(hit) for hit in dict.fromkeys(hit for own in hits for hit in own)}
        stored = {hit: row for hit, row in rows.items() if row is not None}
        found: dict[Hit, Item | None] = dict(zip(stored, self.items(list(stored.values())), strict=True))
        found |= {hit: self._seen(hit) for hit in rows if hit not in stored}
        if missing := [hit for hit, item in found.items() if item is None]:
            more = f" and {len(missing) - 1} more hits are" if len(missing) > 1 else " is"
            logger.warning("%s%s not explained: not in %s, and no picture to read", missing[0], more, self.path)
        explained, left_out = [], []
        for query, own in zip(queries, hits, strict=True):
            items = [(rank, hit, found[hit]) for rank, hit in enumerate(own, 1)]
            explained.append([replace(self._match(query, item), score=hit.score) for _, hit, item in items if item])
            left_out.append({rank: hit for rank, hit, item in items if item is None})
        return Matches(queries, explained, left_out)

    def _row_of(self, hit: Hit) -> int | None:
        """Find a hit in the index by its id or path."""
        row = self._row("ids", hit.id) if isinstance(hit.id, str) else hit.id if 0 <= hit.id < len(self) else None
        path = _path(hit)
        return self._row("paths", str(Path(path).absolute())) if row is None and path else row

    def _seen(self, hit: Hit) -> Item | None:
        """Run the network on the picture of a hit that is not in the index."""
        path = _path(hit)
        try:
            return replace(self.see([read_image(Path(path))], [str(hit)])[0], path=path) if path else None
        except DataError:
            return None

    def _compare_scores(self, matches: Matches) -> None:
        """Warn if a search engine's scores are not the similarities of the images that it names."""
        cosine, apart = self.record.network.metric == "cosine", []
        for match in (match for own in matches for match in own):
            assert match.score is not None
            distance = 1 - match.score if cosine else -match.score
            length = (
                1.0 if cosine else max(match.distance, distance, 0.01 * float(np.linalg.norm(match.query.embedding)))
            )
            apart.append(abs(distance - match.distance) / length)
        if apart and np.median(apart) > _TOLERANCE:
            logger.warning(
                "the search engine's scores differ from the similarities of the images in %s, by %.2g in the median; "
                "check that it has the embeddings of this index, under its ids",
                self.path,
                np.median(apart),
            )

    def see(self, images: Any, ids: Sequence[str] | None = None) -> list[Item]:
        """Run the network on images.

        Args:
            images: As for `search`.
            ids: Likewise.

        Returns:
            What `explain_match` takes.
        """
        import torch

        from ..nets import layers
        from .descriptors import describe

        net, preprocess, space = self.net, self.preprocess, self.record.space
        batch = layers.as_images(net, torch.as_tensor(preprocess.batch(images)))
        if tuple(batch.shape[2:]) != preprocess.input_size:
            raise DataError(f"the index has images of {preprocess.input_size} pixels, got {tuple(batch.shape[2:])}")
        with layers.evaluating(net), torch.inference_mode():
            seen = net.activations(batch, None if space is None else space.layer or None)
            codes = None if space is None else describe(space, seen, self.record.geometry).cpu().numpy()
            cells = net.cells(seen).embeddings.permute(0, 2, 3, 1).float().cpu().numpy()
            embeddings = seen.embeddings.float().cpu().numpy()
        if not searchable(embeddings).all():
            raise DataError("the embedding of a query is not finite; check the image")
        names = [str(number) for number in range(len(batch))] if ids is None else ids
        grids = [None] * len(batch) if codes is None else [self._grid(each) for each in codes]
        return [
            Item(name, "", None, embedding, own, self.record.geometry, preprocess, grid)
            for name, embedding, own, grid in zip(names, embeddings, cells, grids, strict=True)
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
        """
        at, geometry = np.asarray(rows, np.int64), self.record.geometry
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

    def explain_match(self, query: Item | str | int, hit: Item | str | int) -> Match:
        """Explain why two images are similar.

        Args:
            query: Of `see`, or the id or row of an image of the gallery.
            hit: Likewise.

        Returns:
            The match.

        Raises:
            DataError: If there is no such image.
        """
        ours, theirs = (
            side if isinstance(side, Item) else self.items([self.row(side) if isinstance(side, str) else side])[0]
            for side in (query, hit)
        )
        return self._match(ours, theirs)

    def _match(self, query: Item, hit: Item) -> Match:
        cosine, common = self.record.network.metric == "cosine", self.common
        one, other = (item.embedding.astype(np.float64) for item in (query, hit))
        similarity = float((one - common) @ (other - common))
        distance = max(1 - similarity, 0.0) if cosine else float(np.linalg.norm(one - other))
        return Match(query, hit, common, similarity, distance, self.rivals)

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


def _path(hit: Hit) -> str:
    return hit.path or (hit.id if isinstance(hit.id, str) else "")
