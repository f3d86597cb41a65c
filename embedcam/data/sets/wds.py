"""WebDataset: pictures and their labels in tar archives, a few large files instead of many small ones."""

from __future__ import annotations

import itertools
import json
import logging
import re
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DataError
from ...utils.progress import track
from ..catalog import DATASETS, Dataset
from ..images import EXTENSIONS, read_image
from ..splits import check_split, rows_of, training_part
from ..tar import Member, members, read

logger = logging.getLogger("embedcam")

# Where a picture lies, in 24 bytes: millions of them fit in memory.
_ENTRY = np.dtype([("offset", "<i8"), ("name", "<i8"), ("shard", "<u4"), ("length", "<u4")])
_PACKED = struct.Struct("<qqII")
# Bytes of a picture, bytes of what holds its label, and letters of that; more is damage or an attack.
_LARGEST_PICTURE, _LARGEST_LABEL, _LONGEST_LABEL = 2**30, 2**20, 1000

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_BRACES = re.compile(r"\{(\d{1,18}\.\.\d{1,18}|[^{},]*(?:,[^{},]*)+)\}")


class Names(Sequence[str]):
    """Many names in one piece of text; a tuple of them would take five times the memory.

    Args:
        text: The names in UTF-8, each with a zero byte behind it.
        starts: (N,) int64, where in the text each begins.
    """

    def __init__(self, text: bytes, starts: NDArray[np.int64]) -> None:
        self._text, self._starts = text, starts

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return Names(self._text, self._starts[index])
        start = int(self._starts[index])
        return self._text[start : self._text.index(b"\0", start)].decode()


@dataclass(frozen=True, eq=False)
class ShardSamples:
    """Samples whose pictures lie in tar archives, and are read from there one by one.

    Attributes:
        shards: The archives.
        entries: (N,) where each picture lies: its shard, offset and length, and where its name begins in `text`.
        text: The pictures' names, see `Names`.
        labels: (N,) int64 indices into `names`, or None.
        names: The classes' names.
    """

    shards: tuple[Path, ...]
    entries: NDArray[np.void]
    text: bytes
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    has_masks: bool = False

    @property
    def ids(self) -> Names:
        """(N,) names of the pictures in their archives."""
        return Names(self.text, self.entries["name"])

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, index: int) -> Image.Image:
        """Read picture `index` as RGB; raises DataError when it cannot be read."""
        entry = self.entries[index]
        shard, length = self.shards[entry["shard"]], int(entry["length"])
        try:
            # Opened anew for every picture: threads and processes may read at once.
            with shard.open("rb") as file:
                content = read(file, int(entry["offset"]), length)
        except OSError as error:
            raise DataError(f"cannot read {shard}: {error.strerror or error}; put it back or mend it") from error
        if len(content) < length:
            raise DataError(f"{shard} has become shorter since it was scanned; start again")
        return read_image(f"{self.ids[index]} in {shard}", content)

    def mask(self, index: int) -> None:
        """Return None: such data sets have no masks."""

    def ignore(self, index: int) -> None:
        """Return None: such data sets have no masks."""

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ShardSamples:
        """Keep only these pictures, in this order."""
        rows = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, entries=self.entries[rows], labels=labels)


def wds(pattern: str, split: str = "train") -> ShardSamples:
    """Read a data set in the layout of WebDataset, with random access.

    Files of one name up to its first dot, one behind the other, are a sample: a picture (`.jpg`, `.png`, ...) with its
    label in `.cls` (a number or text) or under "label" in `.json`, if there are labels. Other files are passed over.
    The headers of all archives are read once, when the data set is opened.

    Args:
        pattern: Path of the tar archives, with braces for several: `shard-{000..009}.tar`, `{a,b}.tar`.
        split: "train", "test" or "all"; 60 % of every class are for training, by a seeded hash of the picture's name.

    Returns:
        The pictures of the split, in the archives' order. Classes are sorted, numbers by value.

    Raises:
        DataError: If a shard is missing or damaged, there is no picture, two samples share a name, one has several
            pictures, or only some of them have a label.

    Source:
        WebDataset, github.com/webdataset/webdataset, for the layout.
    """
    check_split(split)
    samples = _scan(pattern)
    if split == "all":
        return samples
    return samples.subset(rows_of(split, training_part(samples.ids, samples.labels), pattern))


def _shards(pattern: str) -> Iterator[Path]:
    for name in _expanded(pattern):
        shard = Path(name).expanduser()
        if not shard.is_file():
            found = "is a folder" if shard.is_dir() else "does not exist"
            raise DataError(
                f"no shard matches wds:{pattern}: {shard} {found}; name the tar files that there are, such as "
                "'wds:shard-{000..009}.tar'"
            )
        yield shard


def _expanded(pattern: str) -> Iterator[str]:
    """Write out the braces, as a shell does; one name at a time, since there may be any number."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    parts: Iterable[str] = braces[1].split(",")
    if "," not in braces[1]:
        ends = braces[1].split("..")
        first, last = map(int, ends)
        padded = any(len(end) > 1 and end.startswith("0") for end in ends)
        parts = (f"{number:0{max(map(len, ends)) if padded else 0}}" for number in range(first, last + 1))
    for part in parts:
        yield from _expanded(pattern[: braces.start()] + part + pattern[braces.end() :])


def _scan(pattern: str) -> ShardSamples:
    shards = tuple(_shards(pattern))
    entries, text, keys, labels = bytearray(), bytearray(), array("q"), array("q")
    classes: dict[str, int] = {}
    for number, shard in enumerate(track(shards, "scanning shards", len(shards))):
        for key, picture, label in _samples(shard):
            entries += _PACKED.pack(picture.offset, len(text), number, picture.length)
            text += picture.name.encode() + b"\0"
            keys.append(hash(key))
            labels.append(-1 if label is None else classes.setdefault(label, len(classes)))
    if not entries:
        raise DataError(f"no picture in {pattern}; a sample is key.jpg (or .png, ...) with its label in key.cls")
    samples = ShardSamples(shards, np.frombuffer(entries, _ENTRY), bytes(text), None, ())
    _require_different(samples, np.frombuffer(keys, np.int64))
    return _labelled(samples, np.frombuffer(labels, np.int64), list(classes))


def _samples(shard: Path) -> Iterator[tuple[str, Member, str | None]]:
    """Go through a shard's samples: key, picture, and label or None."""
    without = 0
    try:
        with shard.open("rb") as file:
            named = ((*_key_and_field(member.name), member) for member in members(file))
            for key, group in itertools.groupby((each for each in named if each[0]), key=lambda each: each[0]):
                files: dict[str, Member] = {}
                for _, field, member in group:
                    if files.setdefault(field, member) is not member:
                        raise DataError(f"{shard} holds two files {member.name!r} in a row; name them differently")
                pictures = [member for field, member in files.items() if f".{field}" in EXTENSIONS]
                if len(pictures) > 1:
                    raise DataError(f"sample {key!r} of {shard} has {len(pictures)} pictures; keep one")
                without += not pictures
                for picture in pictures:
                    _require_usable(picture, shard)
                    yield key, picture, _label(file, files, f"{key!r} of {shard}")
    except OSError as error:
        raise DataError(f"cannot read {shard}: {error.strerror or error}; put it back or mend it") from error
    if without:
        logger.warning("%d samples of %s have no picture and are left out", without, shard)


def _key_and_field(name: str) -> tuple[str, str]:
    """Part a name at the first dot behind its folder; the key is "" for hidden files and for those without a dot."""
    folder, slash, file = name.rpartition("/")
    stem, dot, field = file.partition(".")
    return (f"{folder}{slash}{stem}", field.lower()) if stem and dot else ("", "")


def _require_usable(picture: Member, shard: Path) -> None:
    path = PureWindowsPath(picture.name)  # knows both kinds of slashes
    if path.anchor or ".." in path.parts or not picture.name.isprintable():
        raise DataError(f"{shard} holds {picture.name!a}, which leads out of its folder or is no text; rename it")
    if picture.length > _LARGEST_PICTURE:
        raise DataError(f"{picture.name} in {shard} has {picture.length:,} bytes, which no picture has; remove it")


def _label(file: BinaryIO, files: dict[str, Member], where: str) -> str | None:
    """Read a sample's label as one line of text; None if it has none."""
    member = files.get("cls") or files.get("json")
    if member is None:
        return None
    try:
        if member.length > _LARGEST_LABEL:
            raise ValueError(f"it has {member.length:,} bytes")
        found: Any = read(file, member.offset, member.length).decode()
        if member is not files.get("cls"):
            found = json.loads(found)
            found = found.get("label") if isinstance(found, dict) else None
            if found is None:
                return None
        if isinstance(found, bool) or not isinstance(found, int | str):
            raise ValueError(f"it is {found!r:.50}")
        label = str(found).strip()
        if not label.isprintable() or not 0 < len(label) <= _LONGEST_LABEL:
            raise ValueError(f"it is {label!r:.50}")
    except (ValueError, RecursionError) as error:  # of JSON, UTF-8 and our own
        raise DataError(f"the label of {where} cannot be used: {error}; write a number or a line of text") from error
    return label


def _require_different(samples: ShardSamples, keys: NDArray[np.int64]) -> None:
    order = np.argsort(keys, kind="stable")
    for at in np.flatnonzero(keys[order][1:] == keys[order][:-1]):
        first, second = (int(row) for row in order[at : at + 2])
        (key, _), (other, _) = (_key_and_field(samples.ids[row]) for row in (first, second))
        if key == other:
            where = [samples.shards[samples.entries["shard"][row]] for row in (first, second)]
            raise DataError(
                f"two samples are named {key!r}, in {where[0]} and in {where[1]}; name them differently, such as by "
                "a folder for each shard"
            )


def _labelled(samples: ShardSamples, labels: NDArray[np.int64], classes: list[str]) -> ShardSamples:
    """Sort the classes, numbers by value, and number the labels so."""
    if not classes:
        return samples
    if (labels < 0).any():
        row = int(labels.argmin())
        raise DataError(
            f"sample {samples.ids[row]} in {samples.shards[samples.entries['shard'][row]]} has no label, others have; "
            "give every sample a .cls or none"
        )
    numbers = all(_NUMBER.fullmatch(name) for name in classes)
    order = sorted(range(len(classes)), key=lambda row: int(classes[row]) if numbers else classes[row])
    place = np.empty(len(classes), dtype=np.int64)
    place[order] = np.arange(len(classes))
    return replace(samples, labels=place[labels], names=tuple(classes[row] for row in order))


DATASETS.register("wds")(Dataset(wds, argument="PATTERN"))
