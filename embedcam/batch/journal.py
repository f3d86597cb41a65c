"""The JSON lines of a run, stored batch by batch, and the file they end in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import atomic_path
from ..utils.resume import Parts


@dataclass(frozen=True)
class Lines:
    """A JSON-lines file, read one line at a time.

    Attributes:
        path: The file.
        count: Number of lines.
    """

    path: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            yield from map(json.loads, file)


class Journal:
    """The batches of a run whose output files are complete; those of an interrupted run are kept.

    Args:
        parts: Where the batches are stored, one part each.

    Attributes:
        done: Images that the batches cover, including unreadable ones.
        count: Lines, one per readable image.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._batches = self.done = self.count = 0
        while (name := self._name(self._batches)) in parts:
            batch = parts.read(name)
            self._advance(int(batch["done"]), len(batch["lines"]))

    def add(self, done: int, lines: list[dict[str, Any]]) -> None:
        """Store a batch whose output files are complete.

        Args:
            done: Images covered so far, counted from the start of the run.
            lines: One per readable image of the batch.

        Raises:
            OutputError: If it cannot be written.
        """
        texts = np.array([json.dumps(line) for line in lines], dtype=np.str_)
        self._parts.write(self._name(self._batches), done=np.array(done), lines=texts)
        self._advance(done, len(lines))

    def lines(self) -> Iterator[dict[str, Any]]:
        """Read the lines of all batches, one batch at a time.

        Yields:
            The lines that were given to `add`.
        """
        yield from map(json.loads, self._texts())

    def finish(self, path: Path) -> Lines:
        """Write all lines to a file atomically.

        Args:
            path: The JSON-lines file.

        Returns:
            Its lines.

        Raises:
            OutputError: If it cannot be written.
        """
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{text}\n" for text in self._texts())
        return Lines(path, self.count)

    def _texts(self) -> Iterator[str]:
        for number in range(self._batches):
            yield from self._parts.read(self._name(number), "lines")["lines"].tolist()

    def _advance(self, done: int, lines: int) -> None:
        self._batches, self.done, self.count = self._batches + 1, done, self.count + lines

    @staticmethod
    def _name(batch: int) -> str:
        return f"batch-{batch:07d}"
