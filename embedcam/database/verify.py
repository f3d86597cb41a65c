"""Check a weight database item by item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ..errors import DatabaseError
from . import items, store
from .checks import agreement, contents, forms
from .hdf5 import Hdf5
from .record import Record


class Outcome(NamedTuple):
    """The result for one item.

    Attributes:
        item: Its path in the file, or "checksum", "format" or "attributes" for the file as a whole.
        found: Its shape and type, or what is wrong with it.
        sound: Whether nothing is wrong.
    """

    item: str
    found: str
    sound: bool = True


def verify(path: str | Path) -> list[Outcome]:
    """Check a weight database thoroughly, while loading it would stop at the first fault.

    In addition to what loading checks, redundant parts must agree: top channels with mean weights, counts with
    exemplars, and the label histogram with both.

    Args:
        path: The file.

    Returns:
        One outcome per item, in the order of the file. What a fault makes impossible to check is left out.

    Raises:
        DatabaseError: If there is no such file, or it cannot be read.
    """
    return list(_outcomes(store.read_bytes(Path(path))))


def _outcomes(data: bytes) -> Iterator[Outcome]:
    try:
        content, sealed = store.unseal(data)
    except DatabaseError as error:
        yield Outcome("checksum", str(error), False)
        return
    yield Outcome("checksum", "matches" if sealed else "none, written by another program")
    try:
        file = Hdf5(content)
        yield Outcome("format", items.read_version(file))
        names = items.item_names(file)
    except DatabaseError as error:
        yield Outcome("format", str(error), False)
        return

    outcomes: dict[str, Outcome] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for name in names:
        try:
            arrays[name] = items.read_item(file, name)
            outcomes[f"/{name}"] = Outcome(f"/{name}", _form(arrays[name]))
        except DatabaseError as error:
            outcomes[f"/{name}"] = Outcome(f"/{name}", str(error), False)
    if len(arrays) == len(names):
        try:
            outcomes |= _faults(Record(**items.fields_of(file, arrays)))
        except DatabaseError as error:
            outcomes["attributes"] = Outcome("attributes", str(error), False)
        else:
            outcomes.setdefault("attributes", Outcome("attributes", "complete"))
    yield from outcomes.values()


def _faults(db: Record) -> dict[str, Outcome]:
    """List the first fault of each item; a later kind of check assumes that the earlier kinds found none."""
    faults: dict[str, Outcome] = {}
    for kind in (forms, contents, agreement):
        for item, true, expected, actual in kind(db):
            if not true:
                faults.setdefault(item, Outcome(item, f"expected {expected}, found {actual}", False))
        if faults:
            break
    return faults


def _form(array: NDArray[Any]) -> str:
    dtype = "text" if array.dtype == object else array.dtype
    return f"{' x '.join(map(str, array.shape)) or 'one value'}, {dtype}"
