"""Embed a whole data set in one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.loading import batches
from ..data.preprocess import Preprocess
from ..data.samples import Samples
from ..errors import DataError
from ..utils.progress import counting
from . import layers
from .network import Network


@dataclass(frozen=True)
class Embedded:
    """What one pass over a data set leaves.

    Attributes:
        kept: (N,) indices, in the data set, of the images that could be read.
        embeddings: (N, D) float32.
        pooled: (N, K) float32: each channel's mean over space, if that is all the head sees and it was asked for; else
            None.
    """

    kept: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    pooled: NDArray[np.float32] | None


class Gathered:
    """Rows of numbers, gathered batch by batch in one array: a list of batches would be there twice in the end.

    Args:
        most: How many rows there can be. Those that do not come take no memory.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0
        self._rows: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, rows: NDArray[Any]) -> None:
        """Append rows.

        Args:
            rows: (B, ...), the same shape and type every time but for B.
        """
        if self._rows is None:
            self._rows = np.empty((self._most, *rows.shape[1:]), rows.dtype)
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def result(self) -> NDArray[Any]:
        """Give all rows.

        Returns:
            (N, ...), not a copy.
        """
        assert self._rows is not None
        return self._rows[: self._count]


def tensor_batches(
    net: Network,
    samples: Samples,
    batch_size: int,
    what: str,
    *,
    preprocess: Preprocess | None = None,
    strict: bool = False,
    workers: int = 2,
    count: Callable[[int], None] | None = None,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Go through a data set in batches on the network's device, with progress; unreadable images are left out.

    Args:
        net: Its device and, unless another is given, its preprocessing are used.
        samples: The data set.
        batch_size: Images a batch.
        what: What is being done, for the progress.
        preprocess: Instead of the network's, to look at another size.
        strict: Raise instead of leaving an unreadable image out.
        workers: Threads that read ahead.
        count: Called with the number of images of every batch, instead of showing progress.

    Yields:
        Indices (b,) and images (b, 3, H, W), the channels last in memory: convolutions are quicker so.

    Raises:
        DataError: If an image is unreadable and `strict` is set.
    """
    loaded = batches(samples, preprocess or net.preprocess, batch_size, strict=strict, workers=workers)
    with contextlib.nullcontext(count) if count is not None else counting(what, len(samples)) as done:
        for indices, images in loaded:
            yield indices, torch.from_numpy(images).to(net.device, memory_format=torch.channels_last)
            done(len(indices))


def embed(
    net: Network,
    samples: Samples,
    *,
    batch_size: int = 32,
    what: str = "embedding",
    strict: bool = False,
    workers: int = 2,
    count: Callable[[int], None] | None = None,
    pooled: bool = True,
) -> Embedded:
    """Embed a data set in one forward pass over it.

    What is kept in memory are 4 D bytes an image, and 4 K more for pooled vectors.

    Args:
        net: The network; run in evaluation mode and put back.
        samples: The data set.
        batch_size: Images a batch.
        what: What is being done, for the progress.
        strict: Raise instead of leaving an unreadable image out.
        workers: Threads that read ahead.
        count: Called with the number of images of every batch, instead of showing progress.
        pooled: Keep pooled vectors, where there are any.

    Returns:
        Embeddings of the readable images, and what else the pass saw.

    Raises:
        DataError: If no image can be read, or one cannot and `strict` is set.
    """
    kept, embeddings = Gathered(len(samples)), Gathered(len(samples))
    vectors = Gathered(len(samples)) if pooled else None
    with layers.evaluating(net), torch.inference_mode():
        loaded = tensor_batches(net, samples, batch_size, what, strict=strict, workers=workers, count=count)
        for indices, images in loaded:
            seen = net.activations(images)
            kept.add(indices)
            embeddings.add(seen.embeddings.float().cpu().numpy())
            if vectors is not None and seen.vector is not None and is_pooled(seen.vector, seen.maps.mean(dim=(2, 3))):
                vectors.add(seen.vector.float().cpu().numpy())
            else:
                vectors = None
    if not len(kept):
        raise DataError(f"none of the {len(samples)} images can be read; see the warnings above")
    return Embedded(kept.result(), embeddings.result(), None if vectors is None else vectors.result())


def is_pooled(vector: Tensor, means: Tensor) -> bool:
    """Tell whether a head sees nothing but the mean of each channel: then one vector stands for a whole map.

    Args:
        vector: What enters the head (B, F).
        means: Each feature map's mean (B, K).

    Returns:
        Whether they are the same, as closely as sums in another order are.
    """
    return vector.shape == means.shape and torch.allclose(vector, means, rtol=1e-4, atol=1e-6)
