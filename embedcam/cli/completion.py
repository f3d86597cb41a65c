"""Names that help lists and the shell completes: those of the registries, of backbones and of colour maps."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from ..registry import Registry

# Imported when first used, so that commands that need none of them start quickly.
_REGISTRIES = {
    "datasets": "data.catalog:DATASETS",
    "networks": "nets.catalog:NETWORKS",
    "transfers": "explain.transfer:TRANSFERS",
    "weightings": "explain.weighting:WEIGHTINGS",
    "scores": "evaluate.scores:SCORES",
    "searchers": "gallery.searching:SEARCHERS",
}


def registry(name: str) -> Registry[Any]:
    """Import a registry by the name that entry points and help texts use.

    Args:
        name: "datasets", "networks", "transfers", "weightings", "scores" or "searchers".

    Returns:
        The registry.
    """
    module, _, variable = _REGISTRIES[name].partition(":")
    parts: Registry[Any] = getattr(importlib.import_module(f"embedcam.{module}"), variable)
    return parts


def registered(name: str) -> Callable[[str], list[str]]:
    """Make a function that completes the names of a registry.

    Args:
        name: As for `registry`.

    Returns:
        A function of what is typed so far. It returns the names that begin with it, followed by a colon if they take
        an argument.
    """

    def complete(incomplete: str) -> list[str]:
        parts = registry(name)
        typed = (f"{part}:" if ":" in parts.usage(part) else part for part in parts)
        return _matching(typed, incomplete)

    return complete


def backbones(incomplete: str) -> list[str]:
    """Complete the name of a backbone.

    Args:
        incomplete: What is typed so far.

    Returns:
        The names that begin with it; none if torchvision is not installed.
    """
    try:
        from ..nets.backbones import names

        return _matching(names(), incomplete)
    except ImportError:
        return []


def colormaps(incomplete: str) -> list[str]:
    """Complete the name of a colour map.

    Args:
        incomplete: What is typed so far.

    Returns:
        The short names that begin with it.
    """
    from cmap import Catalog

    return _matching(sorted(Catalog().short_keys()), incomplete)


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
