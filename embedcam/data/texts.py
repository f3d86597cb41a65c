"""Read text files and tables as people have them."""

from __future__ import annotations

import codecs
import csv
import io
from pathlib import Path

from ..errors import DataError

# UTF-32 first: its mark starts with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file.

    Args:
        file: Path of a file in UTF-8, or in UTF-16 or UTF-32 with its byte-order mark. Invalid bytes are replaced, so
            that messages can quote the line.

    Returns:
        The lines, without surrounding blanks.

    Raises:
        DataError: If the file is missing or unreadable.
    """
    return [line.strip() for line in _read_text(file).splitlines()]


def read_table(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a table with the names of its columns in the first line.

    Args:
        file: Values separated by commas, or by tabs if it ends with .tsv; encoded as for `read_lines`.

    Returns:
        The names of the columns, and each row by them.

    Raises:
        DataError: If the file is missing or unreadable, two columns have one name, or a row has another number of
            values.
    """
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), delimiter=delimiter)
    try:
        columns, rows = [*(reader.fieldnames or ())], list(reader)
    except csv.Error as error:
        raise DataError(f"{file} is not a readable CSV file: {error}; save it again") from error
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise DataError(f"{file} has two columns {twice}; rename one")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{file}, row {number}: expected {len(columns)} values; quote values that contain a comma")
    return columns, rows


def _read_text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; restore or repair it") from error
    return content.decode(encoding(content), errors="replace")


def encoding(content: bytes) -> str:
    """Return the encoding of a text by its byte-order mark.

    Args:
        content: The text, or its first bytes.

    Returns:
        "utf-32" or "utf-16" if it has such a mark, otherwise "utf-8-sig", which drops that of UTF-8.
    """
    return next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8-sig")
