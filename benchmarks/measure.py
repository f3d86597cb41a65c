"""What the benchmarks share: interleaved timing, medians with intervals, the machine, tables and JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import embedcam
from embedcam.utils.files import write_text


class Median(NamedTuple):
    """A median, and the order statistics that enclose it with 95 % probability."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Median:
        """Take the median of at least one value; below six values the interval is their whole range."""
        ranked = sorted(values)
        count = len(ranked)
        reach = round(0.98 * count**0.5) if count >= 6 else count
        return cls(
            statistics.median(ranked), ranked[max(0, count // 2 - reach)], ranked[min(count - 1, count // 2 + reach)]
        )


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Time every work once a round, so that all share whatever else the machine does.

    Args:
        works: What is timed, by name.
        rounds: Times that each runs.
        warm_up: Rounds before these that do not count.

    Returns:
        Seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm_up + rounds):
        # There and back: none always runs after the same other one, with what that left in the caches.
        for name in list(works)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            works[name]()
            taken = time.perf_counter() - start
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> Median:
    """Take the median, over the rounds, of one work's time by another's of the same round."""
    return Median.of(a / b for a, b in zip(above, below, strict=True))


def about(*packages: str) -> dict[str, Any]:
    """Name the machine and the versions that a table was made with."""
    return {
        "schema": 1,
        "embedcam": embedcam.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def report(
    columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], made_with: Mapping[str, Any], json_path: Path | None
) -> None:
    """Print a table and, if wanted, write it.

    Args:
        columns: Format of each column to print, such as ".2f", by its name; a `Median` shows its interval.
        rows: What was measured; more than is printed may be in them. None, and what is not there, is left empty.
        made_with: From `about`.
        json_path: Where to write all of it.
    """
    print(", ".join(f"{name} {value}" for name, value in made_with.items() if name != "schema"))
    cells = [list(columns)]
    cells += [[_cell(row.get(name), form) for name, form in columns.items()] for row in rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    for number, row in enumerate(cells):
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    if json_path is not None:
        plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
        write_text(json_path, json.dumps({**made_with, "rows": plain}, indent=2) + "\n")


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, Median):
        return f"{value.value:{form}} ({value.low:{form}}-{value.high:{form}})"
    return format(value, form)


def _plain(value: Any) -> Any:
    return value._asdict() if isinstance(value, Median) else value


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in known.read_text().splitlines() if "model name" in line]
        if known.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
