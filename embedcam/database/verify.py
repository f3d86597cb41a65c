"""Go through a weight database item by item and say of each whether it is sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from numpy.typing import NDArray

from ..errors import DatabaseError
from . import items, store
from .checks import agreement, contents, forms
from .hdf5 import Hdf5
from .record import WeightDatabase


class Outcome(NamedTuple):
    """What was found of one item.

    Attributes:
        item: Its path in the file, or "checksum" or "format" for the file as a whole.
        found: What there is, or what is wrong with it.
        sound: Whether nothing is wrong.
    """

    item: str
    found: str
    sound: bool = True


def verify(path: str | Path) -> list[Outcome]:
    """Check a weight database as thoroughly as can be, where loading it would stop at the first fault.

    Beyond what loading checks, the parts that say the same thing twice must agree: top channels with mean weights,
    counts with exemplars, the label histogram with both.

    Args:
        path: The file.

    Returns:
        One outcome an item, in the order of the file. What cannot be told after a fault is left out.

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
    yield Outcome("checksum", "matches" if sealed else "none, another program wrote the file")
    try:
        file = Hdf5(content)
        yield Outcome("format", items.read_version(file))
        names = items.item_names(file)
    except DatabaseError as error:
        yield Outcome("format", str(error), False)
        return

    found: dict[str, Outcome] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for name in names:
        try:
            arrays[name] = items.read_item(file, name)
            found[f"/{name}"] = Outcome(f"/{name}", _form(arrays[name]))
        except DatabaseError as error:
            found[f"/{name}"] = Outcome(f"/{name}", str(error), False)
    if len(arrays) == len(names):
        try:
            found |= _faults(cast(WeightDatabase, SimpleNamespace(**items.fields_of(file, arrays))))
        except DatabaseError as error:
            found["attributes"] = Outcome("attributes", str(error), False)
        else:
            found.setdefault("attributes", Outcome("attributes", "complete"))
    yield from found.values()


def _faults(db: WeightDatabase) -> dict[str, Outcome]:
    """The first fault of each item; later kinds of check only where the earlier found none."""
    found: dict[str, Outcome] = {}
    for kind in (forms, contents, agreement):
        for item, true, expected, instead in kind(db):
            if not true:
                found.setdefault(item, Outcome(item, f"expected {expected}, found {instead}", False))
        if found:
            break
    return found


def _form(array: NDArray[Any]) -> str:
    dtype = "text" if array.dtype == object else array.dtype
    return f"{' x '.join(map(str, array.shape)) or 'one value'}, {dtype}"
