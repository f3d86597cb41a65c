"""What the trained part of a network is fed with: images, or a layer's activations computed once."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import layers
from ..data.loading import batches
from ..data.samples import Samples
from ..errors import DataError
from ..nets.embedding import EmbeddingNet
from ..nets.inference import tensor_batches
from ..progress import track

logger = logging.getLogger("embedcam")

_BATCH = 32


def labels_of(samples: Samples) -> NDArray[np.int64]:
    """Give the labels, after checking that one can train with them.

    Args:
        samples: The training images.

    Returns:
        (N,).

    Raises:
        DataError: Without labels, with one class only, or with a class of one image.
    """
    if samples.labels is None:
        raise DataError("training needs labels: put the images of each class into a folder of its own")
    found, counts = np.unique(samples.labels, return_counts=True)
    if len(found) < 2:
        raise DataError(
            f"training needs two classes, found only {samples.names[found[0]]!r}; add images of another class"
        )
    if (counts < 2).any():
        lonely = samples.names[found[counts.argmin()]]
        raise DataError(f"class {lonely!r} has only one training image; add another or remove the class")
    return samples.labels


class Inputs:
    """A data set as the trained part sees it; unreadable images are found, and left out, at the start.

    Use as a context manager: cached activations lie in a file without a name, which the system deletes when it is
    closed, even if the process is killed.

    Args:
        first: The part of the backbone that is not trained; None feeds images.
        net: Its preprocessing and device are used.
        samples: The data set.
        folder: Where cached activations may lie.
        strict: Raise instead of leaving an unreadable image out.
        workers: Threads that read images ahead.

    Raises:
        DataError: If no image can be read, or one cannot and `strict` is set.
    """

    def __init__(
        self, first: nn.Module | None, net: EmbeddingNet, samples: Samples, folder: Path, *, strict: bool, workers: int
    ) -> None:
        self._net, self._workers = net, workers
        self._store: NDArray[np.float32] | None = None
        kept: list[NDArray[np.int64]] = []
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".activations.")  # noqa: SIM115  (closed by close)
        if first is None:
            loaded = batches(samples, net.preprocess, _BATCH, strict=strict, workers=workers)
            kept = [indices for indices, _ in track(loaded, "reading", len(samples), unit=_BATCH)]
        else:
            shape: tuple[int, ...] = ()
            with layers.evaluating(net), torch.inference_mode():
                passes = tensor_batches(net, samples, _BATCH, "caching", strict=strict, workers=workers)
                for indices, images in passes:
                    activations = first(images).float().cpu().contiguous().numpy()
                    kept.append(indices)
                    shape = activations.shape[1:]
                    self._file.write(activations.data)
            self._file.flush()
            self._store = np.memmap(self._file, np.float32, "r", shape=(sum(map(len, kept)), *shape))
        self._samples = samples.subset(np.concatenate(kept))
        if len(self._samples) < len(samples):
            logger.warning("%d of %d images could not be read and are left out", len(samples) - len(self), len(samples))

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self._store = None
        self._file.close()

    @property
    def samples(self) -> Samples:
        """The readable images."""
        return self._samples

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, order: NDArray[np.int64], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Go through chosen images.

        Args:
            order: Rows of the readable images, in the order wanted; repetitions are fine.
            batch_size: Images a batch.

        Yields:
            Rows (b,), and images or activations (b, ...), on the network's device.
        """
        if self._store is not None:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                yield rows, torch.from_numpy(self._store[rows]).to(self._net.device)
            return
        chosen = self._samples.subset(order)
        for places, images in batches(chosen, self._net.preprocess, batch_size, strict=True, workers=self._workers):
            yield order[places], torch.from_numpy(images).to(self._net.device)
