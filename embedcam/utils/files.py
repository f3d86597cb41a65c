"""Writing files so that a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success sync it to disk and rename it, on any error remove it.

    Args:
        path: Where the finished file belongs. Missing parent folders are made.

    Yields:
        The temporary path to write to. It keeps the suffix of `path`, since many writers choose by it.

    Raises:
        OutputError: If the file cannot be written: no such folder, no permission, no space.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose another place or free some space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file at once, by way of a temporary name.

    Args:
        path: Where the file belongs.
        data: Its content.

    Raises:
        OutputError: If it cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 text file at once, by way of a temporary name.

    Args:
        path: Where the file belongs.
        text: Its content.

    Raises:
        OutputError: If it cannot be written.
    """
    write_bytes(path, text.encode())


def require_writable(path: str | Path) -> None:
    """Fail now rather than after an hour of work if a file could not be written later.

    Args:
        path: The file that will be written; its folder is made if it is missing.

    Raises:
        OutputError: If the folder cannot be made or written to, or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
