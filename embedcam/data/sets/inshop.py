"""In-shop Clothes Retrieval of DeepFashion in its published layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ..catalog import DATASETS, Dataset
from ..lists import QUERY_SPLITS, Entry, listed, read_fields, root_of
from ..samples import FileSamples

_LIST = "list_eval_partition.txt"


def inshop(path: str | Path, split: str = "train") -> FileSamples:
    """Read In-shop Clothes Retrieval from `list_eval_partition.txt`.

    The list is in `path` or in its folder `Eval`, and the folder `img` in `path` or in its folder `Img`.

    Args:
        path: The folder of the benchmark.
        split: "train", "query", "gallery", "test" for both of these, or "all".

    Returns:
        The pictures of the split, in the order of the list.

    Raises:
        DataError: If the data set is missing, or the list is not as published.

    Source:
        Liu et al. 2016, DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations.
    """
    folder = root_of(path, _LIST, "In-shop Clothes Retrieval", "Eval")
    root = folder.parent if folder.name == "Eval" else folder
    images = root_of(root, "img", "In-shop Clothes Retrieval", "Img")

    def entries() -> Iterator[Entry]:
        form = "<img/path> <item id> <train, query or gallery>"
        for name, label, part in read_fields(folder / _LIST, form, header=["", "image_name"]):
            if part not in ("train", "query", "gallery"):
                raise DataError(f"{folder / _LIST}: {name} is in {part!r}; expected train, query or gallery")
            yield Entry(name, label, (part,))

    return listed(root, images, entries(), split)


DATASETS.register("inshop")(Dataset(inshop, splits=QUERY_SPLITS))
