"""Atomic writing: a reader sees the old file or the complete new one."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import OutputError

# Names of the temporary files of `atomic_path` and `require_writable`.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Provide a temporary path that replaces `path` on success and is removed on any error.

    The file is synced to disk before it is renamed.

    Args:
        path: Path of the finished file. Missing parent folders are created.

    Yields:
        The temporary path to write to, in the same folder and with the same suffix.

    Raises:
        OutputError: If the file cannot be written: missing permission, no space left.
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
    """Write a file atomically.

    Args:
        path: Path of the file.
        data: Content.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Args:
        path: Path of the file.
        text: Content.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_bytes(path, text.encode())


def require_writable(path: str | Path) -> None:
    """Check before long work that a file can be written.

    Args:
        path: The file that will be written. Missing parent folders are created.

    Raises:
        OutputError: If the folder cannot be created or written to, or `path` is a folder.
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


def remove_unfinished(files: Iterable[Path]) -> None:
    """Remove temporary files that a killed process left behind.

    Args:
        files: Files to look at; those with other names are kept.
    """
    for file in files:
        if _TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)
