"""WebDataset: pictures, their labels and masks in tar archives."""

from __future__ import annotations

import itertools
import json
import logging
import re
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DataError
from ...utils.names import expand_user, normal_name
from ...utils.progress import track
from ..catalog import DATASETS, Dataset
from ..images import EXTENSIONS, MASK_THRESHOLD, image_size, read_image, read_mask
from ..samples import FirstWarning
from ..splits import check_split, rows_of, training_part
from ..tar import Member, members, read
from ..texts import encoding

logger = logging.getLogger("embedcam")

# A picture's place in its archive, in 24 bytes, and its mask's, in 12: millions fit in memory.
_ENTRY = np.dtype([("offset", "<i8"), ("name", "<i8"), ("shard", "<u4"), ("length", "<u4")])
_MASK = np.dtype([("offset", "<i8"), ("length", "<u4")])
_PACKED_ENTRY, _PACKED_MASK = struct.Struct("<qqII"), struct.Struct("<qI")
# Limits on damaged or hostile archives: bytes of a picture or mask, bytes of a label's file, characters of a label.
_MAX_PICTURE, _MAX_LABEL_FILE, _MAX_LABEL = 2**30, 2**20, 1000

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_BRACES = re.compile(r"\{(\d{1,18}\.\.\d{1,18}|[^{},]*(?:,[^{},]*)+)\}")


class Names(Sequence[str]):
    """A sequence of names that takes a fifth of a tuple's memory.

    Args:
        text: The names in UTF-8, each followed by a zero byte.
        starts: (N,) int64, the byte at which each begins.
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
    """Samples whose pictures and masks are members of tar archives, read when they are asked for.

    Attributes:
        shards: The archives.
        entries: (N,) the shard, offset and length of each picture, and the start of its name in `text`.
        text: The pictures' names, see `Names`.
        masks: (N,) the offset and length of each picture's mask in the same shard; a length of 0 is no mask.
        labels: (N,) int64 indices into `names`, or None.
        names: The classes' names.
        mask_threshold: The object is brighter than this, 0 to 254.
        warn: Logs warnings about masks.
    """

    shards: tuple[Path, ...]
    entries: NDArray[np.void]
    text: bytes
    masks: NDArray[np.void]
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    mask_threshold: int = MASK_THRESHOLD
    warn: Callable[[str], None] = field(default_factory=FirstWarning, repr=False)

    @property
    def ids(self) -> Names:
        """(N,) names of the pictures in their archives."""
        return Names(self.text, self.entries["name"])

    @property
    def has_masks(self) -> bool:
        """Whether any picture has a mask."""
        return bool(self.masks["length"].any())

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, index: int) -> Image.Image:
        """Read picture `index` as RGB; raises DataError if it cannot be read."""
        return read_image(self._name(index), self._content(index, self.entries[index]))

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Read its mask (H, W), True on the object, or None; raises DataError if it is wrong."""
        place = self.masks[index]
        if not place["length"]:
            return None
        name = self._name(index)
        size = image_size(name, self._content(index, self.entries[index]))
        return read_mask(
            f"of {name}", size, threshold=self.mask_threshold, content=self._content(index, place), warn=self.warn
        )

    def ignore(self, index: int) -> None:
        """Return None: the layout has no ignore masks."""

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ShardSamples:
        """Keep only these pictures, in this order."""
        rows = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, entries=self.entries[rows], masks=self.masks[rows], labels=labels)

    def _name(self, index: int) -> str:
        return f"{self.ids[index]} in {self.shards[self.entries['shard'][index]]}"

    def _content(self, index: int, place: np.void) -> bytes:
        shard, length = self.shards[self.entries["shard"][index]], int(place["length"])
        try:
            # Opened for every read: threads and processes may read at the same time.
            with shard.open("rb") as file:
                content = read(file, int(place["offset"]), length)
        except OSError as error:
            raise DataError(f"cannot read {shard}: {error.strerror or error}; check the file") from error
        if len(content) < length:
            raise DataError(f"{shard} has become shorter since it was scanned; start again")
        return content


def wds(pattern: str, split: str = "train") -> ShardSamples:
    """Read a data set in the layout of WebDataset, with random access.

    Consecutive files with the same name up to its first dot form a sample: a picture (`.jpg`, `.png`, ...), optionally
    its label in `.cls` (a number or text) or under "label" in `.json`, and optionally its mask in `.mask.png`. Other
    files are ignored. The headers of all archives are read once, when the data set is opened.

    Args:
        pattern: Path of the tar archives, with braces for several: `shard-{000..009}.tar`, `{a,b}.tar`.
        split: "train", "test" or "all"; 60 % of each class are for training, by a seeded hash of the picture's name.

    Returns:
        The pictures of the split, in the order of the archives. Classes are sorted, numbers by value.

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
        shard = expand_user(name)
        if not shard.is_file():
            problem = "is a folder" if shard.is_dir() else "does not exist"
            raise DataError(
                f"no shard matches wds:{pattern}: {shard} {problem}; name existing tar files, such as "
                "'wds:shard-{000..009}.tar'"
            )
        yield shard


def _expanded(pattern: str) -> Iterator[str]:
    # Expands braces as a shell does; one name at a time, since there may be any number.
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
    entries, masks, text, keys, labels = bytearray(), bytearray(), bytearray(), array("q"), array("q")
    classes: dict[str, int] = {}
    for number, shard in enumerate(track(shards, "scanning shards", len(shards))):
        for key, picture, mask, label in _samples(shard):
            entries += _PACKED_ENTRY.pack(picture.offset, len(text), number, picture.length)
            masks += _PACKED_MASK.pack(mask.offset, mask.length) if mask else bytes(_PACKED_MASK.size)
            text += picture.name.encode() + b"\0"
            keys.append(hash(key))
            labels.append(-1 if label is None else classes.setdefault(label, len(classes)))
    if not entries:
        raise DataError(f"no picture in {pattern}; a sample is key.jpg (or .png, ...) with its label in key.cls")
    samples = ShardSamples(shards, np.frombuffer(entries, _ENTRY), bytes(text), np.frombuffer(masks, _MASK))
    _check_names(samples, np.frombuffer(keys, np.int64))
    return _labelled(samples, np.frombuffer(labels, np.int64), list(classes))


def _samples(shard: Path) -> Iterator[tuple[str, Member, Member | None, str | None]]:
    """Yield key, picture, mask and label of each sample of a shard."""
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
                    mask = files.get("mask.png")
                    for file_of_sample in filter(None, (picture, mask)):
                        _check(file_of_sample, shard)
                    yield key, picture, mask, _label(file, files, f"{key!r} of {shard}")
    except OSError as error:
        raise DataError(f"cannot read {shard}: {error.strerror or error}; check the file") from error
    if without:
        logger.warning("%d samples of %s have no picture and are skipped", without, shard)


def _key_and_field(name: str) -> tuple[str, str]:
    # The key is "" for hidden files and for names without a dot.
    folder, slash, file = name.rpartition("/")
    stem, dot, field = file.partition(".")
    return (normal_name(f"{folder}{slash}{stem}"), field.lower()) if stem and dot else ("", "")


def _check(member: Member, shard: Path) -> None:
    path = PureWindowsPath(member.name)  # splits at both kinds of slashes
    if path.anchor or ".." in path.parts or not member.name.isprintable():
        raise DataError(f"{shard} holds {member.name!a}, which leads out of its folder or is not text; rename it")
    if member.length > _MAX_PICTURE:
        raise DataError(f"{member.name} in {shard} has {member.length:,} bytes, more than any picture; remove it")


def _label(file: BinaryIO, files: dict[str, Member], where: str) -> str | None:
    member = files.get("cls") or files.get("json")
    if member is None:
        return None
    try:
        if member.length > _MAX_LABEL_FILE:
            raise ValueError(f"it has {member.length:,} bytes")
        content = read(file, member.offset, member.length)
        value: Any = content.decode(encoding(content))
        if member is not files.get("cls"):
            fields = json.loads(value)
            value = fields.get("label") if isinstance(fields, dict) else None
            if value is None:
                return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"it is {value!r:.50}")
        label = normal_name(str(value).strip())
        if not label.isprintable() or not 0 < len(label) <= _MAX_LABEL:
            raise ValueError(f"it is {label!r:.50}")
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 raise ValueErrors too
        raise DataError(f"the label of {where} cannot be used: {error}; write a number or a line of text") from error
    return label


def _check_names(samples: ShardSamples, hashes: NDArray[np.int64]) -> None:
    order = np.argsort(hashes, kind="stable")
    for position in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]):
        first, second = (int(row) for row in order[position : position + 2])
        (key, _), (other, _) = (_key_and_field(samples.ids[row]) for row in (first, second))
        if key == other:
            shards = [samples.shards[samples.entries["shard"][row]] for row in (first, second)]
            raise DataError(
                f"two samples are named {key!r}, in {shards[0]} and in {shards[1]}; give them different names, such as "
                "by one folder per shard"
            )


def _labelled(samples: ShardSamples, labels: NDArray[np.int64], classes: list[str]) -> ShardSamples:
    # Labels are numbered by their sorted classes.
    if not classes:
        return samples
    if (labels < 0).any():
        row = int(labels.argmin())
        raise DataError(
            f"sample {samples.ids[row]} in {samples.shards[samples.entries['shard'][row]]} has no label, others have; "
            "give all samples a .cls or none"
        )
    numbers = all(_NUMBER.fullmatch(name) for name in classes)
    order = sorted(range(len(classes)), key=lambda row: int(classes[row]) if numbers else classes[row])
    rank = np.empty(len(classes), dtype=np.int64)
    rank[order] = np.arange(len(classes))
    return replace(samples, labels=rank[labels], names=tuple(classes[row] for row in order))


DATASETS.register("wds")(Dataset(wds, argument="PATTERN"))
