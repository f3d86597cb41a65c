"""Lazy import of a package's public names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Create the `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: The package's `__name__`.
        homes: Public name -> module that defines it, relative to the package, such as ".explainer". A name with a
            module of the same name is that module.

    Returns:
        `__getattr__` and `__dir__`.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(homes[name], package)
        value = module if homes[name] == f".{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted({*vars(sys.modules[package]), *homes})
