"""Search a gallery index and explain what is found: the network sees the query, and no gallery image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images import read_image
from ..data.preprocess import Preprocess
from ..database.neighbors import searchable
from ..errors import DataError
from .index_file import IndexFile
from .items import Item
from .matches import Match, Matches
from .searching import Hit, Searcher, find
from .stored import StoredImages

if TYPE_CHECKING:
    from ..nets.network import Network

logger = logging.getLogger("embedcam")

# Quantised embeddings of search engines change similarities by less; those of other images by more.
_TOLERANCE = 0.1


class Gallery(StoredImages):
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
        super().__init__(file)
        self._net = None if net is None else self._same(net)

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
        return super().preprocess if self._net is None else self._net.preprocess

    def __repr__(self) -> str:
        net = self.record.network
        return f"<Gallery of {len(self)} images, {net.architecture} at {net.layer}>"

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
            DataError: If the images are none of these or not as many as `ids`, `top` is less than 1, an embedding is
                not finite, or the searcher cannot search.
        """
        if top < 1:
            raise DataError(f"top is the number of hits, at least 1, got {top}")
        queries = self.see(images, ids)
        embeddings = np.stack([query.embedding for query in queries])
        if searcher is None:
            return self.explain_hits(
                queries, [[Hit(row) for row in own] for own in self.nearest(embeddings, top)[0].tolist()]
            )
        hits = find(searcher, embeddings, top)
        if empty := [query.id for query, own in zip(queries, hits, strict=True) if not own]:
            logger.warning("the search engine found nothing for %s; check that it has images", ", ".join(empty))
        matches = self.explain_hits(queries, hits)
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
            logger.warning("%.200s%s not explained: not in %s, and no picture to read", missing[0], more, self.path)
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
        if not Path(path).is_file():  # such as a pipe, which would be waited for
            return None
        try:
            return replace(self.see([read_image(Path(path))], [str(hit)])[0], path=path)
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
        names = [str(number) for number in range(len(batch))] if ids is None else ids
        if not len(batch) or len(names) != len(batch):
            raise DataError(f"got {len(batch)} images and {len(names)} ids; give at least one image, and its id")
        with layers.evaluating(net), torch.inference_mode():
            seen = net.activations(batch, None if space is None else space.layer or None)
            codes = None if space is None else describe(space, seen, self.record.geometry).cpu().numpy()
            cells = net.cells(seen).embeddings.permute(0, 2, 3, 1).float().cpu().numpy()
            embeddings = seen.embeddings.float().cpu().numpy()
        if not searchable(embeddings).all():
            raise DataError("the embedding of a query is not finite; check the image")
        grids = [None] * len(batch) if codes is None else [self._grid(each) for each in codes]
        return [
            Item(name, "", None, embedding, own, self.record.geometry, preprocess, grid)
            for name, embedding, own, grid in zip(names, embeddings, cells, grids, strict=True)
        ]

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


def _path(hit: Hit) -> str:
    return hit.path or (hit.id if isinstance(hit.id, str) else "")
