"""Progress of long work: a bar on a terminal, lines of text elsewhere, silent unless turned on."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0
_shown = False


def styled(stream: TextIO) -> bool:
    """Check whether a stream supports escape codes for colours and cursor movement.

    Args:
        stream: The output stream.

    Returns:
        True on a terminal that is not dumb, unless NO_COLOR is set (no-color.org).
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def show() -> None:
    """Turn progress on, as the command line does."""
    global _shown
    _shown = True


def say(text: str) -> None:
    """Print a line to stderr if progress is on.

    Args:
        text: The line.
    """
    if _shown:
        print(text, file=sys.stderr, flush=True)


def track(items: Iterable[T], what: str, total: int, *, unit: int = 1) -> Iterator[T]:
    """Iterate over items and show progress.

    Args:
        items: Batches, or single objects.
        what: Description of the work, for example "embedding".
        total: Total number of objects.
        unit: Objects per item (the size of a full batch).

    Yields:
        The items.
    """
    with counting(what, total) as count:
        for item in items:
            yield item
            count(unit)


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress that the caller reports.

    Args:
        what: Description of the work, for example "embedding".
        total: Total number of objects.

    Yields:
        A function to call with the number of objects just finished.
    """
    if not _shown:
        yield lambda _: None
    elif styled(sys.stderr):
        with _bar(what, total) as count:
            yield count
    else:
        with _lines(what, total) as count:
            yield count


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, advance=done)
        bar.update(task, completed=total)


@contextlib.contextmanager
def _lines(what: str, total: int) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    so_far = 0

    def count(done: int) -> None:
        nonlocal last, so_far
        so_far = min(so_far + done, total)
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{what}: {so_far} of {total}")

    yield count
    say(f"{what}: {total} in {time.monotonic() - start:.1f} s")
