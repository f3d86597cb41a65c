"""Optional libraries: imported when needed, their errors in one line."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from ..errors import EmbedcamError, MissingDependencyError


def require(library: str, extra: str, user: str) -> Any:
    """Import a library that an extra of embedcam installs.

    Args:
        library: Its module.
        extra: Name of the extra.
        user: What needs it, for the message.

    Returns:
        The module.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'{user} needs {error.name}; install it with `pip install "embedcam[{extra}]"`'
        ) from error


@contextlib.contextmanager
def in_one_line(kind: type[EmbedcamError], problem: str, way_out: str) -> Iterator[None]:
    """Turn whatever a library raises into an error of one line; each library has errors of its own.

    Args:
        kind: Of the error.
        problem: What cannot be done.
        way_out: What else the user can do, such as giving a file.

    Yields:
        Nothing.

    Raises:
        EmbedcamError: Of the given kind, if the library raises anything.
    """
    try:
        yield
    except EmbedcamError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise kind(f"{problem}: {reason}; {way_out}") from error
