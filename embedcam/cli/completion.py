"""What the shell completes on the command line beyond options and fixed choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..registry import Registry


def specs(incomplete: str) -> list[str]:
    """Complete the beginning of a data set's SPEC.

    Args:
        incomplete: What is typed so far.

    Returns:
        "digits", and "folder:" and the like, that begin so.
    """
    from ..data.catalog import KINDS

    return _begin(["digits", *(f"{kind}:" for kind in KINDS if kind != "digits")], incomplete)


def backbones(incomplete: str) -> list[str]:
    """Complete the name of a backbone.

    Args:
        incomplete: What is typed so far.

    Returns:
        The names that begin so; none without torchvision.
    """
    try:
        from ..nets.backbones import names

        return _begin(names(), incomplete)
    except ImportError:
        return []


def colormaps(incomplete: str) -> list[str]:
    """Complete the name of a colour map.

    Args:
        incomplete: What is typed so far.

    Returns:
        The short names that begin so.
    """
    from cmap import Catalog

    return _begin(sorted(Catalog().short_keys()), incomplete)


def registered(registry: Registry[Any]) -> Callable[[str], list[str]]:
    """Make the completion of a registry's names.

    Args:
        registry: The registry.

    Returns:
        From what is typed so far to the names that begin so.
    """
    return lambda incomplete: _begin(registry.names(), incomplete)


def _begin(words: list[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
