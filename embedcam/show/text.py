"""Fit text into a width."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable

from .fonts import Letters, has_glyph

# Replacements of common characters that no font has.
_REPLACEMENTS = {"–": "-", "—": "-", "−": "-", "×": "x", "ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O"}
_ELLIPSIS = "…"
_BREAK_AFTER = " /_-"
# Control, surrogate, private and unassigned characters.
_NEVER_DRAWN = ("Cc", "Cs", "Co", "Cn")
_JOINERS = "\u200c\u200d"  # formatting characters that joining scripts need
# Upper bound on characters per pixel, with combining marks, which take no width.
_CHARACTERS_PER_PIXEL = 4


def printable(text: str) -> str:
    """Replace characters that no installed font has: accents are dropped, other scripts become "?".

    Args:
        text: Any text.

    Returns:
        The text in one line and in normal form C, with white space collapsed.
    """
    return " ".join("".join(map(_drawable, unicodedata.normalize("NFC", text))).split())


def _drawable(character: str) -> str:
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category in _NEVER_DRAWN:
        return "?"
    if category == "Cf":
        return character if character in _JOINERS else ""
    if has_glyph(character):
        return character
    if character in _REPLACEMENTS:
        return _REPLACEMENTS[character]
    if unicodedata.combining(character):
        return ""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain if plain.isprintable() and plain else "?"


def fit(text: str, letters: Letters, width: float, lines: int = 1) -> list[str]:
    """Wrap a text to a few lines; the rest is replaced by an ellipsis.

    Args:
        text: Any text; its line breaks are kept as far as there are lines.
        letters: Font.
        width: Width of a line, in pixels.
        lines: Maximum number of lines, at least 1.

    Returns:
        At most `lines` non-empty lines, none wider than `width`.
    """
    # Enough to fill the lines, however long the text is.
    text = text[: _CHARACTERS_PER_PIXEL * lines * (int(max(width, 0)) + 1)]
    paragraphs = [paragraph for paragraph in map(printable, text.splitlines()) if paragraph]
    fitted: list[str] = []
    while paragraphs and len(fitted) < lines - 1:
        rest = paragraphs.pop(0)
        end = _prefix(rest, letters, width)
        if end < len(rest):
            # After a space or a separator of file names, else between any two letters.
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
    """Length of the longest prefix that fits the width; combining marks stay with their letters."""
    ends = [end for end in range(len(text) + 1) if not unicodedata.category(text[end : end + 1] or " ").startswith("M")]
    return ends[bisect_right(ends[1:], width, key=lambda end: letters.length(ended(text[:end])))]
