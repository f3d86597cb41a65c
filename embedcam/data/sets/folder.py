"""Data sets of a user's pictures: one folder per class, or a folder without classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...utils.names import expand_user, normal_name
from ..catalog import DATASETS, Dataset
from ..images import list_folders, list_images
from ..samples import FileSamples, find_masks, read_lines
from ..splits import check_split, rows_of, training_part

logger = logging.getLogger("embedcam")


def folder(path: str | Path, split: str = "train") -> FileSamples:
    """Read a data set from a folder.

    `path` contains `images/<class>/*` and optionally `masks/<class>/<stem>.png` and `ignore/<class>/<stem>.png`.
    Without a folder `images`, the class folders are in `path` itself. Without class folders the data set is
    unlabelled. The split is read from `train.txt` and `test.txt` in `path` (one `class/file.jpg` per line); without
    them, 60 % of every class are training pictures, selected by a seeded hash of the relative path.

    Args:
        path: Folder of the data set.
        split: "train", "test" or "all".

    Returns:
        The pictures of the split, sorted by class and name.

    Raises:
        DataError: If the folder is missing or empty, the split is empty, or a list names a missing picture.
    """
    check_split(split)
    root = expand_user(path)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {problem}; pass the folder that contains the pictures")
    samples = _whole(root)
    if split == "all":
        return samples
    rows = _own_split(root, samples.ids, split)
    if rows is None:
        rows = rows_of(split, training_part(samples.ids, samples.labels), root)
    return samples.subset(rows)


def _whole(root: Path) -> FileSamples:
    images = root / "images" if (root / "images").is_dir() else root
    classes = _class_folders(images)
    groups = [files for _, files in classes] or [list_images(images)]
    files = tuple(file for group in groups for file in group)
    if not files:
        raise DataError(f"no pictures in {images}; {_advice(images)}")
    ids = tuple(file.relative_to(images).as_posix() for file in files)
    for name in ids:
        if not _is_text(name):
            raise DataError(f"the file name {name!a} in {images} is not UTF-8; rename it")
    labels = np.repeat(np.arange(len(groups), dtype=np.int64), [len(group) for group in groups])
    return FileSamples(
        files=files,
        ids=ids,
        labels=labels if classes else None,
        names=tuple(normal_name(name) for name, _ in classes),
        mask_files=() if images == root else _find_masks(root / "masks", ids),
        ignore_files=() if images == root else _find_masks(root / "ignore", ids),
    )


def _class_folders(images: Path) -> list[tuple[str, list[Path]]]:
    folders = [(child.name, list_images(child)) for child in list_folders(images)]
    classes = [(name, files) for name, files in folders if files]
    if classes:
        for name in sorted(name for name, files in folders if not files):
            logger.warning("class folder %s has no pictures and is skipped", images / name)
    return classes


def _advice(images: Path) -> str:
    for child in list_folders(images):
        if any(list_images(grandchild) for grandchild in list_folders(child)):
            return f"they are one level deeper: use folder:{child}"
    return "put them into images/<class>/, as .jpg, .png or another common format"


def _find_masks(root: Path, ids: Sequence[str]) -> tuple[Path | None, ...]:
    masks = find_masks(root, ids)
    if root.is_dir() and not masks:
        logger.warning("no file in %s belongs to a picture; expected %s", root, (root / ids[0]).with_suffix(".png"))
    owners: dict[Path, str] = {}
    for mask, name in zip(masks, ids, strict=False):
        if mask is not None and owners.setdefault(mask, name) != name:
            raise DataError(f"{owners[mask]} and {name} would share the mask {mask}; rename one of the two")
    return masks


def _own_split(root: Path, ids: Sequence[str], split: str) -> NDArray[np.int64] | None:
    lists = {part: root / f"{part}.txt" for part in ("train", "test")}
    existing = [file for file in lists.values() if file.is_file()]
    if len(existing) < 2:
        for file in existing:
            logger.warning("%s is not used: a split needs both train.txt and test.txt", file)
        return None
    rows = {part: _listed_rows(file, ids) for part, file in lists.items()}
    both = rows["train"] & rows["test"]
    if both:
        raise DataError(f"{ids[min(both)]} is in both {lists['train']} and {lists['test']}; remove it from one")
    if not rows[split]:
        raise DataError(f"{lists[split]} lists no picture; list some, or use @all")
    return np.array(sorted(rows[split]), dtype=np.int64)


def _listed_rows(file: Path, ids: Sequence[str]) -> set[int]:
    row_of = {normal_name(name): row for row, name in enumerate(ids)}
    rows = set()
    for number, line in enumerate(read_lines(file), start=1):
        if not line:
            continue
        row = row_of.get(normal_name(PurePosixPath(line.replace("\\", "/")).as_posix()))
        if row is None:
            raise DataError(f"{file}, line {number}: no picture {line!r}; expected one such as {ids[0]}")
        rows.add(row)
    return rows


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


DATASETS.register("folder")(Dataset(folder))
