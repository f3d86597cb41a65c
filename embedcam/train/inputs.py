"""The inputs of the trained part of a network: images, or a layer's activations, which are computed once."""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..data.loading import batches, in_order
from ..data.samples import Samples
from ..nets import layers
from ..nets.embedding import EmbeddingNet
from ..nets.inference import tensor_batches, to_network
from ..utils.distributed import Group
from ..utils.progress import track
from .augmentation import augment

logger = logging.getLogger("embedcam")

_BATCH = 32


class Batch(NamedTuple):
    """A batch, and the part of it that this process has.

    Attributes:
        rows: (b,) rows of the readable images.
        own: (n,) positions in the batch of this process's images; all of them if there is one process.
        inputs: Their images or activations (n, ...), on the network's device.
    """

    rows: NDArray[np.int64]
    own: NDArray[np.int64]
    inputs: Tensor


class Inputs:
    """A data set as input of the trained part. Unreadable images are found and skipped at the start.

    Use it as a context manager: cached activations are in an anonymous file, which the system deletes when it is
    closed, even if the process is killed.

    Args:
        first: The part of the backbone that is not trained; None to train the whole backbone on images.
        net: The network; determines preprocessing and device.
        samples: The data set.
        folder: Folder for cached activations.
        strict: Raise an error on an unreadable image instead of skipping it.
        workers: Threads that read images ahead.
        group: The processes that share the images; process r of n has the images r, r + n, r + 2 n, ...

    Raises:
        DataError: If no image can be read, or one cannot and `strict` is set.
    """

    def __init__(
        self,
        first: nn.Module | None,
        net: EmbeddingNet,
        samples: Samples,
        folder: Path,
        *,
        strict: bool,
        workers: int,
        group: Group,
    ) -> None:
        self._net, self._workers, self._group = net, workers, group
        self._store: NDArray[np.float32] | None = None
        self._file: IO[bytes] | None = None
        mine = np.arange(group.rank, len(samples), group.size)
        own = samples.subset(mine)
        options: dict[str, Any] = {"strict": strict, "workers": workers}
        kept: list[NDArray[np.int64]] = []
        if first is None:
            loaded = batches(own, net.preprocess, _BATCH, **options)
            kept = [indices for indices, _ in track(loaded, "reading", len(own), unit=_BATCH)]
        else:
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".activations.")  # noqa: SIM115  (closed by exit)
            shape: tuple[int, ...] = ()
            with layers.evaluating(net), torch.inference_mode():
                for indices, images in tensor_batches(net, own, _BATCH, "caching", **options):
                    activations = first(images).float().cpu().contiguous().numpy()
                    kept.append(indices)
                    shape = activations.shape[1:]
                    self._file.write(activations.data)
            self._file.flush()
            self._store = np.memmap(self._file, np.float32, "r", shape=(sum(map(len, kept)), *shape))
        readable = torch.zeros(len(samples), dtype=torch.uint8, device=net.device)
        readable[torch.from_numpy(mine[np.concatenate(kept)])] = 1
        rows = np.flatnonzero(group.add_up(readable).cpu().numpy())
        self._samples = samples.subset(rows)
        self._owner = rows % group.size
        self._store_row = np.empty_like(rows)  # in the store of the process that has the image
        for rank in range(group.size):
            self._store_row[self._owner == rank] = np.arange(np.count_nonzero(self._owner == rank))
        if len(self._samples) < len(samples):
            logger.warning(
                "%d of %d images could not be read and were left out", len(samples) - len(self), len(samples)
            )

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self._store = None
        if self._file is not None:
            self._file.close()

    @property
    def samples(self) -> Samples:
        """The readable images."""
        return self._samples

    def __len__(self) -> int:
        return len(self._samples)

    def batches(
        self, order: NDArray[np.int64], batch_size: int, augment_with: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Iterate over images in a given order.

        Args:
            order: Rows of the readable images; may repeat.
            batch_size: Images per batch, of all processes together.
            augment_with: Seed and epoch, with which pictures are augmented; None leaves them as they are, as cached
                activations and prepared images always are.

        Yields:
            The batches, with this process's images or activations.
        """
        cuts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        shares = [np.flatnonzero(self._owner[rows] == self._group.rank) for rows in cuts]
        if self._store is not None:
            for rows, own in zip(cuts, shares, strict=True):
                activations = torch.from_numpy(self._store[self._store_row[rows[own]]])
                yield Batch(rows, own, to_network(self._net, activations))
            return
        mine = [
            (number * batch_size + int(place), int(cuts[number][place]))
            for number, own in enumerate(shares)
            for place in own
        ]

        def prepare(item: tuple[int, int]) -> NDArray[np.float32]:
            position, row = item
            image = self._samples.image(row)
            if augment_with is not None and isinstance(image, Image.Image):
                # By the position in the epoch: the same for any number of processes, and another if images repeat.
                image = augment(image, np.random.default_rng([*augment_with, position]))
            return self._net.preprocess(image)

        with contextlib.closing(in_order(prepare, mine, self._workers, batch_size + self._workers, "decode")) as loaded:
            for rows, own in zip(cuts, shares, strict=True):
                images = [torch.from_numpy(image) for image in itertools.islice(loaded, len(own))]
                batch = torch.stack(images) if images else torch.empty(0, 3, *self._net.preprocess.input_size)
                yield Batch(rows, own, to_network(self._net, batch))
