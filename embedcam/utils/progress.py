"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing in a library."""

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
    """Tell whether escape codes, for colours and for bars that move, are welcome.

    Args:
        stream: What is written to.

    Returns:
        True on a terminal that is not dumb, unless NO_COLOR is set (no-color.org).
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def show() -> None:
    """Turn progress on; the command line does so."""
    global _shown
    _shown = True


def say(text: str) -> None:
    """Print one line about the work to stderr, if progress is on.

    Args:
        text: The line.
    """
    if _shown:
        print(text, file=sys.stderr, flush=True)


def track(items: Iterable[T], what: str, total: int, *, unit: int = 1) -> Iterator[T]:
    """Go through items and show how far it is.

    Args:
        items: Batches, or single things.
        what: What is being done, for example "embedding".
        total: How many things there are in all.
        unit: Things an item (the size of a full batch).

    Yields:
        The items.
    """
    with counting(what, total) as count:
        for item in items:
            yield item
            count(unit)


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far work is that says itself what is done.

    Args:
        what: What is being done, for example "embedding".
        total: How many things there are in all.

    Yields:
        A function to call with the number of things just done.
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
