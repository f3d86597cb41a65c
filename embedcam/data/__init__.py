"""Data sets: pictures with labels, masks and splits, and reading them in batches."""

from .catalog import has_split, load, load_gallery
from .loading import batches
from .samples import Samples

__all__ = ["Samples", "batches", "has_split", "load", "load_gallery"]
