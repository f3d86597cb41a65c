"""Market-1501 in its published layout, which other data sets for re-identification have taken over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ..catalog import DATASETS, Dataset
from ..lists import QUERY_SPLITS, Entry, listed, root_of
from ..samples import FileSamples

_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_NAME = re.compile(r"(-1|\d{4,})_c(\d+)(s\d+)?_\w+\.(jpg|png)")
_JUNK = "-1"


def market1501(path: str | Path, split: str = "train") -> FileSamples:
    """Read Market-1501 from the names of its pictures, such as `0002_c1s1_000451_03.jpg`.

    The name starts with the identity and the camera. Junk (identity -1) is left out, as it is neither right nor wrong;
    distractors (identity 0000) are a class of the gallery.

    Args:
        path: The folder `Market-1501-v15.09.15`, or the one that contains it.
        split: "train", "query", "gallery" (`bounding_box_test`), "test" for both of these, or "all".

    Returns:
        The pictures of the split, sorted by name.

    Raises:
        DataError: If a folder is missing, or a picture has another name.

    Source:
        Zheng et al. 2015, Scalable Person Re-identification: A Benchmark.
    """
    root = root_of(path, _FOLDERS["train"], "Market-1501", "Market-1501-v15.09.15", "market1501")

    def entries() -> Iterator[Entry]:
        for part, folder in _FOLDERS.items():
            for file in sorted((root / folder).iterdir()):
                if file.suffix.lower() not in (".jpg", ".png"):
                    continue
                parsed = _NAME.fullmatch(file.name)
                if parsed is None:
                    raise DataError(
                        f"the name of {file} is not understood; expected one such as 0002_c1s1_000451_03.jpg"
                    )
                if parsed[1] != _JUNK:
                    yield Entry(f"{folder}/{file.name}", parsed[1], (part,), parsed[2])

    return listed(root, root, entries(), split)


DATASETS.register("market1501")(Dataset(market1501, splits=QUERY_SPLITS))
