"""A contact sheet: pictures in rows, with captions and titles."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import EmbedcamError
from ..utils.files import write_bytes
from .checks import check_picture
from .fonts import Letters
from .text import fit

_TITLE, _CAPTION = "#16191d", "#4a525c"
_CAPTION_LINES = 2
_ROW_TITLE_LINES = 3
_SMALLEST_CELL = 32


def grid(
    rows: Sequence[Sequence[NDArray[Any] | None]],
    captions: Sequence[Sequence[str | None]] | None = None,
    column_titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    cell_size: int = 160,
) -> Image.Image:
    """Lay pictures out on a white contact sheet.

    Pictures keep their aspect ratio. Captions and titles of any length fit: two lines under a picture, one
    over a column, three beside a row, then an ellipsis.

    Args:
        rows: Of pictures, each uint8 (H, W, 3) or a bool (H, W) mask (drawn white on black); None leaves the
            cell empty. Rows may differ in length.
        captions: One text or None a cell, in the layout of `rows`.
        column_titles: One a column.
        row_titles: One a row.
        cell_size: The longest side of a picture on the sheet, in pixels, at least 32.

    Returns:
        The sheet, RGB.

    Raises:
        DataError: If a picture is neither.
        EmbedcamError: If there is no picture at all, or texts and pictures do not match in number.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise EmbedcamError("a contact sheet needs at least one cell, got none; pass rows of pictures")
    if cell_size < _SMALLEST_CELL:
        raise EmbedcamError(f"cell_size must be at least {_SMALLEST_CELL} pixels, got {cell_size}; 160 is usual")
    captions = captions or [[None] * len(row) for row in rows]
    _match("captions", [len(row) for row in captions], [len(row) for row in rows])
    if column_titles:
        _match("column titles", len(column_titles), columns)
    if row_titles:
        _match("row titles", len(row_titles), len(rows))

    small, large = Letters(max(10, round(cell_size / 12))), Letters(max(11, round(cell_size / 10.5)))
    gap, half = max(4, cell_size // 14), cell_size // 2
    sides = [fit(title, large, cell_size, _ROW_TITLE_LINES) for title in row_titles or [""] * len(rows)]
    side_width = max((round(large.length(line)) for lines in sides for line in lines), default=-gap)
    lefts = [gap + side_width + gap + column * (cell_size + gap) for column in range(columns)]

    # How high a row gets shows while it is drawn, so the sheet starts as high as it may become and is cut.
    highest_row = cell_size + _CAPTION_LINES * small.height + 2 * gap
    sheet_size = (lefts[-1] + cell_size + gap, large.height + 2 * gap + len(rows) * highest_row)
    sheet = Image.new("RGB", sheet_size, "white")
    draw = ImageDraw.Draw(sheet)

    y = gap
    if column_titles:
        for left, title in zip(lefts, column_titles, strict=True):
            _write(draw, fit(title, large, cell_size), (left + half, y), "ma", large, _TITLE)
        y += large.height + gap // 2
    for row, row_captions, side in zip(rows, captions, sides, strict=True):
        pictures = [None if picture is None else _scaled(picture, cell_size) for picture in row]
        texts = [fit(text or "", small, cell_size, _CAPTION_LINES) for text in row_captions]
        # A row is as high as its highest picture: a sheet of wide pictures has no empty bands.
        picture_height = max((picture.height for picture in pictures if picture is not None), default=0)
        picture_height = max(picture_height, len(side) * large.height)
        side_top = y + (picture_height - len(side) * large.height) // 2
        _write(draw, side, (gap + side_width, side_top), "ra", large, _TITLE)
        for left, picture, lines in zip(lefts, pictures, texts, strict=False):
            if picture is not None:
                top = y + (picture_height - picture.height) // 2
                sheet.paste(picture, (left + (cell_size - picture.width) // 2, top))
            _write(draw, lines, (left + half, y + picture_height + gap // 3), "ma", small, _CAPTION)
        y += picture_height + gap
        if any(texts):
            y += gap // 3 + max(map(len, texts)) * small.height
    return sheet.crop((0, 0, sheet.width, y))


def save_png(image: Image.Image | NDArray[np.uint8], path: str | Path) -> None:
    """Write a picture as a PNG file.

    Args:
        image: A Pillow picture, or uint8 (H, W, 3).
        path: Where it belongs.

    Raises:
        DataError: If an array is not uint8 (H, W, 3).
        OutputError: If the file cannot be written.
    """
    if not isinstance(image, Image.Image):
        check_picture(image)
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def _scaled(picture: NDArray[Any], cell_size: int) -> Image.Image:
    """Scale a picture or a mask so that its longest side fills the cell."""
    if picture.dtype == np.bool_ and picture.ndim == 2 and picture.size:
        image, resampling = Image.fromarray(picture.astype(np.uint8) * 255), Image.Resampling.NEAREST
    else:
        check_picture(picture)
        image, resampling = Image.fromarray(picture), Image.Resampling.LANCZOS
    scale = cell_size / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, resampling)


def _write(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    at: tuple[int, int],
    anchor: str,
    letters: Letters,
    color: str,
) -> None:
    """Write lines under each other; the anchor says which point of the first one `at` is."""
    for number, line in enumerate(lines):
        letters.write(draw, (at[0], at[1] + number * letters.height), line, color, anchor)


def _match(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise EmbedcamError(f'{what} and pictures must match in number: expected {expected}, got {found}; pad with ""')
