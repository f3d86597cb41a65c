"""Data sets in memory, or of another library."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, UnreadableError
from .catalog import load
from .images import read_image, to_rgb
from .samples import Samples

logger = logging.getLogger("embedcam")


_IMAGE_KEYS, _LABEL_KEYS = ("image", "img", "pixel_values", "images"), ("label", "labels", "target", "fine_label")


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """A sequence of images or of (image, label), such as a torch data set.

    Attributes:
        items: Indexable; images as `as_samples` takes them.
        rows: (N,) int64 indices into `items`.
        labels: (N,) int64 indices into `names`, or None.
        names: Names of the labels.
        problems: Messages about items that cannot be read, over which `strict` stops.
        has_masks: Always False.
    """

    items: Any
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    problems: tuple[str, ...] = ()
    has_masks: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """(N,) the rows as text."""
        return tuple(str(row) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> NDArray[np.float32] | Image.Image:
        """Return image `index`: float32 (3, H, W) if it is preprocessed, otherwise an RGB picture."""
        row = int(self.rows[index])
        image = _parts(_item(self.items, row), row)[0]
        if isinstance(image, str | Path):
            return read_image(image)
        if isinstance(image, Image.Image):
            return to_rgb(image)
        is_tensor = hasattr(image, "detach")
        if is_tensor:
            image = image.detach().cpu()
            image = image.float() if image.is_floating_point() else image
        array = np.asarray(image)
        if array.dtype == np.uint8 and array.ndim == 3 and 3 in (array.shape[0], array.shape[-1]):
            last = array.shape[-1] == 3 and not (is_tensor and array.shape[0] == 3)
            return Image.fromarray(np.ascontiguousarray(array if last else array.transpose(1, 2, 0)))
        if array.ndim != 3 or array.shape[0] != 3 or not np.issubdtype(array.dtype, np.floating):
            raise DataError(
                f"item {row} of the data set has shape {array.shape} of {array.dtype}, expected an image (3, H, W) of "
                "normalised floats, uint8 pixels, a Pillow image or a path; convert it to RGB"
            )
        return array.astype(np.float32, copy=False)

    def mask(self, index: int) -> None:
        """Return None: there are no masks."""

    def ignore(self, index: int) -> None:
        """Return None: there are no ignore masks."""

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ArraySamples:
        """Select images by index, in the given order."""
        rows = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, rows=self.rows[rows], labels=labels)


def as_samples(dataset: Any, split: str = "train") -> Samples:
    """Convert a data set of any supported kind to `Samples`.

    Args:
        dataset: `Samples`; a SPEC such as "folder:PATH"; or a sequence of images, of (image, label), or of dictionaries
            with "image" and "label". An image is (3, H, W) floats, normalised as the network requires; uint8 pixels,
            (H, W, 3) or (3, H, W); a Pillow image; or a path.
        split: Split of a SPEC that names none.

    Returns:
        The data set. Items that cannot be read are left out with a warning.

    Raises:
        DataError: If the data set is empty or of another kind, or an item has no image or no usable label.
    """
    if isinstance(dataset, str):
        return load(dataset, split)
    if hasattr(dataset, "subset") and hasattr(dataset, "ids"):
        return cast(Samples, dataset)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or len(dataset) == 0:
        raise DataError(
            f"a {type(dataset).__name__} is not a data set, or empty; "
            "pass a SPEC such as 'folder:PATH', or a sequence of (image, label)"
        )
    rows: list[int] = []
    raw: list[Any] = []
    problems: list[str] = []
    for row in range(len(dataset)):
        try:
            label = _label(dataset, row)
        except _UnreadableItemError as error:
            problems.append(str(error))
            logger.warning("skipped: %s", error)
            continue
        rows.append(row)
        raw.append(label)
        if row == 0 and label is None:  # none has: the other images need not be read now
            rows = list(range(len(dataset)))
            break
    if not rows:
        raise UnreadableError(f"none of the {len(problems)} items could be read; the first error: {problems[0]}")
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    if any(label is not None for label in raw):
        numeric = all(isinstance(label, int | float) for label in raw)  # sorted as text, 10 comes before 9
        unique, codes = np.unique(raw if numeric else list(map(str, raw)), return_inverse=True)
        labels, names = codes.astype(np.int64), tuple(map(str, unique))
    # Preprocessed images are arrays, not pictures as in `Samples`; `Preprocess` returns arrays unchanged.
    return cast(Samples, ArraySamples(dataset, np.array(rows), labels, names, tuple(problems)))


class _UnreadableItemError(DataError):
    pass


def _item(items: Any, row: int) -> Any:
    try:
        return items[row]
    except Exception as error:  # data sets raise what their readers raise
        if row == 0 and isinstance(error, KeyError | TypeError):
            raise DataError(
                f"a {type(items).__name__} is not a data set: it has no item 0; "
                "pass a SPEC such as 'folder:PATH', or a sequence of (image, label)"
            ) from error
        reason = f"{type(error).__name__}: {error}"
        raise _UnreadableItemError(f"cannot read item {row} of the data set: {reason}; repair or remove it") from error


def _parts(item: Any, row: int) -> tuple[Any, Any]:
    """Split an item into image and label; the label is None if it has none."""
    if isinstance(item, Mapping):
        keys = [next((key for key in known if key in item), None) for known in (_IMAGE_KEYS, _LABEL_KEYS)]
        if keys[0] is None:
            raise DataError(
                f"item {row} of the data set has the keys {', '.join(map(str, item))}, none of which is an image; "
                "name them 'image' and 'label'"
            )
        return item[keys[0]], None if keys[1] is None else item[keys[1]]
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _label(dataset: Any, row: int) -> Any:
    targets = getattr(dataset, "targets", None)  # torchvision's data sets have them, which avoids reading images
    if targets is not None and len(targets) == len(dataset):
        label = targets[row]
    else:
        label = _parts(_item(dataset, row), row)[1]
    if getattr(label, "size", None) == 1 or (hasattr(label, "numel") and label.numel() == 1):
        label = label.item()
    if label is not None and not isinstance(label, int | float | str):
        raise DataError(
            f"the label of item {row} of the data set is a {type(label).__name__}; give each image one number or name"
        )
    return label
