"""A tkinter window that shows frames and reports pressed keys."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_POLL_SECONDS = 0.02


class Window:
    """An open window; made by `open_window`."""

    def __init__(self, root: Any, label: Any) -> None:
        self._root, self._label, self._keys = root, label, ""
        self._photo: Any = None
        root.bind("<Key>", lambda event: self._press(event.char.lower()))
        root.protocol("WM_DELETE_WINDOW", lambda: self._press("q"))

    def _press(self, key: str) -> None:
        self._keys += key

    def show(self, picture: NDArray[np.uint8], seconds: float = 0.0) -> str:
        """Wait, then show a picture.

        Args:
            picture: uint8 (H, W, 3) RGB.
            seconds: Time to wait, in seconds. A key ends the wait.

        Returns:
            The keys pressed since the last call, in lower case. Closing the window counts as "q".
        """
        from PIL import ImageTk

        end = time.monotonic() + seconds
        while not self._keys and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
            self._root.update()
        self._photo = ImageTk.PhotoImage(Image.fromarray(picture), master=self._root)  # tkinter keeps no reference
        self._label.configure(image=self._photo)
        self._root.update()
        keys, self._keys = self._keys, ""
        return keys


@contextlib.contextmanager
def open_window(title: str) -> Iterator[Window | None]:
    """Open a window; it is closed on exit.

    Args:
        title: Window title.

    Yields:
        The window, or None without a display or without tkinter.
    """
    try:
        import tkinter
    except ImportError:
        yield None
        return
    try:
        root = tkinter.Tk()
    except tkinter.TclError:
        yield None
        return
    try:
        root.title(title)
        label = tkinter.Label(root)
        label.pack()
        yield Window(root, label)
    finally:
        root.destroy()
