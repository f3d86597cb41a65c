"""The web page and the HTTP API."""

from __future__ import annotations

from ..errors import MissingDependencyError

try:
    from .server import create_app, serve
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f'serving needs {error.name}; install it with `pip install "embedcam[app]"`'
    ) from error

__all__ = ["create_app", "serve"]
