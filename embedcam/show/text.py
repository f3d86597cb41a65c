"""Text drawn into pictures: making any text fit a width."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable

from .fonts import Letters, has_glyph

# What stands in for some common characters where no font has them.
_STAND_INS = {"–": "-", "—": "-", "−": "-", "×": "x", "ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O"}
_ELLIPSIS = "…"
_BREAK_AFTER = " /_-"
# Control characters, surrogates, private and unassigned ones; of formatting ones, those that join letters are wanted.
_NEVER_DRAWN = ("Cc", "Cs", "Co", "Cn")
_JOINERS = "\u200c\u200d"
# Marks above and below letters take no width; few letters have more of them.
_CHARACTERS_A_PIXEL = 4


def printable(text: str) -> str:
    """Replace what no font here can draw: accents fall away, other scripts become "?".

    Args:
        text: Any text.

    Returns:
        The text on one line, white space collapsed, accents joined with their letters.
    """
    return " ".join("".join(map(_drawable, unicodedata.normalize("NFC", text))).split())


def _drawable(character: str) -> str:
    """One character, or what stands in for it."""
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category in _NEVER_DRAWN:
        return "?"
    if category == "Cf":
        return character if character in _JOINERS else ""
    if has_glyph(character):
        return character
    if character in _STAND_INS:
        return _STAND_INS[character]
    if unicodedata.combining(character):
        return ""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain if plain.isprintable() and plain else "?"


def fit(text: str, letters: Letters, width: float, lines: int = 1) -> list[str]:
    """Break a text into a few lines; what does not fit is cut off with an ellipsis.

    Args:
        text: Any text; its own line breaks are kept while there are lines left.
        letters: What it will be drawn in.
        width: Of a line, in pixels.
        lines: How many there may be, at least 1.

    Returns:
        At most `lines` lines, none of them empty and none wider than `width`.
    """
    # A text of a megabyte need not be looked at whole.
    most = _CHARACTERS_A_PIXEL * lines * (int(max(width, 0)) + 1)
    paragraphs = [paragraph for paragraph in map(printable, text[:most].splitlines()) if paragraph]
    fitted: list[str] = []
    while paragraphs and len(fitted) < lines - 1:
        rest = paragraphs.pop(0)
        end = _prefix(rest, letters, width)
        if end < len(rest):
            # After a space, or a sign that joins words in file names; else between any two letters.
            breaks = (at for at in range(end, 0, -1) if rest[at] == " " or rest[at - 1] in _BREAK_AFTER)
            end = next((at for at in breaks if letters.length(rest[:at].rstrip()) <= width), max(end, 1))
            paragraphs.insert(0, rest[end:].lstrip())
        fitted.append(rest[:end].rstrip())
    if paragraphs:
        rest = " ".join(paragraphs)
        if letters.length(rest) > width:
            rest = _cut(rest[: _prefix(rest, letters, width, _cut)])
        fitted.append(rest)
    return fitted


def _cut(text: str) -> str:
    return text.rstrip(" ,;:") + _ELLIPSIS


def _prefix(text: str, letters: Letters, width: float, ended: Callable[[str], str] = str.rstrip) -> int:
    """How many characters from the start fit the width, ended so; marks stay with their letters."""
    ends = [end for end in range(len(text) + 1) if not unicodedata.category(text[end : end + 1] or " ").startswith("M")]
    return ends[bisect_right(ends[1:], width, key=lambda end: letters.length(ended(text[:end])))]
