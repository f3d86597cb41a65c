"""Going over images with all methods, a shard at a time: what a shard gave is kept in a file, to be resumed from."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builder.shards import Shards
from ..data.preprocess import Preprocess
from ..data.samples import Samples
from ..errors import DataError, UnreadableError
from ..nets.inference import Embedded, Gathered, embed, tensor_batches
from ..nets.network import Network
from ..utils.progress import counting
from .method import Method


@dataclass(frozen=True)
class Passes:
    """How images are gone over.

    Attributes:
        net: The network.
        batch_size: Images a batch; no batch reaches over a shard's end.
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
            shards: Of it.
            pooled: Keep pooled vectors, where there are any.

        Returns:
            What `nets.inference.embed` gives.

        Raises:
            DataError: If no image can be read, or one cannot and `strict` is set.
        """
        kept, embeddings, vectors = (Gathered(len(samples)) for _ in range(3))
        with counting("gallery", sum(len(shards.rows(number)) for number in shards.unfinished("embedded"))) as count:
            for number in range(len(shards)):
                rows = shards.rows(number)
                if not shards.done("embedded", number):
                    shards.write("embedded", number, **self._embedded(samples.subset(rows), count, pooled=pooled))
                found = shards.read("embedded", number)
                if len(found["kept"]):
                    kept.add(found["kept"] + rows.start)
                    embeddings.add(found["embeddings"])
                    pooled &= "pooled" in found
                    if pooled:
                        vectors.add(found["pooled"])
        if not len(kept):
            raise DataError(f"none of the {len(samples)} images can be read; see the warnings above")
        return Embedded(kept.result(), embeddings.result(), vectors.result() if pooled else None)

    def _embedded(self, samples: Samples, count: Any, *, pooled: bool) -> dict[str, NDArray[Any]]:
        try:
            seen = embed(
                self.net,
                samples,
                batch_size=self.batch_size,
                strict=self.strict,
                workers=self.workers,
                count=count,
                pooled=pooled,
            )
        except UnreadableError:
            return {"kept": np.empty(0, dtype=np.int64)}
        known = {} if seen.pooled is None else {"pooled": seen.pooled}
        return {"kept": seen.kept, "embeddings": seen.embeddings, **known}

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
        """Run methods over some images in one size.

        Args:
            test: The data set.
            among: (n,) indices of the images.
            methods: What explains; their scores are added to.
            preprocess: Of the size.
            shards: Of `among`.
            what: What is being done, for the progress.
            reference: Run beside, for each method's correlation with it; None for none.

        Returns:
            The indices of those that were read, their embeddings by the first method, and the number of masks.

        Raises:
            DataError: If no image can be read, or a mask cannot be used.
        """
        kept, embeddings, masks = Gathered(len(among)), Gathered(len(among)), 0
        with counting(what, sum(len(shards.rows(number)) for number in shards.unfinished("explained"))) as count:
            for number in range(len(shards)):
                if not shards.done("explained", number):
                    rows = shards.rows(number)
                    found = self._shard(test, among[rows.start : rows.stop], methods, preprocess, reference, count)
                    shards.write("explained", number, **found)
                found = shards.read("explained", number)
                if len(found["kept"]):
                    kept.add(found["kept"])
                    embeddings.add(found["embeddings"])
                    masks += int(found["masks"])
                    for place, method in enumerate(methods):
                        mine = f"{place}."
                        method.add({key.removeprefix(mine): found[key] for key in found if key.startswith(mine)})
        if not len(kept):
            raise DataError(f"none of the {len(among)} images can be read; see the warnings above")
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
        """Give all that came of a shard, as arrays."""
        parts = [method.anew() for method in methods]
        # Where the reference is one of the methods, its row is of the same run.
        listed = next((part for part, method in zip(parts, methods, strict=True) if method is reference), None)
        kept, embeddings, masks = [among[:0]], [np.empty((0, self.net.dim), np.float32)], 0
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
                scored, truth, ignore = _masks(preprocess, test, indices)
                masks += len(scored)
                imitated = None
                if reference is not None:
                    imitated = (reference.explain if listed is None else listed.run)(images, indices)
                for part in parts:
                    explanation = imitated if imitated is not None and part is listed else part.run(images, indices)
                    if explanation.embeddings is not None and part is parts[0]:
                        embeddings.append(explanation.embeddings)
                    if imitated is not None:
                        part.correlate(explanation, imitated)
                    if len(scored):
                        part.scores.add(explanation.heatmaps[scored], truth, ignore)
                kept.append(indices)
        states = {f"{place}.{key}": value for place, part in enumerate(parts) for key, value in part.state().items()}
        return {
            "kept": np.concatenate(kept),
            "embeddings": np.concatenate(embeddings),
            "masks": np.array(masks),
            **states,
        }


def _masks(
    preprocess: Preprocess, test: Samples, indices: NDArray[np.int64]
) -> tuple[list[int], NDArray[np.bool_], NDArray[np.bool_]]:
    """Read the batch's masks at input size; images without one are left out."""
    scored, truth, ignored = [], [], []
    for place, index in enumerate(indices.tolist()):
        mask = test.mask(index) if test.has_masks else None
        if mask is None:
            continue
        ignore = test.ignore(index)
        seen = preprocess.mask(mask)
        unseen = np.zeros_like(seen) if ignore is None else preprocess.mask(ignore)
        if not (seen & ~unseen).any():
            raise DataError(
                f"the mask of {test.ids[index]} shows no object at {seen.shape[1]} x {seen.shape[0]} pixels; "
                "mend or remove it"
            )
        scored.append(place)
        truth.append(seen)
        ignored.append(unseen)
    size = preprocess.input_size
    return scored, np.asarray(truth, bool).reshape(-1, *size), np.asarray(ignored, bool).reshape(-1, *size)
