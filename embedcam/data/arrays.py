"""Data sets in memory, or of another library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .catalog import load
from .samples import Samples


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """A sequence of preprocessed images or of (image, label), such as a torch data set.

    Attributes:
        items: Indexable; images are (3, H, W), normalised as the network requires.
        rows: (N,) int64 indices into `items`.
        labels: (N,) int64 indices into `names`, or None.
        names: Names of the labels.
        has_masks: Always False.
    """

    items: Any
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    has_masks: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """(N,) the rows as text."""
        return tuple(str(row) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> NDArray[np.float32]:
        """Return the preprocessed image `index`, float32 (3, H, W)."""
        item = self.items[int(self.rows[index])]
        image = np.asarray(item[0] if isinstance(item, tuple | list) else item, dtype=np.float32)
        if image.ndim != 3 or image.shape[0] != 3:
            raise DataError(
                f"item {self.rows[index]} of the data set has shape {image.shape}, expected an image (3, H, W); "
                "convert it to RGB with the channels first"
            )
        return image

    def mask(self, index: int) -> None:
        """Return None: there are no masks."""

    def ignore(self, index: int) -> None:
        """Return None: there are no ignore masks."""

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ArraySamples:
        """Select images by index, in the given order."""
        rows = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        return ArraySamples(self.items, self.rows[rows], labels, self.names)


def as_samples(dataset: Any, split: str = "train") -> Samples:
    """Convert a data set of any supported kind to `Samples`.

    Args:
        dataset: `Samples`; a SPEC such as "folder:PATH"; or a sequence of preprocessed images (3, H, W) or of
            (image, label).
        split: Split of a SPEC that names none.

    Returns:
        The data set.

    Raises:
        DataError: If the data set is empty, or of another kind.
    """
    if isinstance(dataset, str):
        return load(dataset, split)
    if hasattr(dataset, "subset") and hasattr(dataset, "ids"):
        return cast(Samples, dataset)
    try:
        count, first = len(dataset), dataset[0]
    except (TypeError, IndexError, KeyError) as error:
        raise DataError(
            f"a {type(dataset).__name__} is not a data set, or empty; "
            "pass a SPEC such as 'folder:PATH', or a sequence of (image, label)"
        ) from error
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    if isinstance(first, tuple | list):
        raw = [_label(dataset, row) for row in range(count)]
        numeric = all(isinstance(label, int | float) for label in raw)  # sorted as text, 10 comes before 9
        unique, codes = np.unique(raw if numeric else list(map(str, raw)), return_inverse=True)
        labels, names = codes.astype(np.int64), tuple(map(str, unique))
    # The images are arrays, not pictures as in `Samples`; `Preprocess` returns arrays unchanged.
    return cast(Samples, ArraySamples(dataset, np.arange(count), labels, names))


def _label(dataset: Any, row: int) -> Any:
    targets = getattr(dataset, "targets", None)  # torchvision's data sets have them, which avoids reading images
    label = targets[row] if targets is not None and len(targets) == len(dataset) else dataset[row][1]
    return label.item() if hasattr(label, "item") else label
