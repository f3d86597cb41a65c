"""VeRi-776 in its published layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ..catalog import DATASETS, Dataset
from ..lists import QUERY_SPLITS, Entry, listed, read_fields, root_of
from ..samples import FileSamples

_LISTS = {"train": "train", "query": "query", "gallery": "test"}
_NAME = re.compile(r"(\d+)_c(\d+)_\w+\.jpg")


def veri(path: str | Path, split: str = "train") -> FileSamples:
    """Read VeRi-776 from `name_train.txt`, `name_query.txt` and `name_test.txt`.

    A line is a name such as `0002_c002_00030600_0.jpg`: the vehicle and the camera. The pictures are in `image_train`,
    `image_query` and `image_test`.

    Args:
        path: The folder `VeRi`, or the one that contains it.
        split: "train", "query", "gallery" (the test list), "test" for both of these, or "all".

    Returns:
        The pictures of the split, in the order of the lists.

    Raises:
        DataError: If the data set is missing, or a list is not as published.

    Source:
        Liu et al. 2016, Large-scale Vehicle Re-Identification in Urban Surveillance Videos.
    """
    root = root_of(path, "name_train.txt", "VeRi", "VeRi", "VeRi_with_plate", "VeRi-776", "veri")

    def entries() -> Iterator[Entry]:
        for part, name in _LISTS.items():
            file = root / f"name_{name}.txt"
            for (picture,) in read_fields(file, "<picture>"):
                parsed = _NAME.fullmatch(picture)
                if parsed is None:
                    raise DataError(f"{file}: {picture!r} is no name such as 0002_c002_00030600_0.jpg; correct it")
                yield Entry(f"image_{name}/{picture}", parsed[1], (part,), parsed[2])

    return listed(root, root, entries(), split)


DATASETS.register("veri")(Dataset(veri, splits=QUERY_SPLITS))
