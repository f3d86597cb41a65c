import sys
from types import SimpleNamespace

import numpy as np
import pytest

from embedcam.video.window import Window, open_window

ImageTk = pytest.importorskip("PIL.ImageTk", reason="Python has no tkinter")
PICTURE = np.zeros((4, 6, 3), dtype=np.uint8)


class Root:
    """What the window asks of tkinter, with keys that are pressed one an update."""

    def __init__(self, keys=""):
        self.keys, self.updates, self.bound, self.open = list(keys), 0, {}, True

    def bind(self, event, call):
        self.bound[event] = call

    protocol = bind

    def title(self, text):
        self.text = text

    def destroy(self):
        self.open = False

    def update(self):
        self.updates += 1
        if self.keys:
            self.bound["<Key>"](SimpleNamespace(char=self.keys.pop(0)))


class Label:
    def __init__(self, root=None):
        pass

    def pack(self):
        pass

    def configure(self, image):
        self.image = image


@pytest.fixture(autouse=True)
def _no_display_needed(monkeypatch):
    monkeypatch.setattr(ImageTk, "PhotoImage", lambda image, master: image)


def test_a_picture_is_shown_and_the_keys_are_told_once():
    root, label = Root("S"), Label()
    window = Window(root, label)
    assert window.show(PICTURE) == "s"
    assert label.image.size == (6, 4)
    assert window.show(PICTURE) == ""


def test_a_key_ends_the_wait():
    root = Root(["", "", "q"])
    assert Window(root, Label()).show(PICTURE, seconds=3600) == "q"
    assert root.updates == 3 + 1


def test_a_picture_is_shown_after_the_wait():
    root, label, shown = Root("q"), Label(), []
    update = root.update
    root.update = lambda: shown.append(hasattr(label, "image")) or update()
    assert Window(root, label).show(PICTURE, seconds=3600) == "q"
    assert shown == [False, True]


def test_closing_the_window_is_the_key_q():
    root = Root()
    window = Window(root, Label())
    root.bound["WM_DELETE_WINDOW"]()
    assert window.show(PICTURE) == "q"


def test_a_window_closes_with_its_context(monkeypatch):
    root = Root()
    monkeypatch.setitem(sys.modules, "tkinter", SimpleNamespace(Tk=lambda: root, TclError=OSError, Label=Label))
    with open_window("a.mp4") as window:
        assert window.show(PICTURE) == ""
        assert (root.text, root.open) == ("a.mp4", True)
    assert not root.open


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a display")
def test_without_a_display_there_is_no_window(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    with open_window("title") as window:
        assert window is None


def test_without_tkinter_there_is_no_window(monkeypatch):
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with open_window("title") as window:
        assert window is None
