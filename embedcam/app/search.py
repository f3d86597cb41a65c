"""Searches a gallery for uploaded pictures, and explains the matches."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.images import read_image
from ..errors import DataError
from ..gallery.items import Item
from ..gallery.matches import Match, versus
from ..show.drawing import bounded
from .limits import Limits, Refused
from .schemas import Hit, MatchOptions, MatchResponse, Rather, base64_text, encode_image
from .uploads import Upload

if TYPE_CHECKING:
    from ..gallery import Gallery

_LONGEST_SIDE, _CACHED_PICTURES = 480, 256


class Search:
    """Searches one gallery. Thread-safe; pictures are addressed by row, so no name from a request becomes a path.

    Args:
        gallery: The gallery, whose network is put into evaluation mode.
        limits: Limits of the server.

    Raises:
        EmbedcamError: If the gallery's network cannot be loaded, or is another one.
    """

    def __init__(self, gallery: Gallery, limits: Limits) -> None:
        self._gallery, self._limits = gallery, limits
        gallery.net.eval()  # permanently, since threads share the network
        self._cached_picture = lru_cache(_CACHED_PICTURES)(self._picture)

    def info(self) -> dict[str, Any]:
        """Describe the gallery.

        Returns:
            Fields of `Info`.
        """
        architecture = self._gallery.record.network.architecture
        facts = dict(self._gallery.facts())
        return {"about": f"{architecture}, {len(self._gallery)} images to search", "facts": facts, "gallery": facts}

    def match(self, upload: Upload, options: MatchOptions) -> MatchResponse:
        """Search the gallery for a picture, or compare it with given images of the gallery.

        Args:
            upload: The picture.
            options: Options of the response.

        Returns:
            The matches.

        Raises:
            Refused: If the picture cannot be read, or is too large.
            DataError: If an image that is asked for is not in the gallery.
        """
        picture, gallery = upload.picture(self._limits), self._gallery
        (query,) = gallery.see([picture], [upload.name])
        rows = [gallery.row(name) for name in options.hit]
        if not rows:
            rows = gallery.nearest(query.embedding[None], options.top)[0][0].tolist()
        matches = [gallery.explain_match(query, row) for row in rows]
        part = query.preprocess.seen((picture.height, picture.width))
        cells, seen = "cells" in options.include, "picture" in options.include
        centres = query.shares(np.indices(query.cells.shape[:2]).transpose(1, 2, 0), query.geometry)
        return MatchResponse(
            image=upload.name,
            width=picture.width,
            height=picture.height,
            seen=part,
            rows=centres[:, 0, 0].tolist(),
            columns=centres[0, :, 1].tolist(),
            metric=gallery.record.network.metric,
            cells=_directions(query, gallery.common) if cells else None,
            picture=base64_text(encode_image(bounded(picture.crop(part), _LONGEST_SIDE), "JPEG")) if seen else None,
            hits=[
                Hit(
                    rank=rank,
                    picture=f"gallery/{row}" if match.hit.path and Path(match.hit.path).is_file() else None,
                    cells=_directions(match.hit, gallery.common) if cells else None,
                    first_rather_than_this=_rather(matches[0], match) if options.versus else None,
                    **_without_path(match),
                )
                for rank, (row, match) in enumerate(zip(rows, matches, strict=True), 1)
            ],
        )

    def picture(self, row: int) -> bytes:
        """Return the part of an image of the gallery that the network saw.

        Args:
            row: Its number.

        Returns:
            A JPEG file.

        Raises:
            Refused: If there is no such image, or its picture cannot be read.
        """
        if not 0 <= row < len(self._gallery):
            raise Refused(404, f"the index has {len(self._gallery)} images and no number {row}; use those of the hits")
        return self._cached_picture(row)

    def _picture(self, row: int) -> bytes:
        (item,) = self._gallery.items([row])
        try:
            if not item.path:
                raise DataError("the index records no file of it")
            image = read_image(Path(item.path))
        except DataError as error:
            reason = str(error).replace(item.path, item.id) if item.path else str(error)
            raise Refused(404, f"no picture of {item.id}: {reason}") from error
        part = item.preprocess.seen((image.height, image.width))
        return encode_image(bounded(image.crop(part), _LONGEST_SIDE), "JPEG")


def _directions(item: Item, common: NDArray[np.float32]) -> str:
    """Base64 of the directions of the cell embeddings, int8; the largest number of each cell is 127 or -127."""
    cells = item.cells - common
    largest = np.abs(cells).max(axis=-1, keepdims=True)
    return base64_text(np.rint(127 * cells / np.maximum(largest, np.finfo(np.float32).tiny)).astype(np.int8).tobytes())


def _without_path(match: Match) -> dict[str, Any]:
    """What a match tells, less what the server keeps to itself."""
    fields = match.to_dict()
    del fields["path"], fields["query"]
    return fields


def _rather(first: Match, match: Match) -> Rather:
    signed, rest = versus(first, match)
    return Rather(contributions=signed.tolist(), rest=rest)
