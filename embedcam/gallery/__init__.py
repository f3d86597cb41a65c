"""Galleries: what is precomputed of the images that are searched, so that matches can be explained."""

from typing import TYPE_CHECKING

from ..utils import lazy

if TYPE_CHECKING:
    from .gallery import Gallery
    from .matches import Matches
    from .writer import index

__all__ = ["Gallery", "Matches", "index"]

__getattr__, __dir__ = lazy.attach(__name__, {"Gallery": ".gallery", "Matches": ".matches", "index": ".writer"})
