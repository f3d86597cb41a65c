"""The gallery index as an HDF5 file of format 1, which docs/reference/gallery-format.md specifies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..database.record import NetworkRecord
from ..database.store import write_geometry, write_network
from ..errors import DatabaseError
from ..nets.geometry import Geometry

if TYPE_CHECKING:
    import h5py

    from ..nets.network import Network

ENCODING, VERSION = "embedcam-gallery", "1.0.0"
ARRAYS, TEXTS = ("embeddings", "cells", "scales", "labels"), ("ids", "paths")
DESCRIPTORS = "descriptors/codes"
SPACE = ("descriptors/mean", "descriptors/projection")
NAMES, PARTS = "label_names", {"bytes": "u1", "ends": "<i8"}  # each text's bytes, one after the other
# About so many bytes per chunk of the embeddings, cells and descriptors, and of the rest: a search reads the rows of
# single images.
_CHUNK, _SMALL_CHUNK = 2**15, 2**12


@dataclass(frozen=True, eq=False)
class DescriptorSpace:
    """How descriptors are computed from feature maps, see `descriptors.fit`.

    Attributes:
        layer: Dotted name of the finer layer; empty if only the feature layer is used.
        geometry: Where the descriptors lie: the cells of the finer layer.
        cells: (h', w') descriptors per image.
        mean: float32 (K,), mean of each channel, of the finer layer and then of the feature layer.
        projection: float32 (K, C).
    """

    layer: str
    geometry: Geometry
    cells: tuple[int, int]
    mean: NDArray[np.float32]
    projection: NDArray[np.float32]

    def same_as(self, other: DescriptorSpace | None) -> bool:
        """Tell whether descriptors of both can be compared."""
        return (
            other is not None
            and (self.layer, self.geometry, self.cells) == (other.layer, other.geometry, other.cells)
            and np.array_equal(self.mean, other.mean)
            and np.array_equal(self.projection, other.projection)
        )


@dataclass(frozen=True)
class GalleryRecord:
    """What the images of a gallery have in common.

    Attributes:
        network: The network that the index was made with.
        geometry: Where the cells lie at the network's input size.
        cells: (h, w) cells per image.
        space: Of the descriptors; None if the index has none.
        created: UTC, ISO 8601.
        embedcam_version: Of the program that made the index.
    """

    network: NetworkRecord
    geometry: Geometry
    cells: tuple[int, int]
    created: str
    embedcam_version: str = __version__
    space: DescriptorSpace | None = None

    def require_same(self, net: Network, path: Path) -> None:
        """Check that a network is the one that an index was made with.

        Args:
            net: The network.
            path: Of the index.

        Raises:
            DatabaseError: If anything differs; the message names every difference.
        """
        differences = self.network.differences(net)
        if net.map_size != self.cells:
            differences.append(f"cells {self.cells} recorded, {net.map_size} in the network")
        if differences:
            raise DatabaseError(
                f"{path} was made with another network: {'; '.join(differences)}; use the network that it was made "
                "with, or index the images with this one"
            )

    @property
    def bytes_per_image(self) -> int:
        """Size of what is stored of an image, without its name."""
        rows = (shape for name, shape in datasets(self).items() if name in (*ARRAYS, DESCRIPTORS))
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in rows)


def datasets(record: GalleryRecord) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return what an index holds.

    Args:
        record: What the images have in common.

    Returns:
        The shape of a row, and the type, of each data set.
    """
    dim, (height, width) = record.network.dim, record.cells
    arrays: dict[str, tuple[tuple[int, ...], str]] = {
        "embeddings": ((dim,), "<f4"),
        "cells": ((height, width, dim), "i1"),
        "scales": ((), "<f4"),
        "labels": ((), "<i8"),
    }
    if record.space is not None:
        components = record.space.projection.shape[1:]
        arrays[DESCRIPTORS] = ((*record.space.cells, *components), "i1")
        arrays |= dict(zip(SPACE, (((), "<f4"), (components, "<f4")), strict=True))
    texts = {f"{text}/{part}": ((), dtype) for text in (*TEXTS, NAMES) for part, dtype in PARTS.items()}
    return {**arrays, **texts}


def create(file: h5py.File, record: GalleryRecord, label_names: Sequence[str], folder: Path) -> None:
    """Lay out an empty index.

    Args:
        file: An empty file.
        record: What the images will have in common.
        label_names: Names of the classes.
        folder: In which the index will lie.
    """
    file.attrs["encoding-type"], file.attrs["encoding-version"] = ENCODING, VERSION
    file.attrs["created"], file.attrs["embedcam_version"] = record.created, record.embedcam_version
    write_network(file, record.network, record.geometry, folder)
    if record.space is not None:
        write_geometry(file, "descriptors", record.space.geometry)
        file["descriptors"].attrs["layer"] = record.space.layer
    for name, (shape, dtype) in datasets(record).items():
        rows = max((_CHUNK if shape else _SMALL_CHUNK) // (math.prod(shape) * np.dtype(dtype).itemsize), 1)
        options = {"maxshape": (None, *shape), "chunks": (rows, *shape), "fletcher32": True, "track_times": False}
        file.create_dataset(name, (0, *shape), dtype, **options)
    space = {} if record.space is None else dict(zip(SPACE, (record.space.mean, record.space.projection), strict=True))
    append(file, {NAMES: label_names}, space)


def append(file: h5py.File, texts: Mapping[str, Sequence[str]], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Append images.

    Args:
        file: An index.
        texts: "ids" and "paths" of n images.
        arrays: "embeddings" (n, D), "cells" (n, h, w, D), "scales" (n,) and "labels" (n,); "descriptors/codes"
            (n, h', w', C) if the index has descriptors.
    """
    for key, values in texts.items():
        encoded = [value.encode() for value in values]
        start = file[f"{key}/bytes"].shape[0]
        _extend(file[f"{key}/bytes"], np.frombuffer(b"".join(encoded), np.uint8))
        _extend(file[f"{key}/ends"], start + np.cumsum([len(each) for each in encoded], dtype=np.int64))
    for key, rows in arrays.items():
        _extend(file[key], rows)


def _extend(dataset: h5py.Dataset, rows: NDArray[Any]) -> None:
    before = dataset.shape[0]
    dataset.resize(before + len(rows), axis=0)
    dataset[before:] = rows
