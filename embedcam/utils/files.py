"""Write files: atomically, or through to a device or pipe."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError
from .names import LONGEST_NAME, shortened

# Names of the temporary files of `atomic_path` and `require_writable`.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")
# Names of the open descriptors of this process; /dev/stdout is a link to one.
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(self|\d+))/fd/(\d+)")
_MOST_LINKS = 40  # as in Linux


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Provide a temporary path that replaces `path` on success and is removed on any error.

    The file is synced to disk before it is renamed. Symbolic links are followed: their target is replaced. A device
    or pipe is not replaced; the content is written to it on success.

    Args:
        path: Path of the finished file. Missing parent folders are created.

    Yields:
        The temporary path to write to, with the same suffix; in the folder of the replaced file.

    Raises:
        OutputError: If the file cannot be written: missing permission, no space left.
    """
    try:
        target = destination(path)
        with _temporary(target) as temporary:
            yield temporary
            if is_stream(target):
                with temporary.open("rb") as source, _opened(target) as sink:
                    shutil.copyfileobj(source, sink)
                return
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose another place or free some space"
        ) from error


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
        text: Content. Lone surrogates, which file names have in Python that are not UTF-8, are replaced.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_bytes(path, text.encode(errors="replace"))


def require_writable(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Check before long work that a file can be written.

    Args:
        path: The file that will be written. Missing parent folders are created.
        inputs: Files that the work reads, which `path` must not replace. Other texts and None are ignored.

    Raises:
        OutputError: If the folder cannot be created or written to, or `path` is a folder or one of `inputs`.
    """
    try:
        target = destination(path)
        if target.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
        if is_stream(target):
            return
        if target.exists() and (same := next((file for file in inputs if _is_same(file, target)), None)):
            raise OutputError(f"cannot write {path}: it would replace {same}, which is read; choose another name")
        with _temporary(target) as probe:
            probe.touch()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def destination(path: str | Path) -> Path:
    """Follow symbolic links to the file that is written.

    Args:
        path: Path of a file, which need not exist.

    Returns:
        An absolute path that is no link, or that names an open descriptor, as /dev/stdout does.

    Raises:
        OutputError: If the links form a loop.
    """
    target = Path(path)
    for _ in range(_MOST_LINKS):
        target = Path(os.path.realpath(target.parent), target.name)
        if _descriptor(target) is not None or not target.is_symlink():
            return target
        target = target.parent / target.readlink()
    raise OutputError(f"cannot write {path}: its symbolic links form a loop; choose another place")


def is_stream(path: Path) -> bool:
    """Check whether a path is written through, not replaced.

    Args:
        path: Returned by `destination`.

    Returns:
        True for an open descriptor, a device, a pipe or a socket.
    """
    if _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder in the place for temporary files, and remove it at the end.

    Yields:
        The folder.

    Raises:
        OutputError: If there is no such place, as in a container whose file system is read-only.
    """
    try:
        folder = tempfile.mkdtemp(prefix="embedcam.")
    except OSError as error:
        raise OutputError(
            f"no temporary folder can be made: {error.strerror or error}; set TMPDIR to a folder that can be written"
        ) from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(files: Iterable[Path]) -> None:
    """Remove temporary files that a killed process left behind.

    Args:
        files: Files to look at; those with other names are kept.
    """
    for file in files:
        if _TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Name a file beside `target`, or in the temporary folder if that is a stream, and remove it at the end."""
    if is_stream(target):
        with temporary_folder() as folder:
            yield folder / f"output{target.suffix}"
        return
    suffix = target.suffix if len(target.suffix) < 16 else ""
    end = f".{secrets.token_hex(4)}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{shortened(target.stem, LONGEST_NAME - 1 - len(os.fsencode(end)))}{end}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _opened(stream: Path) -> BinaryIO:
    # An open descriptor keeps its place: what is printed to it before and after stays.
    number = _descriptor(stream)
    return stream.open("wb") if number is None else os.fdopen(os.dup(number), "wb")


def _descriptor(path: Path) -> int | None:
    match = _DESCRIPTOR.fullmatch(path.as_posix())
    return int(match[2]) if match and match[1] in (None, "self", str(os.getpid())) else None


def _is_same(file: str | Path | None, target: Path) -> bool:
    try:
        return file is not None and Path(file).samefile(target)
    except (OSError, ValueError):  # not a file, but for example the name of a network
        return False
