"""The partners of each anchor, all of them or drawn: positives of its label, negatives of other labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

# Triplets per image of a weighting that is not linear in its partners.
DRAWS = 50


def count_members(labels: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the images of each class, and require two classes.

    Args:
        labels: (N,) int64.
        names: Names of the labels, for messages.

    Returns:
        The labels that occur, in ascending order, and how often.

    Raises:
        DataError: If there is only one.
    """
    different, counts = np.unique(labels, return_counts=True)
    if len(different) < 2:
        only = names[different[0]] if len(different) and different[0] < len(names) else "none"
        raise DataError(f"a triplet needs two classes, found one only: {only!r}; add images of another class")
    return different, counts


@dataclass(frozen=True)
class ClassSums:
    """Sums of the embeddings of each class, which give the mean partners of all triplets of an image.

    The triplet margin is linear in its partners, and the channel weights of Grad-CAM are linear in the margin. So
    their mean over all triplets of an image are the weights of one triplet of the mean positive and the mean negative:
    with N embeddings that sum to S, and n of the anchor's class that sum to T, these are (T - z) / (n - 1) and
    (S - T) / (N - n).

    Attributes:
        sums: (L, D) float64.
        counts: (L,) int64, images of each class.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def zeros(cls, classes: int, dim: int) -> ClassSums:
        """Begin with no image.

        Args:
            classes: L.
            dim: D.

        Returns:
            Sums to `add` to.
        """
        return cls(np.zeros((classes, dim)), np.zeros(classes, dtype=np.int64))

    def add(self, labels: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Add images.

        Args:
            labels: (N,).
            embeddings: (N, D).
        """
        np.add.at(self.sums, labels, embeddings.astype(np.float64))
        np.add.at(self.counts, labels, 1)

    def mean_partners(
        self, labels: NDArray[np.int64], anchors: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Average the positives and the negatives of anchors.

        Args:
            labels: (B,) of the anchors; there must be images of another class.
            anchors: (B, D) embeddings of the anchors, which are among the images; None if they are not.

        Returns:
            Mean positive (B, D), the anchor itself if it is the only image of its class; mean negative (B, D).
        """
        counts, sums = self.counts[labels][:, None], self.sums[labels]
        images, total = self._total
        negatives = (total - sums) / (images - counts)
        if anchors is None:
            return sums / counts, negatives
        others = np.maximum(counts - 1, 1)
        return np.where(counts == 1, anchors, (sums - anchors) / others), negatives

    @cached_property
    def _total(self) -> tuple[int, NDArray[np.float64]]:
        return int(self.counts.sum()), self.sums.sum(axis=0)


class Partners:
    """Draws positives and negatives with a counter-based generator keyed by (seed, image index).

    The partners of an image depend on nothing else, so any number of processes and a resumed run draw the same ones.
    An image that is the only one of its label is its own positive.

    Args:
        labels: (N,) int64.
        names: Names of the labels, for messages.
        pairs: Triplets per image, at least 1.
        seed: Any integer.

    Raises:
        DataError: If there is only one label.
    """

    def __init__(self, labels: NDArray[np.int64], names: Sequence[str], pairs: int, seed: int = 0) -> None:
        different, counts = count_members(labels, names)
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
