"""Names for the parts that can be exchanged, and how packages outside embedcam add their own."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from .errors import EmbedcamError

T = TypeVar("T")


class Registry(Generic[T]):
    """Parts of one kind by name.

    A part is either registered by embedcam itself, or named by an entry point of an installed package; the latter is
    imported when it is first used.

    Args:
        kind: What the parts are, for messages, such as "transfer".
        group: Entry-point group, such as "embedcam.transfers".
        error: Raised for an unknown name.
        home: Package of embedcam whose modules register their parts, such as "embedcam.data.sets"; all of them are
            imported when a part is first asked for. None if the parts register themselves where the registry is made.
    """

    def __init__(
        self, kind: str, group: str, error: type[EmbedcamError] = EmbedcamError, home: str | None = None
    ) -> None:
        self.kind, self.group, self._error, self._home = kind, group, error, home
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Register a class, a function or an object under a name; used as a decorator.

        Args:
            name: As it is typed.

        Returns:
            A function that registers its argument and returns it.

        Raises:
            ValueError: If the name is taken.
        """

        def add(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._parts[name] = part
            return part

        return add

    def names(self) -> list[str]:
        """List the names, those of embedcam first.

        Returns:
            Each name once.
        """
        self._import_home()
        return [*self._parts, *sorted({point.name for point in self._points()} - self._parts.keys())]

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __getitem__(self, name: str) -> T:
        """Find a part.

        Args:
            name: One of `names()`.

        Returns:
            The part.

        Raises:
            EmbedcamError: Of the registry's own kind, if the name is unknown or its package cannot be imported.
        """
        self._import_home()
        if name in self._parts:
            return self._parts[name]
        for point in self._points():
            if point.name == name:
                try:
                    part: T = point.load()
                except Exception as error:  # whatever a foreign package raises when it is imported
                    raise self._error(
                        f"{self.kind} {name!r} of {point.value!r} cannot be loaded: {error!r}; update or remove the "
                        "package"
                    ) from error
                return self._parts.setdefault(name, part)
        close = difflib.get_close_matches(name.lower(), self.names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise self._error(f"unknown {self.kind} {name!r}; {hint}use one of {', '.join(self.names())}")

    def usage(self, name: str) -> str:
        """Show how a part is typed.

        Args:
            name: One of `names()`.

        Returns:
            The name; followed by a colon and the part's `argument` if it has such an attribute, as "folder:PATH".
        """
        try:
            argument = getattr(self[name], "argument", "")
        except EmbedcamError:  # its package cannot be imported
            argument = "..."
        return f"{name}:{argument}" if argument else name

    def _import_home(self) -> None:
        if self._home is not None:
            package = importlib.import_module(self._home)
            for module in pkgutil.iter_modules(package.__path__, f"{self._home}."):
                importlib.import_module(module.name)
            self._home = None

    def _points(self) -> tuple[EntryPoint, ...]:
        return _entry_points(self.group, tuple(sys.path))


# Reading the metadata of all installed packages takes about 40 ms; only another path leads to others.
@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))
