"""Data sets: images with labels, masks and splits, and reading them in batches."""

from .catalog import DATASETS, Dataset, has_split, load, load_gallery
from .loading import batches
from .samples import FileSamples, Samples
from .splits import rows_of, training_part

__all__ = [
    "DATASETS",
    "Dataset",
    "FileSamples",
    "Samples",
    "batches",
    "has_split",
    "load",
    "load_gallery",
    "rows_of",
    "training_part",
]
