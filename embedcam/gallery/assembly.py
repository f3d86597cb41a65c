"""Assemble gallery indexes: a new file, copies of images, and several indexes merged into one."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DatabaseError, DataError, OutputError
from ..utils.clock import now
from ..utils.files import atomic_path, destination
from ..utils.progress import counting
from . import format as layout
from .format import DescriptorSpace, GalleryRecord
from .index_file import IndexFile
from .names import Names

if TYPE_CHECKING:
    import h5py

logger = logging.getLogger("embedcam")

_BLOCK = 1024  # images copied at a time


def merge(files: Sequence[str | Path], out: str | Path) -> int:
    """Merge indexes of the same network, in the given order.

    Cells are copied as they are stored, and so are descriptors, if those of all indexes can be compared. Memory grows
    by a few bytes per image.

    Args:
        files: The indexes.
        out: The file; written completely or not at all.

    Returns:
        Number of images in the file.

    Raises:
        DatabaseError: If a file is not an index, or belongs to another network or has other cells.
        DataError: If two images have the same id.
        OutputError: If the file cannot be written.
    """
    if not files:
        raise DataError("no index to merge; give files that `embedcam index` wrote")
    with contextlib.ExitStack() as opened:
        indexes = [opened.enter_context(IndexFile(Path(file))) for file in files]
        for index in indexes[1:]:
            _require_alike(indexes[0], index)
        _require_distinct(indexes)
        names = list(dict.fromkeys(name for index in indexes for name in index.label_names))
        total, size = sum(map(len, indexes)), sum(index.path.stat().st_size for index in indexes)
        record = replace(indexes[0].record, created=now(), space=_common_space(indexes))
        with counting("merging", total) as count, new_index(Path(out), record, names, size) as file:
            for index in indexes:
                copy(index, file, names, count)
    return total


@contextlib.contextmanager
def new_index(out: Path, record: GalleryRecord, names: Sequence[str], size: int) -> Iterator[h5py.File]:
    """Make an empty index that replaces `out` on success.

    Args:
        out: The file.
        record: What its images will have in common.
        names: Names of their classes.
        size: About how many bytes will be written.

    Yields:
        The index.

    Raises:
        OutputError: If the file cannot be written.
    """
    import h5py

    folder = destination(out).parent
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < size:  # libhdf5 may end the process where the disk is full
        raise OutputError(f"{out} needs {size / 1e9:.1f} GB; free some space")
    with atomic_path(out) as temporary, h5py.File(temporary, "w", libver="earliest") as file:
        layout.create(file, record, names, folder)
        yield file


def copy(index: IndexFile, file: h5py.File, names: Sequence[str], count: Callable[[int], object]) -> None:
    """Append all images of an index.

    Args:
        index: The index.
        file: To which they are appended.
        names: Names of its classes.
        count: Called with the number of images after each block.
    """
    places = np.array([*map(names.index, index.label_names), -1], np.int64)  # the last: of unknown class
    for rows in index.blocks(_BLOCK):
        arrays = {key: index.read(key, rows) for key in index.arrays if key in file}
        arrays["labels"] = places[arrays["labels"]]
        layout.append(file, {key: index.texts(key, rows) for key in layout.TEXTS}, arrays)
        count(rows.stop - rows.start)


def _common_space(indexes: Sequence[IndexFile]) -> DescriptorSpace | None:
    space = indexes[0].record.space
    for index in indexes[1:]:
        if space is not None and not space.same_as(index.record.space):
            logger.warning(
                "%s and %s have different descriptors, which are left out: corresponding places are found with cells; "
                "to keep them, index the second one with --like %s",
                *(indexes[0].path, index.path, indexes[0].path),
            )
            return None
    return space


def _require_alike(first: IndexFile, other: IndexFile) -> None:
    ours, theirs = first.record, other.record
    pairs = {
        "network": (ours.network.sha256[:12], theirs.network.sha256[:12]),
        "metric": (ours.network.metric, theirs.network.metric),
        "preprocessing": (ours.network.preprocess, theirs.network.preprocess),
        "layer": (ours.network.layer, theirs.network.layer),
        "cells": (ours.cells, theirs.cells),
        "geometry": (ours.geometry, theirs.geometry),
    }
    if different := [f"{name} {one} and {another}" for name, (one, another) in pairs.items() if one != another]:
        raise DatabaseError(
            f"{first.path} and {other.path} differ: {'; '.join(different)}; index all images with one network"
        )


def _require_distinct(indexes: Sequence[IndexFile]) -> None:
    seen: list[Names] = []
    for index in indexes:
        names = Names(index, "ids")
        for earlier, before in zip(seen, indexes, strict=False):
            common = np.isin(names.hashes, earlier.hashes)
            if not common.any():
                continue
            texts = (text for rows in index.blocks(_BLOCK) for text in index.texts("ids", rows))
            twice = next((text for text in texts if earlier.row(text) is not None), None)
            if twice is not None:
                raise DataError(
                    f"{before.path} and {index.path} have {int(common.sum())} ids in common, such as {twice}; "
                    "index images once, and those of several folders from the folder above"
                )
        seen.append(names)
