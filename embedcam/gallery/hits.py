"""Hits of any search, as lines of a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.texts import read_lines
from ..errors import DataError
from .searching import Hit


class HitsFile:
    """The hits of one query or many.

    Args:
        file: JSON lines, each with "id" or "path" or both, and optionally "score", and "query" if there are several.

    Raises:
        DataError: If a line is malformed, or some lines have a query and others not.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._hits: dict[str | None, list[Hit]] = {}
        for number, line in enumerate(read_lines(file), 1):
            if line:
                query, hit = _read(line, f"{file}, line {number}")
                self._hits.setdefault(query, []).append(hit)
        if not self._hits:
            raise DataError(f"{file} has no hits; {_FORM}")
        if None in self._hits and len(self._hits) > 1:
            raise DataError(f'some lines of {file} have a "query" and others not; give it in all lines, or in none')

    def of(self, queries: Sequence[str], paths: Sequence[Path]) -> list[list[Hit]]:
        """Select the hits of some queries.

        Args:
            queries: Their names.
            paths: Their files.

        Returns:
            The hits of each, in the order of the file.

        Raises:
            DataError: If a query has none.
        """
        if None in self._hits:
            if len(queries) != 1:
                raise DataError(f'the lines of {self._file} have no "query"; give it for {len(queries)} queries')
            return [self._hits[None]]
        found = []
        for query, path in zip(queries, paths, strict=True):
            name = next((name for name in (query, str(path), str(path.absolute())) if name in self._hits), None)
            if name is None:
                known = next(iter(self._hits))
                raise DataError(f"{self._file} has no hits of {query}; its queries are such as {known!r}")
            found.append(self._hits[name])
        return found


def _read(line: str, where: str) -> tuple[str | None, Hit]:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: it is not JSON: {error}; {_FORM}") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}: it is not an object; {_FORM}")
    name, path, score, query = (values.get(key) for key in ("id", "path", "score", "query"))
    if name in (None, "") and path in (None, ""):
        raise DataError(f'{where}: it has neither "id" nor "path"; {_FORM}')
    for key, value, kinds in (
        ("id", name, (str, int)),
        ("path", path, (str,)),
        ("score", score, (int, float)),
        ("query", query, (str,)),
    ):
        wrong = isinstance(value, bool) or (value is not None and not isinstance(value, kinds))
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise DataError(
                f"{where}: {key!r} is {json.dumps(value)}, expected {' or '.join(map(_KINDS.__getitem__, kinds))}"
            )
    return query, Hit(values["path"] if name in (None, "") else name, score, path or "")


_FORM = 'write one hit per line, such as {"id": "a.jpg", "score": 0.9}'
_KINDS: dict[type, str] = {str: "a text", int: "an integer", float: "a finite number"}
