"""What a data set is to the rest of embedcam: pictures, and what is known about them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .images import image_size, read_image, read_mask

MaskReader: TypeAlias = Callable[[Path, tuple[int, int]], NDArray[np.bool_]]
"""Turns a mask's file and its picture's (width, height) into (H, W) bool."""

_read_ignore = functools.partial(read_mask, empty_ok=True)


class Samples(Protocol):
    """A data set of pictures with optional labels, masks and ignore masks."""

    @property
    def ids(self) -> Sequence[str]:
        """(N,) unique names, "/"-separated and relative, fit for messages and file names."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) int64 indices into `names`, or None where nothing is known."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The classes' names."""
        ...

    @property
    def has_masks(self) -> bool:
        """Whether any picture has a mask."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Read picture `index` as RGB; raises DataError when it cannot be read."""
        ...

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Read its mask (H, W), True on the object, or None; raises DataError when it is wrong."""
        ...

    def ignore(self, index: int) -> NDArray[np.bool_] | None:
        """Read its ignore mask (H, W), True on pixels that no score may count, or None."""
        ...

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Samples:
        """Keep only these pictures, in this order."""
        ...


@dataclass(frozen=True, eq=False)
class FileSamples:
    """Samples whose pictures, masks and ignore masks are files.

    Attributes:
        files: (N,) the pictures.
        ids: (N,) unique names, "/"-separated and relative.
        labels: (N,) int64 indices into `names`, or None.
        names: The classes' names.
        mask_files: (N,) each picture's mask or None; empty where no picture has one.
        ignore_files: (N,) each picture's ignore mask or None; empty where no picture has one.
        mask_reader: How a mask is read.
        ignore_reader: How an ignore mask is read.
    """

    files: tuple[Path, ...]
    ids: tuple[str, ...]
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    mask_files: tuple[Path | None, ...] = ()
    ignore_files: tuple[Path | None, ...] = ()
    mask_reader: MaskReader = read_mask
    ignore_reader: MaskReader = _read_ignore

    @property
    def has_masks(self) -> bool:
        """Whether any picture has a mask."""
        return any(file is not None for file in self.mask_files)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """Read picture `index` as RGB; raises DataError when it cannot be read."""
        return read_image(self.files[index])

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Read its mask (H, W), True on the object, or None; raises DataError when it is wrong."""
        return self._read(self.mask_files, self.mask_reader, index)

    def ignore(self, index: int) -> NDArray[np.bool_] | None:
        """Read its ignore mask (H, W), True on pixels that no score may count, or None."""
        return self._read(self.ignore_files, self.ignore_reader, index)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> FileSamples:
        """Keep only these pictures, in this order."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            files=tuple(self.files[row] for row in rows),
            ids=tuple(self.ids[row] for row in rows),
            labels=None if self.labels is None else self.labels[rows],
            mask_files=tuple(self.mask_files[row] for row in rows) if self.mask_files else (),
            ignore_files=tuple(self.ignore_files[row] for row in rows) if self.ignore_files else (),
        )

    def _read(self, files: tuple[Path | None, ...], reader: MaskReader, index: int) -> NDArray[np.bool_] | None:
        file = files[index] if files else None
        return None if file is None else reader(file, image_size(self.files[index]))


def find_masks(root: Path, ids: Sequence[str]) -> tuple[Path | None, ...]:
    """Find the mask of every picture: `root`/<id with .png for its extension>.

    Args:
        root: The folder of the masks; it may be missing.
        ids: (N,) "/"-separated relative paths of the pictures.

    Returns:
        (N,) the mask's file, or None where there is none; empty if there is none at all.
    """

    @functools.cache
    def listing(folder: Path) -> frozenset[str]:  # one look at a folder is much quicker than one at each file
        return frozenset(child.name for child in folder.iterdir()) if folder.is_dir() else frozenset()

    candidates = [(root / name).with_suffix(".png") for name in ids]
    masks = tuple(file if file.name in listing(file.parent) else None for file in candidates)
    return masks if any(masks) else ()


def read_lines(file: Path) -> list[str]:
    """Read a text file that lists pictures or classes.

    Args:
        file: UTF-8 text; other bytes are replaced, so that the line can be named when it fits nothing.

    Returns:
        Its lines, without surrounding blanks.

    Raises:
        DataError: If it is missing or cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; put it back or mend it") from error
    return [line.strip() for line in text.splitlines()]
