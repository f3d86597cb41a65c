"""Fonts that are made for a test: each glyph is a box as wide as its font says."""

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from embedcam.show import fonts


def write_font(path, characters, width):
    """Write a font of 1000 units a line that has these characters, each `width` units wide."""
    pen = TTGlyphPen(None)
    for number, corner in enumerate([(100, 0), (100, 700), (width - 100, 700), (width - 100, 0)]):
        (pen.lineTo if number else pen.moveTo)(corner)
    pen.closePath()
    box, nothing = pen.glyph(), TTGlyphPen(None).glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "box"])
    builder.setupCharacterMap({ord(character): "box" for character in characters})
    builder.setupGlyf({".notdef": nothing, "box": box})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "box": (width, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Let these fonts be all that is installed: (characters, width) each, by name."""

    def install(**made):
        files = {name: write_font(tmp_path / f"{name}.ttf", *font) for name, font in made.items()}
        monkeypatch.setattr(fonts, "_installed", lambda: tuple(files.values()))
        return files

    return install


@pytest.fixture
def only_built_in(installed):
    installed()
