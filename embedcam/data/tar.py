"""Locate the files of an untrusted tar archive from its headers, without unpacking it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ..errors import DataError

_BLOCK = 512
_END = bytes(_BLOCK)
_FILES = (b"0", b"\0", b"7")
# Links, devices, folders and pipes have no content, whatever size their header has.
_EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")
_LONG_NAME, _PAX, _SPARSE = b"L", b"x", b"S"
# Headers that describe the member after them.
_ABOUT_NEXT = (_LONG_NAME, b"K", _PAX, b"g")
# Bounds what is read into memory for a name.
_LONGEST_NAME = 2**16


class Member(NamedTuple):
    """A regular file of an archive.

    Attributes:
        name: Name in the archive.
        offset: Offset of the content in bytes.
        length: Length of the content in bytes.
    """

    name: str
    offset: int
    length: int


def read(file: BinaryIO, offset: int, length: int) -> bytes:
    """Read a part of an archive.

    Args:
        file: The archive.
        offset: Offset in bytes.
        length: Number of bytes.

    Returns:
        The bytes; fewer if the archive ends before.
    """
    file.seek(offset)
    return file.read(length)


def members(file: BinaryIO) -> Iterator[Member]:
    """List the regular files of a tar archive in order, without folders, links and devices.

    Python's tarfile takes three times as long (17 microseconds per member), reads headers of any length, and loops
    endlessly on some malicious ones in some versions.

    Args:
        file: The uncompressed archive; its position may be changed between members.

    Yields:
        The files; their content lies within the archive.

    Raises:
        DataError: If the file is not a tar archive, is damaged, or is truncated.
    """
    size = os.fstat(file.fileno()).st_size
    position = 0
    extended: dict[bytes, bytes] = {}
    while (header := read(file, position, _BLOCK)) != _END:
        if len(header) < _BLOCK:
            raise _broken(file, "its end is missing" if position else "it is empty", position)
        try:
            _check(header)
            kind = header[156:157]
            length = 0 if kind in _EMPTY else _number(header[124:136])
            if kind in _FILES and b"size" in extended:
                length = int(extended[b"size"])
            start, after = position + _BLOCK, position + _BLOCK + -(-length // _BLOCK) * _BLOCK
            if start + length > size:
                raise ValueError(f"a member has {length} bytes, of which {max(size - start, 0)} are there")
            if kind in (_LONG_NAME, _PAX):
                if length > _LONGEST_NAME:
                    raise ValueError(f"a name of {length} bytes")
                content = read(file, start, length)
                extended |= _records(content) if kind == _PAX else {b"path": _text(content)}
            elif kind in _FILES:
                name = _name(header, extended)
                # The content of a sparse file differs from what is stored.
                if not name.endswith("/") and not any(key.startswith(b"GNU.sparse") for key in extended):
                    yield Member(name, start, length)
            elif kind == _SPARSE:
                raise ValueError("a sparse file, which is not supported")
        except ValueError as error:  # UnicodeDecodeError is one
            raise _broken(file, str(error), position) from error
        if kind not in _ABOUT_NEXT:
            extended = {}
        position = after


def _check(header: bytes) -> None:
    # The checksum counts its own eight bytes as spaces.
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if _text(header[148:156]).strip().lstrip(b"0") != b"%o" % total:
        raise ValueError("not a header of a tar archive (decompress a compressed one first)")


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's form of numbers with more than eleven octal digits
        return int.from_bytes(field[1:], "big")
    digits = _text(field).strip()
    if digits and not digits.isdigit():
        raise ValueError(f"a header has the number {digits!r}")
    return int(digits or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _name(header: bytes, extended: dict[bytes, bytes]) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else b""
    short = b"/".join(part for part in (prefix, _text(header[:100])) if part)
    return extended.get(b"path", short).decode().removeprefix("./")


def _records(content: bytes) -> dict[bytes, bytes]:
    # "<length> <key>=<value>\n"
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(content):
        digits = content[position : position + 20].partition(b" ")[0]
        end = position + int(digits)
        key, equals, value = content[position + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            raise ValueError("a damaged pax header")
        if key == b"size" and not (value.isdigit() and len(value) < 20):
            raise ValueError(f"a header has the number {value!r}")
        records[key] = value
        position = end
    return records


def _broken(file: BinaryIO, reason: str, position: int) -> DataError:
    return DataError(
        f"{file.name} is not a complete tar archive: {reason} (at byte {position}); write or copy it again"
    )
