"""Caltech-UCSD Birds-200-2011 in its official layout, with the segmentations of Ryan Farrell, boxes and parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...utils.names import expand_user
from ..catalog import DATASETS, Dataset
from ..keypoints import Keypoints
from ..samples import FileSamples, find_masks
from ..splits import check_split, rows_of
from ..texts import read_lines

PROTOCOLS = ("standard", "metric")

_FIX = "unpack the archive again"
_HEAD = ("beak", "crown", "forehead", "left eye", "nape", "right eye", "throat")


def cub(path: str | Path, split: str = "train", protocol: str = "standard", *, pseudo: bool = False) -> FileSamples:
    """Read CUB-200-2011.

    Masks are read from a folder `segmentations` inside `CUB_200_2011` or beside it. Their grey values are the
    fraction of annotators who marked the pixel; by default, the object is where more than half of them did. Without
    this folder, the boxes of `bounding_boxes.txt` are the masks. The parts of `parts/` are the keypoints.

    Args:
        path: The folder `CUB_200_2011`, or the one that contains it.
        split: "train", "test" or "all".
        protocol: "standard" for the official split; "metric" for training on the first half of the classes and
            testing on the other half, as in metric learning.
        pseudo: Read masks that a program made, and ignore masks, from the folders `masks` and `ignore` instead.

    Returns:
        The pictures of the split, in the official order; `names` has all classes in every split.

    Raises:
        DataError: If the data set is missing or an index file is damaged.
    """
    check_split(split)
    if protocol not in PROTOCOLS:
        raise DataError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    root = expand_user(path)
    if not (root / "images.txt").is_file():
        root = root / "CUB_200_2011"
    if not (root / "images.txt").is_file() or not (root / "images").is_dir():
        raise DataError(
            f"no CUB_200_2011 with images.txt and images in {path}; get it with 'python scripts/download_cub.py {path}'"
        )
    classes = _read_index(root / "classes.txt", "<id> <name>")
    pictures = _read_index(root / "images.txt", "<id> <class>/<file>", _is_inside)
    class_of = _read_index(root / "image_class_labels.txt", "<id> <id in classes.txt>", classes.__contains__)
    official = _read_index(root / "train_test_split.txt", "<id> <0 or 1>", ("0", "1").__contains__)
    for file, index in (("image_class_labels.txt", class_of), ("train_test_split.txt", official)):
        stray = index.keys() ^ pictures.keys()
        if stray:
            raise DataError(f"id {min(stray)} is in only one of {root / 'images.txt'} and {file}; {_FIX}")
    position = {key: label for label, key in enumerate(classes)}
    labels = np.array([position[class_of[key]] for key in pictures], dtype=np.int64)
    ids = tuple(pictures.values())
    boxes = _boxes(root / "bounding_boxes.txt", pictures)
    masks = next(filter(Path.is_dir, (root / "segmentations", root.parent / "segmentations")), None)
    kind = "mask" if masks else "box"
    if pseudo:
        masks, kind = root / "masks", "pseudo mask"
        if not masks.is_dir():
            raise DataError(f"no pseudo masks in {masks}; write 'cub:{path}' to read segmentations or boxes")
    samples = FileSamples(
        files=tuple(root / "images" / name for name in ids),
        ids=ids,
        labels=labels,
        names=tuple(classes.values()),
        mask_files=find_masks(masks, ids) if masks else (),
        ignore_files=find_masks(root / "ignore", ids) if pseudo else (),
        boxes=boxes,
        keypoints=_parts(root / "parts", pictures),
        mask_kind=kind,
    )
    if protocol == "metric":
        training = labels < len(classes) // 2
    else:
        training = np.array([official[key] == "1" for key in pictures])
    return samples.subset(rows_of(split, training, root))


def _boxes(file: Path, pictures: Iterable[str]) -> NDArray[np.float64] | None:
    if not file.is_file():
        return None
    lines = _read_index(file, "<id> <x> <y> <width> <height>", lambda value: len(_numbers(value)) == 4)
    return np.array([_numbers(_of(lines, key, file)) for key in pictures])


def _parts(folder: Path, pictures: Iterable[str]) -> Keypoints | None:
    file = folder / "part_locs.txt"
    if not file.is_file():
        return None
    names = _read_index(folder / "parts.txt", "<id> <name>")
    rows = {key: row for row, key in enumerate(pictures)}
    columns = {key: column for column, key in enumerate(names)}
    places = np.full((len(rows), len(columns), 2), np.nan)
    for number, line in enumerate(filter(None, read_lines(file)), start=1):
        picture, _, rest = line.partition(" ")
        part, _, place = rest.partition(" ")
        numbers = _numbers(place)
        if picture not in rows or part not in columns or len(numbers) != 3:
            raise DataError(f"{file}, line {number}: expected '<id> <part> <x> <y> <visible>', found {line!r}; {_FIX}")
        if numbers[2]:
            places[rows[picture], columns[part]] = numbers[:2]
    groups = ("head" if name in _HEAD else "tail" if name == "tail" else "body" for name in names.values())
    return Keypoints(tuple(names.values()), tuple(groups), places)


def _numbers(text: str) -> list[float]:
    """Parse finite numbers; an empty list if one is none."""
    try:
        numbers = [float(number) for number in text.split()]
    except ValueError:
        return []
    return numbers if np.isfinite(numbers).all() else []


def _of(lines: dict[str, str], key: str, file: Path) -> str:
    if key not in lines:
        raise DataError(f"id {key} is missing in {file}; {_FIX}")
    return lines[key]


def _read_index(file: Path, form: str, is_valid: Callable[[str], bool] = bool) -> dict[str, str]:
    index: dict[str, str] = {}
    for number, line in enumerate(read_lines(file), start=1):
        if not line:
            continue
        key, _, value = line.partition(" ")
        if not key.isdecimal() or not is_valid(value):
            raise DataError(f"{file}, line {number}: expected {form!r}, found {line!r}; {_FIX}")
        if key in index:
            raise DataError(f"{file}, line {number}: duplicate id {key}; {_FIX}")
        index[key] = value
    if not index:
        raise DataError(f"{file} is empty; {_FIX}")
    return index


def _is_inside(name: str) -> bool:
    # Ids become file names, which must not lead out of their folder.
    parts = PurePosixPath(name).parts
    return len(parts) == 2 and parts[0] not in ("/", "..") and parts[1] != ".."


DATASETS.register("cub")(Dataset(cub))
DATASETS.register("cub-metric")(Dataset(functools.partial(cub, protocol="metric")))
DATASETS.register("cub-pseudo")(Dataset(functools.partial(cub, pseudo=True)))
