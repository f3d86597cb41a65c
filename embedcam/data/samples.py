"""The interface of data sets, and its implementation for files."""

from __future__ import annotations

import codecs
import functools
import hashlib
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
"""Maps a mask file and the (width, height) of its picture to (H, W) bool."""

# UTF-32 first: its mark starts with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_read_ignore = functools.partial(read_mask, empty_ok=True)


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
        mask_reader: Function that reads a mask.
        ignore_reader: Function that reads an ignore mask.
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
        """Read picture `index` as RGB; raises DataError if it is unreadable."""
        return read_image(self.files[index])

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Read mask `index`, bool (H, W), True on the object, or None; raises DataError if it is invalid."""
        return self._read(self.mask_files, self.mask_reader, index)

    def ignore(self, index: int) -> NDArray[np.bool_] | None:
        """Read ignore mask `index`, bool (H, W), True on pixels left out of every score; None if there is none."""
        return self._read(self.ignore_files, self.ignore_reader, index)

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
        )

    def _read(self, files: tuple[Path | None, ...], reader: MaskReader, index: int) -> NDArray[np.bool_] | None:
        file = files[index] if files else None
        return None if file is None else reader(file, image_size(self.files[index]))


def find_masks(root: Path, ids: Sequence[str]) -> tuple[Path | None, ...]:
    """Find the masks of pictures: `root`/<id with the extension .png>.

    Args:
        root: Folder of the masks; it may be missing.
        ids: (N,) "/"-separated relative paths of the pictures.

    Returns:
        (N,) path of each picture's mask, or None; empty if no picture has one.
    """

    @functools.cache
    def listing(folder: Path) -> frozenset[str]:  # much faster than a look-up of each file
        return frozenset(child.name for child in folder.iterdir()) if folder.is_dir() else frozenset()

    candidates = [(root / name).with_suffix(".png") for name in ids]
    masks = tuple(file if file.name in listing(file.parent) else None for file in candidates)
    return masks if any(masks) else ()


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file.

    Args:
        file: Path of a file in UTF-8, or in UTF-16 or UTF-32 with its byte-order mark. Invalid bytes are replaced, so
            that messages can quote the line.

    Returns:
        The lines, without surrounding blanks.

    Raises:
        DataError: If the file is missing or unreadable.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; restore or repair it") from error
    return [line.strip() for line in content.decode(encoding(content), errors="replace").splitlines()]


def encoding(content: bytes) -> str:
    """Return the encoding of a text by its byte-order mark.

    Args:
        content: The text, or its first bytes.

    Returns:
        "utf-32" or "utf-16" if it has such a mark, otherwise "utf-8-sig", which drops that of UTF-8.
    """
    return next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8-sig")


def fingerprint(samples: Samples) -> str:
    """Identify a data set by the names and labels of its images.

    Args:
        samples: The data set.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256(np.asarray(-1 if samples.labels is None else samples.labels, dtype=np.int64).tobytes())
    for name in samples.ids:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()
