"""Libraries that network families load from: their errors are network errors of one line."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ..errors import NetworkError
from ..utils import libraries


def require(library: str, extra: str) -> Any:
    """Import a library, see `utils.libraries.require`.

    Args:
        library: Its module.
        extra: Name of the extra that installs it.

    Returns:
        The module.
    """
    return libraries.require(library, extra, "this network")


def loading(spec: str, way_out: str) -> AbstractContextManager[None]:
    """Turn whatever a library raises while it loads a network into one line.

    Args:
        spec: Of the network.
        way_out: What else the user can do, such as giving a file.

    Returns:
        The context.
    """
    return libraries.in_one_line(NetworkError, f"cannot load {spec}", way_out)
