"""Locks that keep two processes from writing the same file at the same time."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError
from .files import destination, is_stream
from .names import bounded_name

# What file systems without locks answer (some network file systems).
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Be the only process (and thread) that writes a file, or a group of files named after it.

    The operating system holds the lock, on a hidden file beside it, and releases it when the process ends for
    whatever reason. On a file system without locks, and for a device or pipe, nothing is locked.

    Args:
        path: The file that will be written. It need not exist; missing parent folders are created.

    Yields:
        Nothing, while the lock is held.

    Raises:
        OutputError: If another process or thread is writing the file, or its folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    target = destination(path)
    if is_stream(target):  # whoever opened it decides who writes
        yield
        return
    # The retries serve a lock file that its holder removes between our opening and our locking it.
    lock = FileLock(
        target.with_name(bounded_name(f".{target.name}", ".lock")),
        timeout=0.1,
        poll_interval=0.01,
        fallback_to_soft=False,
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another process is writing {path}; wait until it is done, or choose another place"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file; there, filelock removes it after release
            Path(lock.lock_file).unlink()
        lock.release()
