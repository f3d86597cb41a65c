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
from ..samples import FileSamples, find_masks
from ..splits import check_split, rows_of, training_part
from ..texts import read_lines
from ..tree import Tree, describe, find_pictures

logger = logging.getLogger("embedcam")

_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")


def folder(path: str | Path, split: str = "train") -> FileSamples:
    """Read a data set from a folder.

    `path` contains `images/<class>/*` and optionally `masks/<class>/<stem>.png` and `ignore/<class>/<stem>.png`.
    Without a folder `images`, the class folders are in `path` itself. Pictures in sub-folders of a class belong to the
    class, as in torchvision's ImageFolder. Without class folders the data set is unlabelled.

    The split is read from `train.txt` and `test.txt` in `path` (one `class/file.jpg` per line). Without them, folders
    `train` and `test` (or `val`) that contain the class folders are the split. Without these, 60 % of every class are
    training pictures, selected by a seeded hash of the relative path.

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
    images = root / "images" if (root / "images").is_dir() else root
    tree = find_pictures(images)
    parts = _split_folders(tree)
    samples = _whole(root, tree, depth=1 if parts else 0)
    if split == "all":
        return samples
    rows = _own_split(root, samples.ids, split)
    if rows is None and parts:
        rows = np.array([row for row, name in enumerate(samples.ids) if name.startswith(f"{parts[split]}/")], np.int64)
    if rows is None:
        rows = rows_of(split, training_part(samples.ids, samples.labels), root)
    return samples.subset(rows)


def _split_folders(tree: Tree) -> dict[str, str]:
    """Return the folders of the training and the test pictures, if all pictures are in folders with such names."""
    names = {parts[0] for parts, pictures in tree.folders.items() if parts and pictures}
    if not names <= {*_TRAIN, *_TEST}:
        return {}
    train, test = ([name for name in known if name in names] for known in (_TRAIN, _TEST))
    if len(test) > 1:
        logger.warning("%s: the test split is %s; %s is in @all only", tree.root, test[0], ", ".join(test[1:]))
    return {"train": train[0], "test": test[0]} if train and test else {}


def _whole(root: Path, tree: Tree, depth: int) -> FileSamples:
    """Read all pictures; the classes are the names at a depth of the tree."""
    images = tree.root
    classes = sorted(
        {normal_name(parts[depth]) for parts, names in tree.folders.items() if len(parts) > depth and names}
    )
    if classes:
        _check_classes(tree, classes, depth)
        beside = [parts for parts in tree.folders if len(parts) <= depth]
        if strays := sum(len(tree.folders.pop(parts)) for parts in beside):
            tree.left_out["pictures beside class folders"] = strays
    ids = tuple(tree.ids())
    if not ids:
        found = f" (left out: {describe(tree.left_out)})" if tree.left_out else ""
        raise DataError(
            f"no pictures in {images}{found}; put them into images/<class>/, as .jpg, .png or another common format"
        )
    tree.warn()
    for name in ids:
        if not _is_text(name):
            raise DataError(f"the file name {name!a} in {images} is not UTF-8; rename it")
    number = {name: label for label, name in enumerate(classes)}
    labels = (
        [number[normal_name(parts[depth])] for parts, names in tree.folders.items() for _ in names] if classes else None
    )
    return FileSamples(
        files=tuple(images / name for name in ids),
        ids=ids,
        labels=None if labels is None else np.array(labels, dtype=np.int64),
        names=tuple(classes),
        mask_files=() if images == root else _find_masks(root / "masks", ids),
        ignore_files=() if images == root else _find_masks(root / "ignore", ids),
        problems=tuple(tree.problems),
    )


def _check_classes(tree: Tree, classes: list[str], depth: int) -> None:
    for parts in tree.folders:
        if len(parts) == depth + 1 and normal_name(parts[depth]) not in classes:
            logger.warning("class folder %s has no pictures and is skipped", tree.root.joinpath(*parts))
    if any(names for parts, names in tree.folders.items() if len(parts) == depth + 1):
        return
    # Two levels of folders and pictures in the lower one only.
    if len(classes) == 1 and depth == 0:
        raise DataError(f"no pictures in {tree.root}; they are one level deeper: use folder:{tree.root / classes[0]}")
    lower = sorted({parts[depth + 1] for parts, names in tree.folders.items() if names and len(parts) > depth + 1})
    logger.warning(
        "%s has two levels of folders: its classes are %s, and sub-folders such as %s belong to them; "
        "for classes of the lower level, move these folders into one folder",
        *(tree.root, ", ".join(classes[:5]), ", ".join(lower[:5])),
    )


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
