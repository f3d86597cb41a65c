"""A data set as a table of pictures, with the columns of open-metric-learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...utils.names import expand_user
from ..catalog import DATASETS, Dataset
from ..lists import QUERY_SPLITS, Entry, listed
from ..samples import FileSamples
from ..texts import read_table

_SPLITS = {"train": "train", "test": "test", "validation": "test", "val": "test"}
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0", "", "none", "nan")
_BOX = ("x_1", "y_1", "x_2", "y_2")
_GROUPS = ("camera", "sequence")


def table(path: str | Path, split: str = "train") -> FileSamples:
    """Read a data set from a CSV file.

    Columns: `path`, from the folder of the table; `label`, any text; `split`, train, or test (validation); optionally
    `is_query` and `is_gallery` (true or false, of the test pictures; without these columns, every test picture is
    both), `x_1`, `y_1`, `x_2`, `y_2` (the object's box in pixels), and `camera` or `sequence`: pictures of one label
    with the same value are no hits for each other. Other columns are ignored.

    Args:
        path: The CSV file.
        split: "train", "query", "gallery", "test" for all test pictures, or "all".

    Returns:
        The pictures of the split, in the order of the table.

    Raises:
        DataError: If the table is missing, or a row is not understood.

    Source:
        open-metric-learning, github.com/OML-Team/open-metric-learning, for the columns.
    """
    file = expand_user(path)
    columns, rows = read_table(file)
    for column in ("path", "label", "split"):
        if column not in columns:
            raise DataError(f"{file} has no column {column}; expected a CSV file with path,label,split")
    if {*_GROUPS} <= {*columns}:
        raise DataError(f"{file} has the columns camera and sequence; keep the one whose pictures are no hits")
    for number, row in enumerate(rows, start=2):
        for column in ("path", "label", *_GROUPS):
            if not row.get(column, "given"):
                raise DataError(f"{file}, row {number}: {column} is empty; fill it in")
    # Absolute paths start from the root of the file system.
    anchors = {Path(row["path"]).anchor for row in rows}
    if len(anchors) > 1:
        raise DataError(f"{file} has absolute and relative paths; write all of them in one way")
    images = file.parent.joinpath(*anchors)
    entries = [_entry(row, file, number) for number, row in enumerate(rows, start=2)]
    boxed = {*_BOX} <= {*columns}
    boxes = np.array([_box(row, file, number) for number, row in enumerate(rows, start=2)]) if boxed else None
    return listed(file, images, entries, split, boxes=boxes)


def _entry(row: Mapping[str, str], file: Path, number: int) -> Entry:
    path = Path(row["path"])
    camera = next((row[column] for column in _GROUPS if column in row), "")
    if row["split"] not in _SPLITS:
        raise DataError(f"{file}, row {number}: unknown split {row['split']!r}; use one of {', '.join(_SPLITS)}")
    parts: tuple[str, ...] = (_SPLITS[row["split"]],)
    if parts == ("test",):
        parts = tuple(
            part for part in ("query", "gallery") if _is_true(row.get(f"is_{part}", "true"), f"{file}, row {number}")
        )
    return Entry(path.relative_to(path.anchor).as_posix(), row["label"], parts, camera)


def _is_true(text: str, where: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise DataError(f"{where}: is_query and is_gallery must be true or false, found {text!r}")
    return text.lower() in _TRUE


def _box(row: Mapping[str, str], file: Path, number: int) -> list[float]:
    try:
        left, top, right, bottom = (float(row[column]) for column in _BOX)
    except ValueError:
        left = top = right = bottom = float("nan")
    if not (math.isfinite(left + top + right + bottom) and left < right and top < bottom):
        found = ", ".join(row[column] for column in _BOX)
        raise DataError(f"{file}, row {number}: expected a box x_1 < x_2, y_1 < y_2, found {found}; correct it")
    return [left, top, right - left, bottom - top]


DATASETS.register("table")(Dataset(table, argument="FILE.csv", splits=QUERY_SPLITS))
