"""Shared by the benchmarks: interleaved timing, medians with intervals, tables and JSON."""

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
    """A median with its 95 % confidence interval by order statistics."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Median:
        """Median of at least one value; with fewer than six, the interval is their range."""
        ordered = sorted(values)
        count = len(ordered)
        half_width = round(0.98 * count**0.5) if count >= 6 else count
        low, high = max(0, count // 2 - half_width), min(count - 1, count // 2 + half_width)
        return cls(statistics.median(ordered), ordered[low], ordered[high])


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Time every call once per round, so that other load on the machine affects all alike.

    Args:
        calls: Functions to time, by name.
        rounds: Number of timed rounds.
        warm_up: Rounds before them that are not timed.

    Returns:
        Seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        # In alternating order, so that no call always runs on the caches of the same other call.
        for name in list(calls)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            calls[name]()
            elapsed = time.perf_counter() - start
            if number >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Median:
    """Median of the ratios of two times of the same round."""
    return Median.of(a / b for a, b in zip(numerators, denominators, strict=True))


def about(*packages: str) -> dict[str, Any]:
    """Describe the machine and the versions."""
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
    """Print a table and optionally write it as JSON.

    Args:
        columns: Name and format, such as ".2f", of each printed column; a `Median` is printed with its interval.
        rows: Measurements, also of columns that are not printed. Missing values and None are left empty.
        made_with: Result of `about`.
        json_path: JSON file, or None.
    """
    print(", ".join(f"{name} {value}" for name, value in made_with.items() if name != "schema"))
    table = [list(columns), *([_text(row.get(name), form) for name, form in columns.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, texts in enumerate(table):
        print("| " + " | ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    if json_path is not None:
        plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
        write_text(json_path, json.dumps({**made_with, "rows": plain}, indent=2) + "\n")


def _text(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, Median):
        return f"{value.value:{form}} ({value.low:{form}}-{value.high:{form}})"
    return format(value, form)


def _plain(value: Any) -> Any:
    return value._asdict() if isinstance(value, Median) else value


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
