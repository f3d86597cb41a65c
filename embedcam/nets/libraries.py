"""Libraries that network families load from: imported when needed, their errors in one line."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from ..errors import EmbedcamError, MissingDependencyError, NetworkError


def require(library: str, extra: str) -> Any:
    """Import a library that an extra of embedcam installs.

    Args:
        library: Its module.
        extra: Name of the extra.

    Returns:
        The module.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'this network needs {error.name}; install it with `pip install "embedcam[{extra}]"`'
        ) from error


@contextlib.contextmanager
def loading(spec: str, way_out: str) -> Iterator[None]:
    """Turn whatever a library raises while it loads a network into one line.

    Args:
        spec: Of the network.
        way_out: What else the user can do, such as giving a file.

    Yields:
        Nothing.

    Raises:
        NetworkError: If anything is raised.
    """
    try:
        yield
    except EmbedcamError:
        raise
    except Exception as error:  # each library has its own errors for names, connections and files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise NetworkError(f"cannot load {spec}: {reason}; {way_out}") from error
