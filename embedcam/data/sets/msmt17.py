"""MSMT17 in its published layouts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ..catalog import DATASETS, Dataset
from ..lists import QUERY_SPLITS, Entry, listed, read_fields, root_of
from ..samples import FileSamples

# Folders of the training and the test pictures: version 1, and version 2, whose faces are blurred.
_VERSIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
_LISTS = {"train": ("train", "val"), "query": ("query",), "gallery": ("gallery",)}
_NAME = re.compile(r"[^/]+/\d+_\d+_(\d+)_[^/]*")


def msmt17(path: str | Path, split: str = "train") -> FileSamples:
    """Read MSMT17, version 1 or 2, from `list_train.txt`, `list_val.txt`, `list_query.txt` and `list_gallery.txt`.

    A line has a path such as `0000/0000_000_01_0303morning_0015_0.jpg`, whose third number is the camera, and the
    identity. Training and test identities are counted separately, so their names here are `train/0` and `test/0`.

    Args:
        path: The folder `MSMT17_V1` or `MSMT17_V2`, or the one that contains it.
        split: "train" (with the validation pictures), "query", "gallery", "test" for both of these, or "all".

    Returns:
        The pictures of the split, in the order of the lists.

    Raises:
        DataError: If the data set is missing, or a list is not as published.

    Source:
        Wei et al. 2018, Person Transfer GAN to Bridge Domain Gap for Person Re-identification.
    """
    root = root_of(path, "list_train.txt", "MSMT17", "MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17")
    found = next((names for names in _VERSIONS if all((root / name).is_dir() for name in names)), None)
    if found is None:
        expected = " or ".join(" and ".join(names) for names in _VERSIONS)
        raise DataError(f"{root} has no folders {expected}; unpack the archive again")

    def entries() -> Iterator[Entry]:
        for part, lists in _LISTS.items():
            side = "train" if part == "train" else "test"
            folder = found[side == "test"]
            for name in lists:
                file = root / f"list_{name}.txt"
                for picture, identity in read_fields(file, "<identity/picture> <identity>"):
                    parsed = _NAME.fullmatch(picture)
                    if parsed is None or not identity.isdecimal():
                        raise DataError(f"{file}: '{picture} {identity}' is not understood; unpack the archive again")
                    yield Entry(f"{folder}/{picture}", f"{side}/{identity}", (part,), parsed[1])

    return listed(root, root, entries(), split)


DATASETS.register("msmt17")(Dataset(msmt17, splits=QUERY_SPLITS))
