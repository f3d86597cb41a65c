"""The fonts that labels of any script are drawn in: Pillow's own, then what is installed, glyph by glyph."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from PIL import ImageDraw, ImageFont

# The glyphs of Pillow's built-in font beyond ASCII.
_BUILT_IN_GLYPHS = frozenset("©«°±´·»‘’“”…‹›⁄™")
# Spaces, and the signs that join letters or part them, need no glyph of their own.
_NO_GLYPH = frozenset(" \u200c\u200d")
_NOT_A_CHARACTER = "\U0010ffff"
_PROBE_SIZE = 16

# Python packages that carry fonts: matplotlib comes with "embedcam[train]", the others with "embedcam[fonts]".
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
# What Linux, macOS and Windows come with.
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
    """Letters of one height in every script that a font is there for.

    A text is drawn by the fewest fonts: each run by the one that reaches farthest. What Pillow's built-in font can
    draw whole is drawn by it, and looks the same on every machine. Where Pillow has the Raqm library, right-to-left
    and joining scripts are laid out by it.

    Attributes:
        size: Height in pixels.
    """

    size: int

    @property
    def height(self) -> int:
        """Pixels from one line to the next."""
        return sum(_font(None, self.size).getmetrics())

    def length(self, text: str) -> float:
        """Measure a text.

        Args:
            text: One line.

        Returns:
            Its width in pixels.
        """
        return sum(_font(path, self.size).getlength(run) for path, run in _runs(text))

    def write(
        self,
        draw: ImageDraw.ImageDraw,
        at: tuple[float, float],
        text: str,
        fill: str | int | tuple[int, int, int],
        anchor: str = "la",
    ) -> None:
        """Draw a text.

        Args:
            draw: What to draw with.
            at: The anchor's place (x, y) in pixels.
            text: One line.
            fill: Its colour.
            anchor: Which point of the text that is, as Pillow has it: l, m or r, then a (top) or m (middle).
        """
        runs = _runs(text)
        if [path for path, _ in runs] == [None]:
            draw.text(at, text, font=_font(None, self.size), fill=fill, anchor=anchor)
            return
        x = at[0] - self.length(text) * {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]]
        ascent, descent = _font(None, self.size).getmetrics()
        baseline = at[1] + {"a": ascent, "m": (ascent - descent) / 2}[anchor[1]]
        for path, run in runs:
            font = _font(path, self.size)
            draw.text((x, baseline), run, font=font, fill=fill, anchor="ls")
            x += font.getlength(run)


def has_glyph(character: str) -> bool:
    """Tell whether any font can draw a character.

    Args:
        character: One.

    Returns:
        Whether it can.
    """
    return _has(None, character) or any(_has(path, character) for path in _installed())


def _runs(text: str) -> list[tuple[str | None, str]]:
    """Split a text into (file of the font that draws it, characters); None is the built-in font."""
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
    """The files of all other fonts that are here, those that look the same everywhere first."""
    found = []
    for package, name in _PACKAGED:
        spec = importlib.util.find_spec(package)  # finds it without running its code
        folders = spec.submodule_search_locations if spec else None
        found += [path for folder in folders or () if (path := Path(folder, name)).is_file()]
    for name in _SYSTEM:
        try:
            # Pillow looks in the system's folders for what is not at a path; a bare name it would take from the
            # working folder first, which may be anybody's.
            found.append(Path(str(ImageFont.truetype(str(Path(os.sep, name))).path)))
        except OSError:
            continue
    return tuple(map(str, found))


@cache
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    if path is None:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))  # with a size it is no bitmap font
    return ImageFont.truetype(path, size)


@cache
def _has(path: str | None, character: str) -> bool:
    """Whether a font has a glyph: it draws all that it lacks as one and the same."""
    if character in _NO_GLYPH:
        return True
    if path is None:
        return character in _BUILT_IN_GLYPHS or (character.isascii() and character.isprintable())
    probe, missing = _probe(path)
    return _drawn(probe, character) != missing


@cache
def _probe(path: str) -> tuple[ImageFont.FreeTypeFont, tuple[tuple[int, int], bytes]]:
    # The basic layout shows each character by itself; Raqm would hide some, and put letters into other forms.
    font = ImageFont.truetype(path, _PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC)
    return font, _drawn(font, _NOT_A_CHARACTER)


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
