"""Data sets: images with labels, masks and splits, and reading them in batches."""

from .catalog import DATASETS, Dataset, has_split, load, load_gallery
from .loading import batches
from .samples import Samples

__all__ = ["DATASETS", "Dataset", "Samples", "batches", "has_split", "load", "load_gallery"]
