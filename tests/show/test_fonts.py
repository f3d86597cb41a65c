import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from embedcam.show import fonts
from embedcam.show.fonts import Letters
from embedcam.show.text import fit, printable


def runs(text, files):
    """The fonts of a text by their names, and what each draws."""
    names = {path: name for name, path in files.items()}
    return [(names.get(path, "built-in"), run) for path, run in fonts._runs(text)]


def drawn(text, anchor="la", at=(100.0, 50.0)):
    """The pixels of a text, black on white."""
    image = Image.new("L", (200, 100), 255)
    Letters(20).write(ImageDraw.Draw(image), at, text, 0, anchor)
    return np.asarray(image)


def test_what_the_built_in_font_has_is_drawn_by_it_as_ever(installed):
    installed(wide=("abcé ", 900))
    image = Image.new("L", (200, 100), 255)
    ImageDraw.Draw(image).text((100, 50), "a cab", font=ImageFont.load_default(size=20), fill=0, anchor="ma")
    np.testing.assert_array_equal(drawn("a cab", "ma"), np.asarray(image))


def test_the_font_that_reaches_farthest_draws_a_run(installed):
    files = installed(accents=("abcé ", 500), greek=("abc αβ", 500), han=("日本", 1000))
    assert runs("abc", files) == [("built-in", "abc")]
    assert runs("cab é", files) == [("accents", "cab é")]
    assert runs("a β b", files) == [("greek", "a β b")]
    assert runs("a é β 日", files) == [("accents", "a é "), ("greek", "β "), ("han", "日")]


def test_the_first_of_two_fonts_that_reach_as_far_draws(installed):
    files = installed(first=("é", 500), second=("é", 500))
    assert runs("é", files) == [("first", "é")]


def test_a_joiner_does_not_part_a_run(installed):
    files = installed(devanagari=("कष", 500))
    assert runs("क\u200dष", files) == [("devanagari", "क\u200dष")]


def test_a_text_is_as_long_as_its_runs(installed):
    installed(greek=("β", 500), han=("日", 1000))
    letters = Letters(20)
    assert letters.length("β日日") == pytest.approx(0.5 * 20 + 2 * 20)
    assert letters.length("ab") == ImageFont.load_default(size=20).getlength("ab")
    assert letters.height == sum(ImageFont.load_default(size=20).getmetrics())


@pytest.mark.parametrize(("anchor", "left"), [("la", 100), ("ma", 100 - 15), ("ra", 100 - 30)])
def test_runs_stand_side_by_side_from_the_anchor(installed, anchor, left):
    installed(greek=("β", 500), han=("日", 1000))  # 10 and 20 pixels wide, with margins of 2
    columns = np.flatnonzero((drawn("β日", anchor) < 128).any(axis=0))
    assert columns.tolist() == [left + x for x in (*range(2, 8), *range(12, 28))]


def test_all_runs_stand_on_the_line_of_the_built_in_font(installed):
    installed(greek=("β", 500), han=("日", 1000))
    for anchor in ("la", "lm"):
        bottoms = [np.flatnonzero((drawn(text, anchor) < 128).any(axis=1))[-1] for text in ("H", "β", "β日")]
        assert np.ptp(bottoms) <= 1


def test_a_label_of_glyphs_that_are_there_is_kept(installed):
    installed(greek=("αβ", 500))
    assert printable("αβ é 日") == "αβ e ?"
    assert fit("αβ" * 20, Letters(20), 80) == ["αβ" * 3 + "…"]


def test_a_font_in_the_working_folder_is_nobody_s_choice(installed, tmp_path, monkeypatch):
    planted = installed(planted=("é", 500))["planted"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fonts, "_SYSTEM", ("planted.ttf",))
    monkeypatch.setattr(fonts, "_PACKAGED", ())
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    assert fonts._installed.__wrapped__() == ()
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "share"))
        (tmp_path / "share" / "fonts").mkdir(parents=True)
        (tmp_path / "planted.ttf").rename(tmp_path / "share" / "fonts" / "planted.ttf")
        assert fonts._installed.__wrapped__() == (planted.replace("planted.ttf", "share/fonts/planted.ttf"),)


@pytest.mark.parametrize("label", ["Müller", "Ελλάδα", "Жук", "עברית", "العربية"])
def test_matplotlib_s_font_draws_these_scripts(label):
    assert printable(label) == label
    (run,) = fonts._runs(label)
    assert run == (fonts._installed()[0], label)


@pytest.mark.parametrize("label", ["日本語", "한국어", "中文", "ไทย", "हिन्दी", "বাংলা", "தமிழ்", "ລາວ", "မြန်မာ"])
def test_the_fonts_extra_draws_these_scripts(label):
    pytest.importorskip("noto_cjk_sans_otc", reason="embedcam[fonts] is not installed")
    pytest.importorskip("justmytype_intl_sea", reason="embedcam[fonts] is not installed")
    pytest.importorskip("justmytype_intl_south_asia", reason="embedcam[fonts] is not installed")
    assert printable(label) == label
