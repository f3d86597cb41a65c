"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing in a library."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0
_shown = False


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
    if not _shown:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, what, total, unit)
    else:
        yield from _lines(items, what, total, unit)


def _bar(items: Iterable[T], what: str, total: int, unit: int) -> Iterator[T]:
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
        for item in items:
            yield item
            bar.update(task, advance=unit)
        bar.update(task, completed=total)


def _lines(items: Iterable[T], what: str, total: int, unit: int) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done = min(done + unit, total)
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{what}: {done} of {total}")
    say(f"{what}: {total} in {time.monotonic() - start:.1f} s")
