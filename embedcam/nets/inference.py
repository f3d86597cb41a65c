"""Embed a whole data set in one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """The result of one pass over a data set.

    Attributes:
        kept: (N,) indices, in the data set, of the images that could be read.
        embeddings: float32 (N, D).
        pooled: float32 (N, K), each channel's mean over space, if it was asked for and the head sees nothing else; None
            otherwise.
    """

    kept: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    pooled: NDArray[np.float32] | None


class Gathered:
    """Rows collected batch by batch in one array; concatenating a list of batches would need twice the memory.

    Args:
        most: Largest number of rows. Rows that are not added take no memory.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0
        self._rows: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, rows: NDArray[Any]) -> None:
        """Append rows.

        Args:
            rows: (B, ...), of the same type and, except for B, the same shape in every call.
        """
        if self._rows is None:
            self._rows = np.empty((self._most, *rows.shape[1:]), rows.dtype)
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def result(self) -> NDArray[Any]:
        """Return all rows.

        Returns:
            (N, ...), a view.
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
    """Iterate over a data set in batches on the network's device, with progress; skip unreadable images.

    Args:
        net: The network; determines the device, the number type and, unless `preprocess` is given, the preprocessing.
        samples: The data set.
        batch_size: Images per batch.
        what: Name of the activity, for the progress display.
        preprocess: Preprocessing to use instead of the network's, for example for another size.
        strict: Raise an error on an unreadable image instead of skipping it.
        workers: Threads that read ahead.
        count: Called with the number of images of every batch, instead of showing progress.

    Yields:
        Indices (b,) and images (b, 3, H, W), see `to_network`.

    Raises:
        DataError: If an image is unreadable and `strict` is set.
    """
    loaded = batches(samples, preprocess or net.preprocess, batch_size, strict=strict, workers=workers)
    with contextlib.nullcontext(count) if count is not None else counting(what, len(samples)) as done:
        for indices, images in loaded:
            yield indices, to_network(net, torch.from_numpy(images))
            done(len(indices))


def to_network(net: Network, images: Tensor) -> Tensor:
    """Copy a batch to the device and number type of a network; a copy to a GPU overlaps with its work.

    Args:
        net: The network.
        images: Images (B, 3, H, W) or activations (B, ...), in ordinary memory.

    Returns:
        The same shape; images in the order in memory that suits the network.
    """
    memory_format = net.memory_format if images.ndim == 4 else torch.contiguous_format
    return layers.as_input(net, images).contiguous(memory_format=memory_format)


def collected(
    results: Iterable[tuple[NDArray[np.int64], Sequence[Tensor]]],
) -> Iterator[tuple[NDArray[np.int64], list[NDArray[Any]]]]:
    """Copy the results of batches to the host, each after the next is on its way: a GPU never waits for the host.

    Args:
        results: Indices (b,) of a batch and the tensors that were computed of it.

    Yields:
        The same, as arrays.
    """
    waiting: tuple[NDArray[np.int64], list[Tensor], Any] | None = None
    for indices, tensors in results:
        copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        event = None
        if tensors[0].device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(tensors[0].device))
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = indices, copies, event
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(
    indices: NDArray[np.int64], copies: list[Tensor], event: Any
) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
    if event is not None:
        event.synchronize()
    return indices, [copy.numpy() for copy in copies]


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
    """Embed a data set in one pass.

    The result takes 4 D bytes of memory per image, and 4 K more for pooled vectors.

    Args:
        net: The network; runs in evaluation mode, its mode is restored.
        samples: The data set.
        batch_size: Images per batch.
        what: Name of the activity, for the progress display.
        strict: Raise an error on an unreadable image instead of skipping it.
        workers: Threads that read ahead.
        count: Called with the number of images of every batch, instead of showing progress.
        pooled: Keep pooled vectors, if there are any.

    Returns:
        Embeddings of the readable images, and their pooled vectors.

    Raises:
        DataError: If no image can be read, or one cannot and `strict` is set.
    """
    kept, embeddings, vectors = (Gathered(len(samples)) for _ in range(3))
    pooled = pooled and net.head_of_means() is not None
    with layers.evaluating(net), torch.inference_mode():
        loaded = tensor_batches(net, samples, batch_size, what, strict=strict, workers=workers, count=count)
        seen = ((indices, net.activations(images)) for indices, images in loaded)
        results = (
            (indices, (each.embeddings, each.maps.mean(dim=(2, 3))) if pooled else (each.embeddings,))
            for indices, each in seen
        )
        for indices, (own, *means) in collected(results):
            kept.add(indices)
            embeddings.add(own)
            if means:
                vectors.add(*means)
    if not len(kept):
        raise DataError(f"none of the {len(samples)} images can be read; see the warnings above")
    return Embedded(kept.result(), embeddings.result(), vectors.result() if pooled else None)
