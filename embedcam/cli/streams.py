"""Standard streams that a reader may leave, that may be on a full disk, or that are closed."""

from __future__ import annotations

import io
import sys
from typing import Any, cast

BROKEN_PIPE = 141
"""Exit code of a program that SIGPIPE ends, as shells report it."""


class _Sink(io.FileIO):
    """Writes to a descriptor until that fails, then drops what it is given; `error` is the reason."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return len(data)


def protect() -> None:
    """Make printing never fail, so that a run finishes its files although nobody reads what it prints."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start
            setattr(sys, name, io.StringIO())
        if not isinstance(stream, io.TextIOWrapper):
            continue
        raw: Any = getattr(stream.buffer, "raw", stream.buffer)  # with PYTHONUNBUFFERED there is no buffer
        if type(raw) is io.FileIO:  # not the console of Windows, nor what tests capture
            stream.flush()
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    io.BufferedWriter(cast(Any, _Sink(raw.fileno(), "wb", closefd=False))),
                    encoding=stream.encoding,
                    errors=stream.errors,
                    line_buffering=stream.line_buffering or stream.write_through,
                ),
            )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # labels may have characters that the terminal lacks


def failure() -> OSError | None:
    """Flush standard output.

    Returns:
        Why it could not be written, or None.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Sink) else None
