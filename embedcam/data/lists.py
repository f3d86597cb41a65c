"""Data sets that are published as lists of pictures, perhaps with queries and a gallery."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.names import expand_user
from .samples import FileSamples
from .texts import read_lines

QUERY_SPLITS = ("train", "test", "query", "gallery", "all")
"""Splits of a data set with queries and a gallery; "test" is both of them."""

_FIX = "correct the list, or unpack the archive again"


class Entry(NamedTuple):
    """A picture of a list.

    Attributes:
        id: Its "/"-separated path in the data set.
        label: Name of its class.
        parts: Any of "train", "test", "query" and "gallery".
        camera: What took it; "" if unknown. Pictures of one label by one camera are no hits for each other.
    """

    id: str
    label: str
    parts: tuple[str, ...]
    camera: str = ""


def root_of(path: str | Path, marker: str, name: str, *inner: str) -> Path:
    """Find the folder of a data set.

    Args:
        path: The folder, or the one that contains it.
        marker: A file or folder that it contains.
        name: Of the data set, for messages.
        inner: Its names inside `path`.

    Returns:
        The folder.

    Raises:
        DataError: If there is none.
    """
    root = expand_user(path)
    for folder in (root, *(root / each for each in inner)):
        if (folder / marker).exists():
            return folder
    raise DataError(f"no {name} with {marker} in {path}; give the folder that was unpacked")


def read_fields(file: Path, form: str, *, header: Sequence[str] = ()) -> Iterator[list[str]]:
    """Read the lines of a list.

    Args:
        file: The list.
        form: What a line has, such as "<path> <number>".
        header: The beginnings of its first lines, which are skipped.

    Yields:
        The fields of each line that is not empty.

    Raises:
        DataError: If a line has another number of fields, or the header is missing.
    """
    lines = read_lines(file)
    for number, expected in enumerate(header):
        line = lines[number] if number < len(lines) else ""
        if not line.startswith(expected):
            raise _unexpected(file, number + 1, f"{expected} ...", line)
    for number, line in enumerate(lines[len(header) :], start=len(header) + 1):
        fields = line.split()
        if fields and len(fields) != form.count("<"):
            raise _unexpected(file, number, form, line)
        if fields:
            yield fields


def listed(
    root: Path, images: Path, entries: Iterable[Entry], split: str, *, boxes: NDArray[np.float64] | None = None
) -> FileSamples:
    """Make a data set of listed pictures.

    Args:
        root: Folder of the data set, for messages.
        images: Folder that their ids start from.
        entries: The pictures, in the order of the lists.
        split: One of `QUERY_SPLITS`.
        boxes: (N, 4) boxes of all pictures, as in `FileSamples`.

    Returns:
        The pictures of the split; `names` has all classes in every split.

    Raises:
        DataError: If the split is unknown or empty, or a picture is listed twice or outside of the folder.
    """
    if split not in QUERY_SPLITS:
        raise DataError(f"unknown split {split!r}; choose one of {', '.join(QUERY_SPLITS)}")
    everything = list(entries)
    ids = tuple(entry.id for entry in everything)
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DataError(f"{root} lists {name} twice; {_FIX}")
        if not name.isprintable() or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise DataError(f"{root} lists {name!a}, which is no path inside the data set; {_FIX}")
        seen.add(name)
    names, labels = np.unique([entry.label for entry in everything], return_inverse=True)
    cameras = np.unique([entry.camera for entry in everything], return_inverse=True)[1]
    samples = FileSamples(
        files=tuple(images / name for name in ids),
        ids=ids,
        labels=labels.astype(np.int64),
        names=tuple(map(str, names)),
        cameras=cameras.astype(np.int64) if any(entry.camera for entry in everything) else None,
        boxes=boxes,
        mask_kind="mask" if boxes is None else "box",
    )
    chosen = [split == "all" or split in entry.parts for entry in everything]
    if split == "test":
        chosen = ["train" not in entry.parts for entry in everything]
    if not any(chosen):
        raise DataError(f"the {split} split of {root} is empty ({len(ids)} pictures in all); choose another split")
    return samples.subset(np.flatnonzero(chosen))


def _unexpected(file: Path, number: int, form: str, line: str) -> DataError:
    return DataError(f"{file}, line {number}: expected {form!r}, found {line!r:.100}; {_FIX}")
