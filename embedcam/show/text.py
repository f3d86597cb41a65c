"""Text drawn into pictures: the font, and making any text fit a width."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from functools import cache
from typing import cast

from PIL import ImageFont

# The glyphs of Pillow's built-in font beyond ASCII, and what stands in for some common ones that it lacks.
_GLYPHS = frozenset("©«°±´·»‘’“”…‹›⁄™")
_STAND_INS = {"–": "-", "—": "-", "−": "-", "×": "x", "ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O"}
_ELLIPSIS = "…"
_BREAK_AFTER = " /_-"


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Give Pillow's built-in font, which is the same on every machine.

    Args:
        size: Its height in pixels.

    Returns:
        The font.
    """
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))  # with a size it is no bitmap font


def printable(text: str) -> str:
    """Replace what the built-in font cannot draw: accents fall away, other scripts become "?".

    Args:
        text: Any text.

    Returns:
        The text on one line, white space collapsed.
    """
    return " ".join("".join(map(_drawable, text)).split())


def _drawable(character: str) -> str:
    """One character, or what stands in for it."""
    if character.isspace():
        return " "
    if character in _GLYPHS or (character.isascii() and character.isprintable()):
        return character
    if character in _STAND_INS:
        return _STAND_INS[character]
    if unicodedata.combining(character):
        return ""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain if plain.isprintable() and plain else "?"


def fit(text: str, font: ImageFont.FreeTypeFont, width: float, lines: int = 1) -> list[str]:
    """Break a text into a few lines; what does not fit is cut off with an ellipsis.

    Args:
        text: Any text; its own line breaks are kept while there are lines left.
        font: The font it will be drawn in.
        width: Of a line, in pixels.
        lines: How many there may be, at least 1.

    Returns:
        At most `lines` lines, none of them empty and none wider than `width`.
    """
    paragraphs = [paragraph for paragraph in map(printable, text.splitlines()) if paragraph]
    fitted: list[str] = []
    while paragraphs and len(fitted) < lines - 1:
        rest = paragraphs.pop(0)
        end = _prefix(rest, font, width)
        if end < len(rest):
            # After a space, or a sign that joins words in file names; else between any two characters.
            breaks = [at for at in range(1, end + 1) if rest[at] == " " or rest[at - 1] in _BREAK_AFTER]
            end = breaks[-1] if breaks else max(end, 1)
            paragraphs.insert(0, rest[end:].lstrip())
        fitted.append(rest[:end].rstrip())
    if paragraphs:
        rest = " ".join(paragraphs)
        if _prefix(rest, font, width) < len(rest):
            room = width - font.getlength(_ELLIPSIS)
            rest = rest[: _prefix(rest, font, room)].rstrip(" ,;:") + _ELLIPSIS
        fitted.append(rest)
    return fitted


def _prefix(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many characters from the start fit the width."""
    # No glyph is narrower than a pixel, so a text of a megabyte need not be measured whole.
    ends = range(1, min(len(text), max(int(width), 0)) + 1)
    return bisect_right(ends, width, key=lambda end: font.getlength(text[:end]))
