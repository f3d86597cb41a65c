"""Which pictures train and which test: a seeded rule that any machine repeats."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

SPLITS = ("train", "test", "all")

_SEED = 0


def check_split(split: str) -> None:
    """Refuse a split that does not exist.

    Args:
        split: "train", "test" or "all".

    Raises:
        DataError: If it is anything else.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")


def training_part(ids: Sequence[str], labels: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """Choose 60 % of every class for training (rounded up), by a seeded hash of the ids.

    The choice depends on nothing but the ids of each class: not on their order, the machine or the folder.

    Args:
        ids: (N,) "/"-separated relative paths.
        labels: (N,) class of each; None takes 60 % of the whole.

    Returns:
        (N,) bool, True where the picture is for training.
    """
    members = defaultdict(list)
    for row, label in enumerate(np.zeros(len(ids), np.int64) if labels is None else labels):
        members[int(label)].append(row)
    training = np.zeros(len(ids), dtype=np.bool_)
    for rows in members.values():
        rows.sort(key=lambda row: (_hash(ids[row]), ids[row]))
        training[rows[: (3 * len(rows) + 4) // 5]] = True
    return training


def rows_of(split: str, training: NDArray[np.bool_], where: object) -> NDArray[np.int64]:
    """List the rows of a split.

    Args:
        split: "train", "test" or "all".
        training: (N,) bool, True where the picture is for training.
        where: The data set, for the message.

    Returns:
        The rows, ascending; at least one.

    Raises:
        DataError: If there are none.
    """
    check_split(split)
    rows = np.flatnonzero({"train": training, "test": ~training, "all": np.ones_like(training)}[split])
    if not len(rows):
        raise DataError(
            f"the {split} split of {where} is empty ({len(training)} pictures in all); add pictures, or use @all"
        )
    return rows.astype(np.int64)


def _hash(name: str) -> bytes:
    # Composed, because macOS may list file names decomposed.
    return hashlib.sha256(unicodedata.normalize("NFC", f"{_SEED}/{name}").encode()).digest()
