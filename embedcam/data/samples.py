"""The interface of data sets, and its implementation for files."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..utils.names import normal_name
from .images import MASK_THRESHOLD, image_size, read_image, read_mask
from .keypoints import Keypoints, box_mask

logger = logging.getLogger("embedcam")

MaskReader: TypeAlias = Callable[[Path, tuple[int, int]], NDArray[np.bool_]]
"""Maps a mask file and the (width, height) of its picture to (H, W) bool."""


class FirstWarning:
    """Logs the first warning of a data set, and leaves out the others, one for each mask."""

    def __init__(self) -> None:
        self._given = False

    def __call__(self, message: str) -> None:
        """Log the message, if it is the first."""
        if not self._given:
            self._given = True
            logger.warning("%s; further ones of this kind are not named", message)


class Samples(Protocol):
    """A data set of pictures with optional labels, masks and ignore masks."""

    @property
    def ids(self) -> Sequence[str]:
        """(N,) unique "/"-separated relative paths, usable in messages and as file names."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) int64 indices into `names`, or None for an unlabelled data set."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Names of the classes."""
        ...

    @property
    def has_masks(self) -> bool:
        """Whether any picture has a mask."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Read picture `index` as RGB; raises DataError if it is unreadable."""
        ...

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Read mask `index`, bool (H, W), True on the object, or None; raises DataError if it is invalid."""
        ...

    def ignore(self, index: int) -> NDArray[np.bool_] | None:
        """Read ignore mask `index`, bool (H, W), True on pixels left out of every score; None if there is none."""
        ...

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Samples:
        """Select pictures by index, in the given order."""
        ...


@dataclass(frozen=True, eq=False)
class FileSamples:
    """Samples whose pictures, masks and ignore masks are files.

    Attributes:
        files: (N,) paths of the pictures.
        ids: (N,) unique "/"-separated relative paths.
        labels: (N,) int64 indices into `names`, or None.
        names: Names of the classes.
        mask_files: (N,) path of each picture's mask, or None; empty if no picture has one.
        ignore_files: (N,) path of each picture's ignore mask, or None; empty if no picture has one.
        mask_reader: Function that reads a mask; `read_mask` with `mask_threshold` if None.
        ignore_reader: Function that reads an ignore mask, likewise.
        mask_threshold: The object is brighter than this, 0 to 254.
        warn: Logs warnings about masks.
        boxes: (N, 4) left, top, width and height in pixels of the box around each object, or None. Without mask files,
            boxes are the masks.
        keypoints: Parts of the objects, or None.
        cameras: (N,) int64, what took each picture, or None: pictures of one label by one camera are no hits for each
            other.
        mask_kind: What the masks are, for reports: "mask", "pseudo mask" or "box".
        problems: Messages about what could not be listed, over which `strict` stops.
    """

    files: tuple[Path, ...]
    ids: tuple[str, ...]
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    mask_files: tuple[Path | None, ...] = ()
    ignore_files: tuple[Path | None, ...] = ()
    mask_reader: MaskReader | None = None
    ignore_reader: MaskReader | None = None
    mask_threshold: int = MASK_THRESHOLD
    warn: Callable[[str], None] = field(default_factory=FirstWarning, repr=False)
    boxes: NDArray[np.float64] | None = None
    keypoints: Keypoints | None = None
    cameras: NDArray[np.int64] | None = None
    mask_kind: str = "mask"
    problems: tuple[str, ...] = ()

    @property
    def has_masks(self) -> bool:
        """Whether any picture has a mask."""
        return any(file is not None for file in self.mask_files) or self._boxes_are_masks

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """Read picture `index` as RGB; raises DataError if it is unreadable."""
        return read_image(self.files[index])

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Read mask `index`, bool (H, W), True on the object, or None; raises DataError if it is invalid."""
        if self._boxes_are_masks:
            assert self.boxes is not None
            return self._box(index, self.boxes[index])
        return self._read(self.mask_files, self.mask_reader or self._reader(empty_ok=False), index)

    def ignore(self, index: int) -> NDArray[np.bool_] | None:
        """Read ignore mask `index`, bool (H, W), True on pixels left out of every score; None if there is none."""
        return self._read(self.ignore_files, self.ignore_reader or self._reader(empty_ok=True), index)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> FileSamples:
        """Select pictures by index, in the given order."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            files=tuple(self.files[row] for row in rows),
            ids=tuple(self.ids[row] for row in rows),
            labels=None if self.labels is None else self.labels[rows],
            mask_files=tuple(self.mask_files[row] for row in rows) if self.mask_files else (),
            ignore_files=tuple(self.ignore_files[row] for row in rows) if self.ignore_files else (),
            boxes=None if self.boxes is None else self.boxes[rows],
            keypoints=None if self.keypoints is None else self.keypoints.subset(rows),
            cameras=None if self.cameras is None else self.cameras[rows],
        )

    @property
    def _boxes_are_masks(self) -> bool:
        return self.boxes is not None and not self.mask_files

    def _box(self, index: int, box: NDArray[np.float64]) -> NDArray[np.bool_]:
        mask = box_mask(box, image_size(self.files[index]))
        if not mask.any():
            raise DataError(f"the box {box.tolist()} of {self.files[index]} is outside the picture; correct the index")
        return mask

    def _reader(self, *, empty_ok: bool) -> MaskReader:
        return functools.partial(read_mask, threshold=self.mask_threshold, empty_ok=empty_ok, warn=self.warn)

    def _read(self, files: tuple[Path | None, ...], reader: MaskReader, index: int) -> NDArray[np.bool_] | None:
        file = files[index] if files else None
        return None if file is None else reader(file, image_size(self.files[index]))


def without_labels(samples: Samples) -> Samples:
    """Leave out the labels of a data set.

    Args:
        samples: The data set.

    Returns:
        The same images, without labels.

    Raises:
        DataError: If the labels of this kind of data set cannot be left out.
    """
    if samples.labels is None:
        return samples
    if not is_dataclass(samples):
        raise DataError(f"the labels of a {type(samples).__name__} cannot be left out; give images without labels")
    return cast(Samples, replace(cast(Any, samples), labels=None, names=()))


def find_masks(root: Path, ids: Sequence[str]) -> tuple[Path | None, ...]:
    """Find the masks of pictures: `root`/<id with the extension .png>.

    Args:
        root: Folder of the masks; it may be missing. Names are compared in Unicode's composed normal form.
        ids: (N,) "/"-separated relative paths of the pictures.

    Returns:
        (N,) path of each picture's mask, or None; empty if no picture has one.
    """

    @functools.cache
    def listing(folder: Path | None) -> dict[str, Path]:  # much faster than a look-up of each file
        if folder is None or not folder.is_dir():
            return {}
        try:
            return {normal_name(child.name): child for child in sorted(folder.iterdir())}
        except OSError as error:
            logger.warning("masks in %s left out: %s; make the folder readable", folder, error.strerror or error)
            return {}

    @functools.cache
    def folder_of(parts: tuple[str, ...]) -> Path | None:
        return listing(folder_of(parts[:-1])).get(normal_name(parts[-1])) if parts else root

    def find(name: PurePosixPath) -> Path | None:
        return listing(folder_of(name.parts[:-1])).get(normal_name(name.with_suffix(".png").name))

    masks = tuple(find(PurePosixPath(name)) for name in ids)
    return masks if any(masks) else ()


def input_files(samples: Samples) -> list[Path]:
    """List the files that a data set is read from, which no output may replace.

    Args:
        samples: The data set.

    Returns:
        Pictures, masks and archives; empty for a data set in memory.
    """
    groups = (getattr(samples, name, ()) for name in ("files", "mask_files", "ignore_files", "shards"))
    return [file for group in groups for file in group if file is not None]


def fingerprint(samples: Samples) -> str:
    """Identify a data set by the names and labels of its images.

    Args:
        samples: The data set.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256(np.asarray(-1 if samples.labels is None else samples.labels, dtype=np.int64).tobytes())
    for name in samples.ids:
        digest.update(f"{normal_name(name)}\n".encode())
    return digest.hexdigest()
