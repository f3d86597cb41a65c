"""Data sets: images with labels, masks and splits, and reading them in batches."""

from .catalog import DATASETS, Dataset, has_queries, has_split, load, load_all, load_gallery, load_queries
from .loading import batches
from .samples import FileSamples, Samples
from .splits import rows_of, training_part

__all__ = [
    "DATASETS",
    "Dataset",
    "FileSamples",
    "Samples",
    "batches",
    "has_queries",
    "has_split",
    "load",
    "load_all",
    "load_gallery",
    "load_queries",
    "rows_of",
    "training_part",
]
