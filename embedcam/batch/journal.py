"""The finished batches of a run, on disk, so that the run can go on after it was interrupted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import OutputError
from ..utils.files import atomic_path

_KEY, _VERSION = "embedcam-journal", 1
# As `atomic_path` names what is not finished, and `require_writable` what it tries.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")
_AGAIN = "start again, without resuming"


@dataclass(frozen=True)
class Lines:
    """The lines of a JSON-lines file, read from it one at a time, so that there may be any number.

    Attributes:
        path: The file.
        count: How many there are.
    """

    path: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            yield from map(json.loads, file)


class Journal:
    """The lines of all batches whose files are written.

    The file's first line says of which run it is. Then comes a line a batch; it counts once it is whole, so that a
    process may be killed at any moment. As a context manager it removes a file that is of no use: without a finished
    batch, or after `finish`.

    Args:
        path: The file.
        run: What the run depends on, by name; plain values.
        resume: Go on with the run of the file if there is one; else it is replaced.

    Attributes:
        done: Images that the finished batches took, those left out among them.
        count: Lines, one an image.
        interrupted: An earlier run did not come to its end here, so that half-written files may lie about.

    Raises:
        OutputError: If the file is of another run, is none, or cannot be written.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any], *, resume: bool = False) -> None:
        self._path = Path(path)
        self.done = self.count = 0
        self.interrupted = self._path.exists()
        if not (resume and self.interrupted and self._go_on(run)):
            self._write("wb", {_KEY: _VERSION, "run": dict(run)})

    def add(self, done: int, lines: list[dict[str, Any]]) -> None:
        """Put down a batch whose files are all written.

        Args:
            done: Images done with it, counted from the start of the run.
            lines: One an image that could be read.

        Raises:
            OutputError: If it cannot be written.
        """
        self._write("ab", {"done": done, "lines": lines})
        self.done, self.count = done, self.count + len(lines)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Read the lines of the finished batches, one batch at a time.

        Yields:
            What was given to `add`.
        """
        with self._path.open("rb") as file:
            next(file)
            for batch in file:
                yield from json.loads(batch)["lines"]

    def finish(self, path: Path) -> Lines:
        """Write all lines as a file of their own, and need the journal no more.

        Args:
            path: The JSON-lines file; an older one stays until the new one is whole.

        Returns:
            Its lines.

        Raises:
            OutputError: If it cannot be written.
        """
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.writelines(_encoded(line) for line in self.lines())
        self._path.unlink()
        return Lines(path, self.count)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.count == 0:
            self._path.unlink(missing_ok=True)

    def _write(self, mode: str, entry: dict[str, Any]) -> None:
        try:
            with self._path.open(mode) as file:
                file.write(_encoded(entry))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror or error}; choose another place or free some space"
            ) from error

    def _go_on(self, run: Mapping[str, Any]) -> bool:
        """Find out where the run stands and cut off what is not whole; False if it had hardly begun."""
        try:
            with self._path.open("rb+") as file:
                first = file.readline()
                if not first.endswith(b"\n"):
                    return False
                header = json.loads(first)
                if header[_KEY] != _VERSION:
                    raise ValueError(f"version {header[_KEY]!r}")
                self._require_same(run, dict(header["run"]))
                end = len(first)
                for text in file:
                    if not text.endswith(b"\n"):
                        break
                    batch, end = json.loads(text), end + len(text)
                    self.done, self.count = int(batch["done"]), self.count + len(batch["lines"])
                file.truncate(end)
        except OSError as error:
            raise OutputError(f"cannot resume from {self._path}: {error.strerror or error}; {_AGAIN}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(f"{self._path} is not a readable journal: {error!r}; {_AGAIN}") from error
        return True

    def _require_same(self, run: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        differs = [f"{k} {before.get(k)!r} then, {v!r} now" for k, v in run.items() if before.get(k) != v]
        if differs:
            raise OutputError(
                f"{self._path} is of another run ({'; '.join(differs)}); resume with the same images, explainer, "
                "options and cores, or " + _AGAIN
            )


def remove_unfinished(files: Iterable[Path]) -> None:
    """Remove what a killed process left of the files that it was writing.

    Args:
        files: All that lie where it wrote; those with another kind of name are kept.
    """
    for file in files:
        if _TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _encoded(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
