"""Embed a data set shard by shard."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.samples import Samples
from ..database.neighbors import searchable
from ..errors import DataError, UnreadableError
from ..nets.inference import Embedded, embed
from ..nets.network import Network
from ..utils.progress import counting
from ..utils.shards import Shards


def embed_shards(
    net: Network,
    samples: Samples,
    shards: Shards,
    *,
    what: str = "embedding",
    embedded: Embedded | None = None,
    **options: Any,
) -> None:
    """Embed the shards that this process has to do.

    Each becomes a part of the arrays "kept" (n,), indices of the readable images, "embeddings" (n, D), and "pooled"
    (n, K) if `nets.inference.embed` returns pooled vectors.

    Args:
        net: The network.
        samples: The data set.
        shards: Where the results are stored.
        what: Description of the progress.
        embedded: Embeddings of the data set, if they are available already.
        options: Options of `nets.inference.embed`.

    Raises:
        DataError: If an embedding is not finite or too long, or an image cannot be read and `strict` is set.
    """
    unfinished = shards.unfinished()
    with counting(what, sum(len(shards.images(number)) for number in unfinished)) as count:
        for number in unfinished:
            images = shards.images(number)
            if embedded is None:
                part = _embed(net, samples, images, count=count, **options)
            else:
                inside = slice(*np.searchsorted(embedded.kept, [images.start, images.stop]).tolist())
                pooled = None if embedded.pooled is None else embedded.pooled[inside]
                part = Embedded(embedded.kept[inside], embedded.embeddings[inside], pooled)
            vectors = {} if part.pooled is None else {"pooled": part.pooled}
            shards.write(number, kept=part.kept, embeddings=part.embeddings, **vectors)


def read_embeddings(shards: Shards, bounds: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the embeddings of some images, one shard after the other.

    Args:
        shards: Of `embed_shards`.
        bounds: (S + 1,) index of each shard's first readable image, then N.
        indices: (n,) of readable images.

    Returns:
        (n, D).
    """
    shard = np.searchsorted(bounds, indices, side="right") - 1
    rows: NDArray[np.float32] | None = None
    for number in np.unique(shard).tolist():
        here = shard == number
        read = shards.read(number, "embeddings")["embeddings"][indices[here] - bounds[number]]
        if rows is None:
            rows = np.empty((len(indices), read.shape[1]), read.dtype)
        rows[here] = read
    assert rows is not None
    return rows


def _embed(net: Network, samples: Samples, images: range, **options: Any) -> Embedded:
    try:
        part = embed(net, samples.subset(images), **options)
    except UnreadableError:
        return Embedded(np.empty(0, np.int64), np.empty((0, net.dim), np.float32), None)
    unusable = np.flatnonzero(~searchable(part.embeddings))
    if len(unusable):
        name = samples.ids[images[int(part.kept[unusable[0]])]]
        raise DataError(
            f"the embedding of {name} is not finite, or too long to be compared; check the network and its training"
        )
    return Embedded(part.kept + images.start, part.embeddings, part.pooled)
