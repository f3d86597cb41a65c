"""Reproducible splits into training and test pictures."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.names import normal_name

SPLITS = ("train", "test", "all")

_SEED = 0


def check_split(split: str) -> None:
    """Check the name of a split.

    Args:
        split: "train", "test" or "all".

    Raises:
        DataError: If there is no such split.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")


def training_part(ids: Sequence[str], labels: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """Select 60 % of every class for training (rounded up), by a seeded hash of the ids.

    The selection depends only on the ids of each class, not on their order, the machine or the folder.

    Args:
        ids: (N,) "/"-separated relative paths.
        labels: (N,) class of each picture; None selects 60 % of all.

    Returns:
        (N,) bool, True for training pictures.
    """
    members = defaultdict(list)
    for row, label in enumerate(np.zeros(len(ids), np.int64) if labels is None else labels):
        members[int(label)].append(row)
    training = np.zeros(len(ids), dtype=np.bool_)
    for rows in members.values():
        rows.sort(key=lambda row: (seeded_hash(ids[row]), ids[row]))
        training[rows[: (3 * len(rows) + 4) // 5]] = True
    return training


def rows_of(split: str, training: NDArray[np.bool_], where: object) -> NDArray[np.int64]:
    """Return the indices of a split's pictures.

    Args:
        split: "train", "test" or "all".
        training: (N,) bool, True for training pictures.
        where: Name of the data set in messages.

    Returns:
        int64 indices, ascending and not empty.

    Raises:
        DataError: If the split is unknown or empty.
    """
    check_split(split)
    rows = np.flatnonzero({"train": training, "test": ~training, "all": np.ones_like(training)}[split])
    if not len(rows):
        raise DataError(
            f"the {split} split of {where} is empty ({len(training)} pictures in all); add pictures, or use @all"
        )
    return rows.astype(np.int64)


def seeded_hash(name: str) -> bytes:
    """Hash a name for a random choice that is the same on every machine.

    Args:
        name: Of a picture.

    Returns:
        32 bytes.
    """
    return hashlib.sha256(normal_name(f"{_SEED}/{name}").encode()).digest()
