"""Data sets that are already in memory, or of another library."""

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
    """A sequence of prepared images, or of (image, label), such as a torch data set.

    Attributes:
        items: Indexable; images are (3, H, W), normalised as the network wants.
        rows: Which of the items.
        labels: (N,) int64, or None.
        names: The labels as text.
    """

    items: Any
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    has_masks: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """The rows' numbers."""
        return tuple(str(row) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> NDArray[np.float32]:
        """Return a prepared image (3, H, W)."""
        item = self.items[int(self.rows[index])]
        image = np.asarray(item[0] if isinstance(item, tuple | list) else item, dtype=np.float32)
        if image.ndim != 3 or image.shape[0] != 3:
            raise DataError(
                f"item {self.rows[index]} of the data set has shape {image.shape}, expected an image (3, H, W); "
                "turn it into RGB with the channels first"
            )
        return image

    def mask(self, index: int) -> None:
        """Return None: such data sets have no masks."""

    def ignore(self, index: int) -> None:
        """Return None: such data sets have no masks."""

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ArraySamples:
        """Keep only these images, in this order."""
        rows = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        return ArraySamples(self.items, self.rows[rows], labels, self.names)


def as_samples(dataset: Any, split: str = "train") -> Samples:
    """Make a data set out of whatever a user has.

    Args:
        dataset: `Samples`; a SPEC such as "folder:PATH"; or a sequence of prepared images (3, H, W), alone or as
            (image, label).
        split: Of a SPEC without one.

    Returns:
        The data set.

    Raises:
        DataError: If it is empty, or none of these.
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
            "give a SPEC such as 'folder:PATH', or a sequence of (image, label)"
        ) from error
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    if isinstance(first, tuple | list):
        given = [_label(dataset, row) for row in range(count)]
        numbers = all(isinstance(label, int | float) for label in given)  # so that 10 does not come before 9
        found, places = np.unique(given if numbers else list(map(str, given)), return_inverse=True)
        labels, names = places.astype(np.int64), tuple(map(str, found))
    # Structural typing ends where pictures are prepared arrays: `Preprocess` lets those pass as they are.
    return cast(Samples, ArraySamples(dataset, np.arange(count), labels, names))


def _label(dataset: Any, row: int) -> Any:
    targets = getattr(dataset, "targets", None)  # torchvision's data sets have them: no need to read the image
    label = targets[row] if targets is not None and len(targets) == len(dataset) else dataset[row][1]
    return label.item() if hasattr(label, "item") else label
