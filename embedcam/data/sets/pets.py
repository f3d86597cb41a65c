"""Oxford-IIIT Pet through torchvision, with its trimaps as masks."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from ...errors import DataError, MissingDependencyError
from ...utils.names import expand_user
from ..catalog import DATASETS, Dataset
from ..images import read_mask
from ..samples import FileSamples, find_masks
from ..splits import check_split, rows_of

_FOLDER = "oxford-iiit-pet"
_OBJECT, _BORDER = 1, 3  # trimap values; 2 is the background


def pets(path: str | Path, split: str = "train") -> FileSamples:
    """Read Oxford-IIIT Pet: 37 breeds; the pet is the object, its uncertain border is ignored.

    Args:
        path: The folder `oxford-iiit-pet`, or the one that contains it.
        split: "train" (the official trainval), "test" or "all".

    Returns:
        The pictures of the split; `names` has all breeds in every split.

    Raises:
        DataError: If the data set is missing or an index file is damaged.
        MissingDependencyError: If torchvision is not installed.
    """
    check_split(split)
    try:
        from torchvision.datasets import OxfordIIITPet
    except ImportError as error:
        raise MissingDependencyError(
            "pets needs torchvision, which is not installed: pip install 'embedcam[torch]'"
        ) from error
    root = expand_user(path)
    root = root.parent if root.name == _FOLDER else root
    try:
        # Both parts are read, so that labels are the same in both.
        parts = [OxfordIIITPet(str(root), split=part) for part in ("trainval", "test")]
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"no complete Oxford-IIIT Pet in {root} ({error}); get it with: python -c "
            f"\"import torchvision; torchvision.datasets.OxfordIIITPet('{root}', download=True)\""
        ) from error
    files = tuple(Path(file) for part in parts for file in part._images)
    numbers = np.array([number for part in parts for number in part._labels], dtype=np.int64)
    breeds = {number: _breed(file) for number, file in zip(numbers.tolist(), files, strict=True)}
    ids = tuple(file.name for file in files)
    trimaps = find_masks(root / _FOLDER / "annotations" / "trimaps", ids)
    samples = FileSamples(
        files=files,
        ids=ids,
        labels=np.searchsorted(sorted(breeds), numbers).astype(np.int64),
        names=tuple(breeds[number] for number in sorted(breeds)),
        mask_files=trimaps,
        ignore_files=trimaps,
        mask_reader=functools.partial(read_mask, value=_OBJECT),
        ignore_reader=functools.partial(read_mask, value=_BORDER, empty_ok=True),
    )
    training = np.arange(len(files)) < len(parts[0])
    return samples.subset(rows_of(split, training, root))


def _breed(file: Path) -> str:
    # "american_bulldog_100.jpg" -> "American Bulldog", as in torchvision.
    return file.stem.rpartition("_")[0].replace("_", " ").title()


DATASETS.register("pets")(Dataset(pets))
