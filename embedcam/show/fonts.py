"""Draw text in any script with Pillow's built-in font and the installed fonts."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from PIL import ImageDraw, ImageFont

# Non-ASCII glyphs of Pillow's built-in font.
_BUILT_IN_GLYPHS = frozenset("©«°±´·»‘’“”…‹›⁄™")
# The space and the joiners need no glyph.
_NO_GLYPH = frozenset(" \u200c\u200d")
_NOT_A_CHARACTER = "\U0010ffff"
_PROBE_SIZE = 16

# Python packages with fonts, of the extras "train" (matplotlib) and "fonts".
_PACKAGED = (
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
    ("noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc"),
    ("justmytype_intl_rtl", "fonts/ofl/notosanshebrew/NotoSansHebrew[wdth,wght].ttf"),
    ("justmytype_intl_rtl", "fonts/ofl/notosansarabic/NotoSansArabic[wdth,wght].ttf"),
    ("justmytype_intl_sea", "fonts/ofl/notosansthai/NotoSansThai[wdth,wght].ttf"),
    ("justmytype_intl_sea", "fonts/ofl/notosanslao/NotoSansLao[wdth,wght].ttf"),
    ("justmytype_intl_sea", "fonts/ofl/notosanskhmer/NotoSansKhmer[wdth,wght].ttf"),
    ("justmytype_intl_sea", "fonts/ofl/notosansmyanmar/NotoSansMyanmar[wdth,wght].ttf"),
    ("justmytype_intl_south_asia", "fonts/ofl/notosansdevanagari/NotoSansDevanagari[wdth,wght].ttf"),
    ("justmytype_intl_south_asia", "fonts/ofl/notosansbengali/NotoSansBengali[wdth,wght].ttf"),
    ("justmytype_intl_south_asia", "fonts/ofl/notosanstamil/NotoSansTamil[wdth,wght].ttf"),
    ("justmytype_intl_south_asia", "fonts/ofl/notosanstelugu/NotoSansTelugu[wdth,wght].ttf"),
)
# Fonts of Linux, macOS and Windows.
_SYSTEM = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "FreeSerif.ttf",
    "Arial Unicode.ttf",
    "segoeui.ttf",
    "YuGothR.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "LeelawUI.ttf",
    "Nirmala.ttf",
    "Nirmala.ttc",
    "unifont.otf",
)


@dataclass(frozen=True)
class Letters:
    """A font of one size for all scripts that an installed font has.

    Each run of a text is drawn with the font that covers most of it, Pillow's built-in font first, so that plain text
    looks the same on every machine. Right-to-left and joining scripts need Pillow with the Raqm library.

    Attributes:
        size: Font size in pixels.
    """

    size: int

    @property
    def height(self) -> int:
        """Line height in pixels."""
        return sum(_font(None, self.size).getmetrics())

    def length(self, text: str) -> float:
        """Measure the width of a text.

        Args:
            text: One line.

        Returns:
            Width in pixels.
        """
        return sum(_font(path, self.size).getlength(run) for path, run in _runs(text))

    def write(
        self,
        draw: ImageDraw.ImageDraw,
        position: tuple[float, float],
        text: str,
        fill: str | int | tuple[int, int, int],
        anchor: str = "la",
    ) -> None:
        """Draw a text.

        Args:
            draw: Pillow's drawing object.
            position: (x, y) of the anchor, in pixels.
            text: One line.
            fill: Colour.
            anchor: Pillow's anchor: l, m or r, then a (top) or m (middle).
        """
        runs = _runs(text)
        if [path for path, _ in runs] == [None]:
            draw.text(position, text, font=_font(None, self.size), fill=fill, anchor=anchor)
            return
        x = position[0] - self.length(text) * {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]]
        ascent, descent = _font(None, self.size).getmetrics()
        baseline = position[1] + {"a": ascent, "m": (ascent - descent) / 2}[anchor[1]]
        for path, run in runs:
            font = _font(path, self.size)
            draw.text((x, baseline), run, font=font, fill=fill, anchor="ls")
            x += font.getlength(run)


def has_glyph(character: str) -> bool:
    """Whether any font has a glyph for a character.

    Args:
        character: One character.

    Returns:
        True if there is one.
    """
    return _has(None, character) or any(_has(path, character) for path in _installed())


def _runs(text: str) -> list[tuple[str | None, str]]:
    """Split a text into runs (font file, characters); None is the built-in font."""
    runs = []
    start = 0
    while start < len(text):
        best, farthest = None, start
        for path in _fonts():
            end = start
            while end < len(text) and _has(path, text[end]):
                end += 1
            if end > farthest:
                best, farthest = path, end
            if end == len(text):
                break
        end = max(farthest, start + 1)
        runs.append((best, text[start:end]))
        start = end
    return runs


def _fonts() -> Iterator[str | None]:
    yield None
    yield from _installed()


@cache
def _installed() -> tuple[str, ...]:
    """Font files: those of Python packages, which are the same everywhere, then those of the system."""
    files = []
    for package, name in _PACKAGED:
        spec = importlib.util.find_spec(package)  # does not import it
        folders = spec.submodule_search_locations if spec else None
        files += [path for folder in folders or () if (path := Path(folder, name)).is_file()]
    for name in _SYSTEM:
        try:
            # An absolute path that does not exist makes Pillow search the system's folders. With a bare name it
            # would search the working directory first, which is not trusted.
            files.append(Path(str(ImageFont.truetype(str(Path(os.sep, name))).path)))
        except OSError:
            continue
    return tuple(map(str, files))


@cache
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    if path is None:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))  # with a size, not a bitmap font
    return ImageFont.truetype(path, size)


@cache
def _has(path: str | None, character: str) -> bool:
    """Whether a font has a glyph: missing ones are all drawn alike."""
    if character in _NO_GLYPH:
        return True
    if path is None:
        return character in _BUILT_IN_GLYPHS or (character.isascii() and character.isprintable())
    probe, missing = _probe(path)
    return _drawn(probe, character) != missing


@cache
def _probe(path: str) -> tuple[ImageFont.FreeTypeFont, tuple[tuple[int, int], bytes]]:
    # The basic layout draws each character by itself; Raqm hides some and changes the form of others.
    font = ImageFont.truetype(path, _PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC)
    return font, _drawn(font, _NOT_A_CHARACTER)


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
