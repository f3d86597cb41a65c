"""Embed a whole data set in one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import layers
from ..data.loading import batches
from ..data.samples import Samples
from ..errors import DataError
from ..preprocess import Preprocess
from ..progress import counting
from .network import Network


@dataclass(frozen=True)
class Embedded:
    """What one pass over a data set leaves.

    Attributes:
        kept: (N,) indices, in the data set, of the images that could be read.
        embeddings: (N, D) float32.
        pooled: (N, K) float32: each channel's mean over space, if that is all the head sees; else None.
    """

    kept: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    pooled: NDArray[np.float32] | None


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
) -> Embedded:
    """Embed a data set in one forward pass over it.

    Args:
        net: The network; run in evaluation mode and put back.
        samples: The data set.
        batch_size: Images a batch.
        what: What is being done, for the progress.
        strict: Raise instead of leaving an unreadable image out.
        workers: Threads that read ahead.
        count: Called with the number of images of every batch, instead of showing progress.

    Returns:
        Embeddings of the readable images, and what else the pass saw.

    Raises:
        DataError: If no image can be read, or one cannot and `strict` is set.
    """
    kept: list[NDArray[np.int64]] = []
    embeddings: list[NDArray[np.float32]] = []
    pooled: list[NDArray[np.float32]] | None = []
    with layers.evaluating(net), torch.inference_mode():
        loaded = tensor_batches(net, samples, batch_size, what, strict=strict, workers=workers, count=count)
        for indices, images in loaded:
            seen = net.activations(images)
            kept.append(indices)
            embeddings.append(seen.embeddings.float().cpu().numpy())
            if pooled is not None and seen.vector is not None and is_pooled(seen.vector, seen.maps.mean(dim=(2, 3))):
                pooled.append(seen.vector.float().cpu().numpy())
            else:
                pooled = None
    if not kept:
        raise DataError(f"none of the {len(samples)} images can be read; see the warnings above")
    return Embedded(
        np.concatenate(kept), np.concatenate(embeddings), None if pooled is None else np.concatenate(pooled)
    )


def is_pooled(vector: Tensor, means: Tensor) -> bool:
    """Tell whether a head sees nothing but the mean of each channel: then one vector stands for a whole map.

    Args:
        vector: What enters the head (B, F).
        means: Each feature map's mean (B, K).

    Returns:
        Whether they are the same, as closely as sums in another order are.
    """
    return vector.shape == means.shape and torch.allclose(vector, means, rtol=1e-4, atol=1e-6)
