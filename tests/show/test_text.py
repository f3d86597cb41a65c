import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcam.show.fonts import Letters
from embedcam.show.text import fit, printable

LETTERS = Letters(12)


def test_short_text_stays_as_it_is():
    assert fit("a cat", LETTERS, 200) == ["a cat"]


def test_empty_text_has_no_lines():
    assert fit(" \n ", LETTERS, 200, lines=2) == []


def test_long_text_ends_in_an_ellipsis():
    (line,) = fit("a very long caption that will never fit", LETTERS, 80)
    assert line.endswith("…")
    assert line[:-1] in "a very long caption that will never fit"
    assert LETTERS.length(line) <= 80


def test_text_wraps_at_spaces_before_it_is_cut():
    assert fit("Danaus plexippus", LETTERS, LETTERS.length("plexippus") + 1, lines=2) == [
        "Danaus",
        "plexippus",
    ]


def test_path_wraps_after_a_slash():
    width = LETTERS.length("butterflies/00") + 1
    assert fit("butterflies/0090123", LETTERS, width, lines=2) == ["butterflies/", "0090123"]


def test_long_word_is_broken_anywhere():
    first, second = fit("x" * 50, LETTERS, 60, lines=2)
    assert set(first) == {"x"}
    assert second.endswith("…")


def test_line_breaks_are_kept_while_there_are_lines():
    assert fit("one\ntwo", LETTERS, 200, lines=2) == ["one", "two"]
    assert fit("one\ntwo\nthree", LETTERS, 200, lines=2) == ["one", "two three"]


@given(st.text(), st.integers(20, 300), st.integers(1, 3))
def test_no_line_is_empty_or_too_wide(text, width, lines):
    fitted = fit(text, LETTERS, width, lines)
    assert len(fitted) <= lines
    assert all(line.strip() and LETTERS.length(line) <= width for line in fitted)


def test_a_mark_stays_with_its_letter(installed):
    word = "हिन्दी" * 3
    installed(devanagari=("हिन्दी", 500))
    starts = [fit(word, LETTERS, width, lines=2)[0] for width in range(20, 100, 5)]
    assert len(set(starts)) > 3
    assert not any(unicodedata.category(word[len(start)]).startswith("M") for start in starts)


def test_a_text_of_a_megabyte_is_not_looked_at_whole(monkeypatch):
    seen = []
    monkeypatch.setattr("embedcam.show.text.printable", lambda text: seen.append(len(text)) or printable(text))
    fit("x" * 1_000_000, LETTERS, 100, lines=2)
    assert sum(seen) < 2000


def test_a_letter_and_its_accent_become_one():
    assert printable("Mu\u0308ller \u1112\u1161\u11ab") == printable("Müller 한")


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("Épagneul", "Epagneul"),
        ("e\u0301", "e"),
        ("3 × 4 – straße", "3 x 4 - strasse"),
        ("蝶", "?"),
        ("a\tb\x00", "a b?"),
        ("a\udcffb", "a?b"),
        ("a\u202eb", "ab"),
    ],
)
def test_what_no_font_has_is_replaced(text, drawn, only_built_in):
    assert printable(text) == drawn
