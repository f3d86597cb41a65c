"""The offline half: from a network and training images to a weight database."""

from .build import build_database, build_file

__all__ = ["build_database", "build_file"]
