import sys
import unicodedata
from pathlib import Path

import pytest

from embedcam.errors import DataError
from embedcam.utils.names import bounded_name, expand_user, normal_name, shortened


def test_a_name_that_fits_is_kept():
    assert bounded_name("birds/owl.jpg", ".png") == "birds/owl.jpg.png"
    assert bounded_name("a" * 251, ".png") == "a" * 251 + ".png"


def test_a_name_too_long_is_cut_between_letters_and_stays_unique():
    names = [f"owls/{'鳥' * 83}{end}.jpg" for end in "ab"]
    first, second = (bounded_name(name, ".png") for name in names)
    assert first != second and bounded_name(names[0], ".png") == first
    for name in (first, second):
        folder, last = name.split("/")
        assert folder == "owls" and last.startswith("鳥" * 80) and last.endswith(".png")
        assert len(last.encode()) <= 255
    assert bounded_name("x/" + "a" * 255, ".png") != bounded_name("y/" + "a" * 255, ".png")


def test_a_cut_name_is_never_longer_than_asked():
    assert shortened("鳥鳥", 5) == "鳥" and shortened("ab", 5) == "ab"


def test_names_are_compared_composed():
    assert normal_name(unicodedata.normalize("NFD", "Möwe")) == "Möwe"


def test_a_home_folder_is_found():
    assert expand_user("~/birds") == Path.home() / "birds"
    assert expand_user("birds/~") == Path("birds/~")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows takes any name for a user's")
def test_an_unknown_user_is_named():
    with pytest.raises(DataError, match="the home folder of ~nobody-of-that-name is unknown"):
        expand_user("~nobody-of-that-name/birds")
