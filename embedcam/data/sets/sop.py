"""Stanford Online Products in its published layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..catalog import DATASETS, Dataset
from ..lists import Entry, listed, read_fields, root_of
from ..samples import FileSamples

_HEADER, _FORM = "image_id class_id super_class_id path", "<image id> <class id> <super class id> <path>"


def sop(path: str | Path, split: str = "train") -> FileSamples:
    """Read Stanford Online Products from `Ebay_train.txt` and `Ebay_test.txt`.

    Args:
        path: The folder `Stanford_Online_Products`, or the one that contains it.
        split: "train", "test" or "all"; the classes of the first two differ.

    Returns:
        The pictures of the split, in the order of the lists.

    Raises:
        DataError: If the data set is missing, or a list is not as published.

    Source:
        Song et al. 2016, Deep Metric Learning via Lifted Structured Feature Embedding.
    """
    root = root_of(path, "Ebay_train.txt", "Stanford Online Products", "Stanford_Online_Products")

    def entries() -> Iterator[Entry]:
        for part in ("train", "test"):
            for _, label, _, name in read_fields(root / f"Ebay_{part}.txt", _FORM, header=[_HEADER]):
                yield Entry(name, label, (part,))

    return listed(root, root, entries(), split)


DATASETS.register("sop")(Dataset(sop))
