"""Keeping two processes from writing the same file at once."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import OutputError

if sys.platform == "win32":
    import msvcrt

    def _acquire(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _release(file: IO[bytes], lock: Path) -> None:
        file.close()  # first: Windows removes no file that is open
        with contextlib.suppress(OSError):  # another process has opened it meanwhile, and will remove it
            lock.unlink()

else:
    import fcntl

    def _acquire(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # some network file systems know no locks; better to work without than not at all
            return True
        return True

    def _release(file: IO[bytes], lock: Path) -> None:
        lock.unlink(missing_ok=True)  # while it is still held, or it could be another process's by now
        file.close()


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Be the only process (and thread) that writes a file, or several files of which this one stands for all.

    The operating system holds the lock, on a hidden file beside `path`, and lets go of it when the process ends,
    however it ends: a killed one leaves nothing that stops the next.

    Args:
        path: The file that will be written. It need not exist; missing parent folders are made.

    Yields:
        Nothing, while the lock is held.

    Raises:
        OutputError: If another process is writing the file, or nothing can be written beside it.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _take(lock)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    if file is None:
        raise OutputError(f"another process is writing {path}; wait until it is done, or choose another place")
    try:
        yield
    finally:
        _release(file, lock)


def _take(lock: Path) -> IO[bytes] | None:
    """Open and lock a file; None if it is locked."""
    while True:
        file = lock.open("ab")
        if not _acquire(file):
            file.close()
            return None
        # Whoever held it before may have removed it between our opening and our locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()
