"""The partners of each anchor: positives of its label, negatives of other labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


class Partners:
    """Draws positives and negatives with a counter-based generator keyed by (seed, image index).

    The partners of an image depend on nothing else, so any number of processes and a resumed run draw the same ones.
    An image that is the only one of its label is its own positive.

    Args:
        labels: (N,) int64.
        names: Names of the labels, for messages.
        pairs: Triplets per image.
        seed: Any integer.

    Attributes:
        alone: Number of labels with a single image.

    Raises:
        DataError: If `pairs` is below 1, or there is only one label.
    """

    def __init__(self, labels: NDArray[np.int64], names: Sequence[str], pairs: int, seed: int = 0) -> None:
        if pairs < 1:
            raise DataError(f"an image needs at least 1 pair, got {pairs}; set --pairs to 1 or more")
        different, counts = np.unique(labels, return_counts=True)
        if len(different) < 2:
            only = names[different[0]] if len(different) and different[0] < len(names) else "none"
            raise DataError(f"a triplet needs two classes, found one only: {only!r}; add images of another class")
        self.alone = int((counts == 1).sum())
        self._labels, self._pairs, self._seed = labels, pairs, seed
        # Sorted by label, a class is one block: its members lie inside, all negatives outside.
        self._order = np.argsort(labels, kind="stable")
        ends = np.cumsum(counts)
        self._blocks = {
            int(label): (int(end - n), int(end)) for label, end, n in zip(different, ends, counts, strict=True)
        }
        # One generator, reset for every anchor: creating one takes five times as long as drawing from it.
        self._philox = np.random.Philox(0)
        self._generator, self._fresh = np.random.Generator(self._philox), self._philox.state

    def draw(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the partners of an anchor uniformly, with replacement.

        Args:
            index: Index of the anchor.

        Returns:
            Positives (pairs,): other images of its label, or the anchor if there is none; negatives (pairs,): images of
            other labels.
        """
        label = int(self._labels[index])
        start, end = self._blocks[label]
        position = start + int(np.searchsorted(self._order[start:end], index))  # blocks keep the order of the images
        return self._draw(label, (self._seed, index), position if end - start > 1 else None)

    def draw_outside(self, label: int, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the partners of an anchor that is not one of these images, such as a test image.

        Args:
            label: Label of the anchor.
            index: Index of the anchor in its own data set.

        Returns:
            Positives (pairs,): images of the label; negatives (pairs,): images of other labels.
        """
        return self._draw(label, (self._seed + index, len(self._labels)), None)

    def _draw(
        self, label: int, key: tuple[int, int], excluded: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw with a key; `excluded` is the position in `_order` that is no positive."""
        self._fresh["state"]["key"] = np.array([part % 2**64 for part in key], dtype=np.uint64)
        self._philox.state = self._fresh
        generator = self._generator
        start, end = self._blocks[label]
        positive = start + generator.integers(end - start - (excluded is not None), size=self._pairs)
        if excluded is not None:
            positive += positive >= excluded
        negative = generator.integers(len(self._labels) - (end - start), size=self._pairs)
        negative += np.where(negative >= start, end - start, 0)
        return self._order[positive], self._order[negative]
