"""Who is compared with whom: the partners of every anchor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


class Partners:
    """Draws positives and negatives by a counter-based generator keyed by (seed, image index).

    The partners of an image depend on nothing else, so one process, four processes and a resumed run agree.

    Args:
        labels: (N,) int64.
        names: The labels' names, for messages.
        pairs: Triplets an image.
        seed: Any integer.

    Raises:
        DataError: If there is only one label, or a label with one image, so that a triplet cannot be made.
    """

    def __init__(self, labels: NDArray[np.int64], names: Sequence[str], pairs: int, seed: int = 0) -> None:
        if pairs < 1:
            raise DataError(f"an image needs at least 1 pair, got {pairs}; set --pairs to 1 or more")
        found, counts = np.unique(labels, return_counts=True)
        if len(found) < 2:
            only = names[found[0]] if len(found) and found[0] < len(names) else "none"
            raise DataError(f"a triplet needs two classes, found one only: {only!r}; add images of another class")
        lonely = [names[i] if i < len(names) else str(i) for i in found[counts == 1]]
        if lonely:
            raise DataError(
                f"a triplet needs two images of a class, but {_listed(lonely)} only one; "
                "add an image or remove the class"
            )
        self._labels, self._pairs, self._seed = labels, pairs, seed
        # Sorted by label, a class is one block: its members lie inside, all negatives outside.
        self._order = np.argsort(labels, kind="stable")
        ends = np.cumsum(counts)
        self._blocks = {int(label): (int(end - n), int(end)) for label, end, n in zip(found, ends, counts, strict=True)}
        # One generator, set anew for every anchor: to make one takes five times as long as to draw from it.
        self._philox = np.random.Philox(0)
        self._generator, self._anew = np.random.Generator(self._philox), self._philox.state

    def draw(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the partners of one anchor, with replacement, uniformly.

        Args:
            index: The anchor.

        Returns:
            Positives (pairs,): same label, another image; negatives (pairs,): another label.
        """
        label = int(self._labels[index])
        start, end = self._blocks[label]
        own = start + int(np.searchsorted(self._order[start:end], index))  # a block is in the order of the images
        return self._draw(label, (self._seed, index), own)

    def draw_outside(self, label: int, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the partners of an anchor that is not one of these images, such as a test image.

        Args:
            label: The anchor's.
            index: The anchor's, in its own data set.

        Returns:
            Positives (pairs,): same label; negatives (pairs,): another label.
        """
        return self._draw(label, (self._seed + index, len(self._labels)), None)

    def _draw(self, label: int, key: tuple[int, int], own: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw by a key; `own` is the anchor's place in the order, None if it has none."""
        self._anew["state"]["key"] = np.array([part % 2**64 for part in key], dtype=np.uint64)
        self._philox.state = self._anew
        generator = self._generator
        start, end = self._blocks[label]
        positive = start + generator.integers(end - start - (own is not None), size=self._pairs)
        if own is not None:
            positive += positive >= own
        negative = generator.integers(len(self._labels) - (end - start), size=self._pairs)
        negative += np.where(negative >= start, end - start, 0)
        return self._order[positive], self._order[negative]


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown}{f' and {len(names) - 5} more' if len(names) > 5 else ''} {'has' if len(names) == 1 else 'have'}"
