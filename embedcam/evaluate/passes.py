"""Run all methods over the images, shard by shard; the results of each shard are a part of the run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builder.embedding import embed_shards
from ..data.preprocess import Preprocess
from ..data.samples import Samples
from ..errors import DataError, UnreadableError
from ..nets.inference import Embedded, Gathered, tensor_batches
from ..nets.network import Network
from ..utils.progress import counting
from ..utils.shards import Shards
from .method import Method
from .scores import nest, nested

logger = logging.getLogger("embedcam")


@dataclass(frozen=True)
class Passes:
    """How images are read and embedded.

    Attributes:
        net: The network.
        batch_size: Images per batch; a batch never spans two shards.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.
    """

    net: Network
    batch_size: int
    strict: bool
    workers: int

    def embed(self, samples: Samples, shards: Shards, *, pooled: bool) -> Embedded:
        """Embed a data set.

        Args:
            samples: The data set.
            shards: Of the data set.
            pooled: Keep pooled vectors, if the head starts with global average pooling.

        Returns:
            As `nets.inference.embed`.

        Raises:
            DataError: If no image can be read, or one cannot and `strict` is set.
        """
        options: dict[str, Any] = {"batch_size": self.batch_size, "strict": self.strict, "workers": self.workers}
        embed_shards(self.net, samples, shards, what="gallery", pooled=pooled, **options)
        kept, embeddings, vectors = (Gathered(len(samples)) for _ in range(3))
        for number in range(len(shards)):
            shard = shards.read(number)
            if len(shard["kept"]):
                kept.add(shard["kept"])
                embeddings.add(shard["embeddings"])
                pooled &= "pooled" in shard
                if pooled:
                    vectors.add(shard["pooled"])
        if not len(kept):
            raise DataError(f"none of the {len(samples)} images can be read; see the warnings above")
        return Embedded(kept.result(), embeddings.result(), vectors.result() if pooled else None)

    def run(
        self,
        test: Samples,
        among: NDArray[np.int64],
        methods: Sequence[Method],
        preprocess: Preprocess,
        shards: Shards,
        *,
        what: str,
        reference: Method | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """Run methods over some images at one size, and add to their scores.

        Args:
            test: The data set.
            among: (n,) indices of the images.
            methods: Ways to explain.
            preprocess: With the size.
            shards: Of `among`.
            what: Shown with the progress.
            reference: With which each method's maps are correlated; None for none.

        Returns:
            The indices of the images that could be read, their embeddings by the first method, and the number of masks.

        Raises:
            DataError: If no image can be read or no mask used, or one cannot and `strict` is set.
        """
        for method in methods:
            method.input_size = preprocess.input_size
        kept, embeddings, masks, unusable = Gathered(len(among)), Gathered(len(among)), 0, 0
        unfinished = shards.unfinished()
        with counting(what, sum(len(shards.images(number)) for number in unfinished)) as count:
            for number in range(len(shards)):
                if number in unfinished:
                    rows = shards.images(number)
                    shard = self._shard(test, among[rows.start : rows.stop], methods, preprocess, reference, count)
                    shards.write(number, **shard)
                shard = shards.read(number)
                if len(shard["kept"]):
                    kept.add(shard["kept"])
                    embeddings.add(shard["embeddings"])
                    masks += int(shard["masks"])
                    unusable += int(shard["unusable"])
                    for position, method in enumerate(methods):
                        method.merge(nested(str(position), shard))
        if not len(kept):
            raise DataError(f"none of the {len(among)} images can be read; see the warnings above")
        if unusable and not masks:
            raise DataError(f"none of the {unusable} masks can be used; see the warnings above")
        if unusable:
            logger.warning("%d of %d masks could not be used and were left out", unusable, masks + unusable)
        return kept.result(), embeddings.result(), masks

    def _shard(
        self,
        test: Samples,
        among: NDArray[np.int64],
        methods: Sequence[Method],
        preprocess: Preprocess,
        reference: Method | None,
        count: Any,
    ) -> dict[str, NDArray[Any]]:
        """Explain the images of a shard; return indices, embeddings and the state of each method as arrays."""
        parts = [Method(method.name, method.explain) for method in methods]  # with scores of their own
        # If the reference is one of the methods, it is run once for both.
        listed = next((part for part, method in zip(parts, methods, strict=True) if method is reference), None)
        kept, embeddings, masks, unusable = [among[:0]], [np.empty((0, self.net.dim), np.float32)], 0, 0
        loaded = tensor_batches(
            self.net,
            test.subset(among),
            self.batch_size,
            "",
            preprocess=preprocess,
            strict=self.strict,
            workers=self.workers,
            count=count,
        )
        with contextlib.suppress(UnreadableError):
            for rows, images in loaded:
                indices = among[rows]
                (scored, truth, ignore), wrong = _masks(preprocess, test, indices, strict=self.strict)
                masks += len(scored)
                unusable += wrong
                expected = None
                if reference is not None:
                    expected = (reference.explain if listed is None else listed.run)(images, indices)
                for part in parts:
                    explanation = expected if expected is not None and part is listed else part.run(images, indices)
                    if explanation.embeddings is not None and part is parts[0]:
                        embeddings.append(explanation.embeddings)
                    if expected is not None:
                        part.correlate(explanation, expected)
                    if len(scored):
                        part.scores.add(explanation.heatmaps[scored], truth, ignore)
                kept.append(indices)
        arrays: dict[str, NDArray[Any]] = {
            "kept": np.concatenate(kept),
            "embeddings": np.concatenate(embeddings),
            "masks": np.array(masks),
            "unusable": np.array(unusable),
        }
        for position, part in enumerate(parts):
            arrays |= nest(str(position), part.state())
        return arrays


def _masks(
    preprocess: Preprocess, test: Samples, indices: NDArray[np.int64], *, strict: bool
) -> tuple[tuple[list[int], NDArray[np.bool_], NDArray[np.bool_]], int]:
    """Read the masks of a batch at input size: positions in the batch of images with one, masks and ignore masks.

    Also returned is how many masks cannot be used; each is left out with a warning.
    """
    positions, masks, ignored, unusable = [], [], [], 0
    for position, index in enumerate(indices.tolist() if test.has_masks else ()):
        try:
            both = _mask(preprocess, test, index)
        except DataError as error:
            if strict:
                raise
            logger.warning("mask of %s left out: %s", test.ids[index], error)
            unusable += 1
            continue
        if both is not None:
            positions.append(position)
            masks.append(both[0])
            ignored.append(both[1])
    size = preprocess.input_size
    truth, ignore = (np.asarray(each, bool).reshape(-1, *size) for each in (masks, ignored))
    return (positions, truth, ignore), unusable


def _mask(preprocess: Preprocess, test: Samples, index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    full = test.mask(index)
    if full is None:
        return None
    mask, ignore = preprocess.mask(full), test.ignore(index)
    ignore = np.zeros_like(mask) if ignore is None else preprocess.mask(ignore)
    if not (mask & ~ignore).any():
        raise DataError(
            f"the mask of {test.ids[index]} shows no object at {mask.shape[1]} x {mask.shape[0]} pixels; "
            "fix or remove it"
        )
    return mask, ignore
