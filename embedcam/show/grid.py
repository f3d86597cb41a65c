"""Contact sheets: pictures in a grid with captions and titles."""

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
_MIN_PICTURE_SIZE = 32


def grid(
    rows: Sequence[Sequence[NDArray[Any] | None]],
    captions: Sequence[Sequence[str | None]] | None = None,
    column_titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    picture_size: int = 160,
) -> Image.Image:
    """Draw pictures on a white contact sheet.

    Pictures keep their aspect ratio. Captions have at most two lines, column titles one and row titles three; longer
    texts end in an ellipsis.

    Args:
        rows: Rows of pictures: uint8 (H, W, 3), bool (H, W) masks, or None for an empty cell. Lengths may differ.
        captions: One text or None per picture.
        column_titles: One per column.
        row_titles: One per row.
        picture_size: Longer side of a picture on the sheet, in pixels, at least 32.

    Returns:
        The sheet, RGB.

    Raises:
        DataError: If a picture has another type or shape.
        EmbedcamError: If there is no picture, or the numbers of texts and pictures differ.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise EmbedcamError("a contact sheet needs at least one picture, got none; pass rows of pictures")
    if picture_size < _MIN_PICTURE_SIZE:
        raise EmbedcamError(f"picture_size must be at least {_MIN_PICTURE_SIZE} pixels, got {picture_size}")
    captions = captions or [[None] * len(row) for row in rows]
    _require_equal("captions", [len(row) for row in captions], [len(row) for row in rows])
    if column_titles:
        _require_equal("column titles", len(column_titles), columns)
    if row_titles:
        _require_equal("row titles", len(row_titles), len(rows))

    small, large = Letters(max(10, round(picture_size / 12))), Letters(max(11, round(picture_size / 10.5)))
    gap, half = max(4, picture_size // 14), picture_size // 2
    sides = [fit(title, large, picture_size, _ROW_TITLE_LINES) for title in row_titles or [""] * len(rows)]
    side_width = max((round(large.length(line)) for lines in sides for line in lines), default=-gap)
    lefts = [gap + side_width + gap + column * (picture_size + gap) for column in range(columns)]

    # Row heights are known once drawn, so the sheet starts with its maximum height and is cropped at the end.
    max_row_height = picture_size + _CAPTION_LINES * small.height + 2 * gap
    sheet_size = (lefts[-1] + picture_size + gap, large.height + 2 * gap + len(rows) * max_row_height)
    sheet = Image.new("RGB", sheet_size, "white")
    draw = ImageDraw.Draw(sheet)

    y = gap
    if column_titles:
        for left, title in zip(lefts, column_titles, strict=True):
            _write(draw, fit(title, large, picture_size), (left + half, y), "ma", large, _TITLE)
        y += large.height + gap // 2
    for row, row_captions, side in zip(rows, captions, sides, strict=True):
        pictures = [None if picture is None else _scaled(picture, picture_size) for picture in row]
        texts = [fit(text or "", small, picture_size, _CAPTION_LINES) for text in row_captions]
        # A row is as high as its highest picture, so a sheet of wide pictures has no empty bands.
        picture_height = max((picture.height for picture in pictures if picture is not None), default=0)
        picture_height = max(picture_height, len(side) * large.height)
        side_top = y + (picture_height - len(side) * large.height) // 2
        _write(draw, side, (gap + side_width, side_top), "ra", large, _TITLE)
        for left, picture, lines in zip(lefts, pictures, texts, strict=False):
            if picture is not None:
                top = y + (picture_height - picture.height) // 2
                sheet.paste(picture, (left + (picture_size - picture.width) // 2, top))
            _write(draw, lines, (left + half, y + picture_height + gap // 3), "ma", small, _CAPTION)
        y += picture_height + gap
        if any(texts):
            y += gap // 3 + max(map(len, texts)) * small.height
    return sheet.crop((0, 0, sheet.width, y))


def save_png(image: Image.Image | NDArray[np.uint8], path: str | Path) -> None:
    """Write a picture as a PNG file.

    Args:
        image: A Pillow picture, or uint8 (H, W, 3).
        path: Output file.

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


def _scaled(picture: NDArray[Any], picture_size: int) -> Image.Image:
    if picture.dtype == np.bool_ and picture.ndim == 2 and picture.size:
        image, resampling = Image.fromarray(picture.astype(np.uint8) * 255), Image.Resampling.NEAREST
    else:
        check_picture(picture)
        image, resampling = Image.fromarray(picture), Image.Resampling.LANCZOS
    scale = picture_size / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, resampling)


def _write(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    position: tuple[int, int],
    anchor: str,
    letters: Letters,
    color: str,
) -> None:
    for number, line in enumerate(lines):
        letters.write(draw, (position[0], position[1] + number * letters.height), line, color, anchor)


def _require_equal(name: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise EmbedcamError(f'{name} and pictures must match in number: expected {expected}, got {actual}; pad with ""')
