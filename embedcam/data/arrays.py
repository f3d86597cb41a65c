"""Data sets in memory, or of another library."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, UnreadableError
from .catalog import load
from .items import LABEL_KEYS, as_image, item_parts, resized
from .samples import FirstWarning, Samples

logger = logging.getLogger("embedcam")

# Items that are looked at to find the size of normalised images, where their labels do not require reading all.
_LOOKED_AT = 16


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """A sequence of images or of (image, label), such as a torch data set.

    Attributes:
        items: Indexable; images as `as_samples` takes them.
        rows: (N,) int64 indices into `items`.
        labels: (N,) int64 indices into `names`, or None.
        names: Names of the labels.
        problems: Messages about items that cannot be read, over which `strict` stops.
        size: (height, width) to which normalised images of another size are resized; None if there are none.
        channels: Number of channels of normalised images.
        has_masks: Always False.
    """

    items: Any
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    problems: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    channels: int = 3
    has_masks: bool = False
    _warn: Callable[[str], None] = field(default_factory=FirstWarning, repr=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """(N,) the rows as text."""
        return tuple(str(row) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> NDArray[np.float32] | Image.Image:
        """Return image `index`: float32 (channels, H, W) if it is preprocessed, otherwise an RGB picture."""
        row = int(self.rows[index])
        image = as_image(item_parts(_item(self.items, row), _name(row))[0], _name(row), self.channels)
        if isinstance(image, Image.Image) or self.size in (None, image.shape[1:]):
            return image
        assert self.size is not None
        self._warn(
            f"{_name(row)} is {' x '.join(map(str, image.shape[1:]))} pixels; normalised images of other sizes are "
            f"resized to {' x '.join(map(str, self.size))}"
        )
        return resized(image, self.size)

    def mask(self, index: int) -> None:
        """Return None: there are no masks."""

    def ignore(self, index: int) -> None:
        """Return None: there are no ignore masks."""

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ArraySamples:
        """Select images by index, in the given order."""
        rows = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, rows=self.rows[rows], labels=labels)


def as_samples(dataset: Any, split: str = "train", size: tuple[int, int] | None = None, channels: int = 3) -> Samples:
    """Convert a data set of any supported kind to `Samples`.

    Args:
        dataset: `Samples`; a SPEC such as "folder:PATH"; or a sequence of images, of (image, label), or of dictionaries
            with "image" and "label", such as a Hugging Face data set. For images see `items.as_image`.
        split: Split of a SPEC that names none.
        size: (height, width) to which normalised images are resized if they differ in size; their most common size if
            None.
        channels: Number of channels of normalised images.

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
        loader = " (of a loader, its .dataset)" if hasattr(dataset, "dataset") else ""
        raise DataError(
            f"a {type(dataset).__name__} is not a data set, or empty; "
            f"pass a SPEC such as 'folder:PATH', or a sequence of (image, label){loader}"
        )
    given, classes = _given_labels(dataset)
    rows: list[int] = []
    raw: list[Any] = []
    sizes: Counter[tuple[int, int]] = Counter()
    problems: list[str] = []
    for row in range(len(dataset)) if given is None else ():
        try:
            image, label = item_parts(_item(dataset, row), _name(row))
        except _UnreadableItemError as error:
            problems.append(str(error))
            logger.warning("skipped: %s", error)
            continue
        rows.append(row)
        raw.append(_label(label, row))
        sizes.update(_size(image))
        if row == 0 and label is None:  # none has: the other images need not be read now
            break
    if not rows and given is None:
        raise UnreadableError(f"none of the {len(problems)} items could be read; the first error: {problems[0]}")
    if given is not None or raw == [None]:
        rows = list(range(len(dataset)))
        raw = [None] if given is None else [_label(label, row) for row, label in enumerate(given)]
        sizes = _some_sizes(dataset)
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    if any(label is not None for label in raw):
        numeric = all(isinstance(label, int | float) for label in raw)  # sorted as text, 10 comes before 9
        unique, codes = np.unique(raw if numeric else list(map(str, raw)), return_inverse=True)
        labels, names = codes.astype(np.int64), tuple(map(str, unique))
        if numeric and classes and all(label in range(len(classes)) for label in unique.tolist()):
            names = tuple(classes[int(label)] for label in unique)
    common = (size if len(sizes) > 1 and size else sizes.most_common(1)[0][0]) if sizes else None
    # Preprocessed images are arrays, not pictures as in `Samples`; `Preprocess` returns arrays unchanged.
    return cast(Samples, ArraySamples(dataset, np.array(rows), labels, names, tuple(problems), common, channels))


class _UnreadableItemError(DataError):
    pass


def _name(row: int) -> str:
    return f"item {row} of the data set"


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
        raise _UnreadableItemError(f"cannot read {_name(row)}: {reason}; repair or remove it") from error


def _given_labels(dataset: Any) -> tuple[Sequence[Any] | None, tuple[str, ...]]:
    """Return the labels and the names of the classes of torchvision's and Hugging Face's data sets, if they have them.

    Reading them does not read the images.
    """
    targets, classes = getattr(dataset, "targets", None), getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    key = next((key for key in LABEL_KEYS if key in features), None) if isinstance(features, Mapping) else None
    if key is not None and isinstance(features, Mapping):
        targets, classes = dataset[key], getattr(features[key], "names", None)
    if targets is None or len(targets) != len(dataset):
        return None, ()
    names = tuple(name if isinstance(name, str) else ", ".join(map(str, name)) for name in classes or ())
    return targets, names if len(set(names)) == len(names) else ()


def _label(label: Any, row: int) -> Any:
    if getattr(label, "size", None) == 1 or (hasattr(label, "numel") and label.numel() == 1):
        label = label.item()
    if label is not None and not isinstance(label, int | float | str):
        raise DataError(f"the label of {_name(row)} is a {type(label).__name__}; give each image one number or name")
    return label


def _size(image: Any) -> list[tuple[int, int]]:
    """Return the size of a normalised image, and nothing for a picture, whose size does not matter."""
    shape: tuple[int, ...] = getattr(image, "shape", ())
    return [(int(shape[1]), int(shape[2]))] if len(shape) == 3 and "float" in str(image.dtype) else []


def _some_sizes(dataset: Any) -> Counter[tuple[int, int]]:
    sizes: Counter[tuple[int, int]] = Counter()
    for row in {int(row) for row in np.linspace(0, len(dataset) - 1, _LOOKED_AT)}:
        try:
            sizes.update(_size(item_parts(_item(dataset, row), _name(row))[0]))
        except _UnreadableItemError:  # named when it is read for good
            continue
    return sizes
