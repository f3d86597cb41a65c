"""CamVid: street scenes with a class for every pixel, in the split of SegNet's authors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...utils.names import expand_user
from ..catalog import DATASETS, Dataset
from ..images import _opened, image_size, list_images, read_mask
from ..samples import FileSamples, find_masks
from ..splits import SPLITS

CLASSES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car"),
    *("Pedestrian", "Bicyclist"),
)
"""Names of the classes, by index."""

UNLABELLED = len(CLASSES)
"""Index of pixels without a class, which every loss and score leaves out."""

# From the data set's label_colors.txt, where Pole is Column_Pole and Pavement is Sidewalk.
COLORS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    (0, 0, 0),
)
"""Official RGB colours of the classes and, last, of unlabelled pixels."""

CAMVID_SPLITS = ("train", "val", *SPLITS[1:])
"""The splits, with one for validation."""


class CamVidSamples(FileSamples):
    """Pictures with label images; unlabelled pixels are the ignore mask."""

    def label_image(self, index: int) -> NDArray[np.uint8]:
        """Read the label image of a picture.

        Args:
            index: Index of the picture.

        Returns:
            uint8 (H, W): indices into `CLASSES`, or `UNLABELLED`.

        Raises:
            DataError: If the file is unreadable, its size differs from the picture's, or it has another index.
        """
        return read_label_image(cast(Path, self.ignore_files[index]), image_size(self.files[index]))

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> CamVidSamples:
        """Select pictures by index, in the given order."""
        return cast(CamVidSamples, super().subset(indices))


def camvid(path: str | Path, split: str = "train") -> CamVidSamples:
    """Read CamVid with the 11 classes and the 367 / 101 / 233 split of SegNet's authors.

    Args:
        path: The folder with `images/<split>/*` and `labels/<split>/<stem>.png`, one index per pixel.
        split: "train", "val", "test" or "all".

    Returns:
        The pictures of the split, sorted by name; `names` are the classes of pixels.

    Raises:
        DataError: If a folder or a label image is missing.
    """
    if split not in CAMVID_SPLITS:
        raise DataError(f"unknown split {split!r}; CamVid has {', '.join(CAMVID_SPLITS)}")
    root = expand_user(path)
    parts = CAMVID_SPLITS[:-1] if split == "all" else (split,)
    for part in parts:
        if not (root / "images" / part).is_dir():
            raise DataError(
                f"no CamVid in {path}: {root / 'images' / part} is missing; it needs images/<split>/* and "
                "labels/<split>/<stem>.png, as SegNet's authors split the pictures"
            )
    files = tuple(file for part in parts for file in list_images(root / "images" / part))
    if not files:
        raise DataError(f"the {split} split of {path} has no pictures; put them into {root / 'images' / parts[0]}")
    ids = tuple(file.relative_to(root / "images").as_posix() for file in files)
    labels = find_masks(root / "labels", ids) or (None,) * len(ids)
    for name, label in zip(ids, labels, strict=True):
        if label is None:
            file = (root / "labels" / name).with_suffix(".png")
            raise DataError(f"picture {name} of {path} has no label image; put it at {file}")
    return CamVidSamples(
        files=files,
        ids=ids,
        names=CLASSES,
        ignore_files=labels,
        ignore_reader=functools.partial(read_mask, value=UNLABELLED, empty_ok=True),
    )


def read_label_image(path: str | Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a label image, with one index per pixel as grey value or palette index.

    Args:
        path: The file.
        size: (width, height) of its picture.

    Returns:
        uint8 (H, W): indices into `CLASSES`, or `UNLABELLED`.

    Raises:
        DataError: If the file is unreadable, its size differs from the picture's, or it has another index.
    """
    with _opened(path) as image:
        labels = np.array(image)
    if labels.ndim != 2:
        raise DataError(
            f"label image {path} has {labels.shape[2]} channels, expected one index per pixel; "
            "convert its colours to indices"
        )
    height, width = labels.shape
    if (width, height) != tuple(size):
        raise DataError(
            f"label image {path} is {width} x {height} pixels but its picture is {size[0]} x {size[1]}; "
            "resize them to the same size, the labels by nearest neighbour"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > UNLABELLED:
        wrong = high if high > UNLABELLED else low
        raise DataError(
            f"label image {path} has index {wrong}, expected 0 to {UNLABELLED} ({UNLABELLED}: unlabelled); "
            "map other indices to these"
        )
    return labels.astype(np.uint8)


DATASETS.register("camvid")(Dataset(camvid, splits=CAMVID_SPLITS))
