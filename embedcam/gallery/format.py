"""The gallery index as an HDF5 file of format 1, which docs/reference/gallery-format.md specifies."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..database.checks import Check, geometry_forms, network_forms, require
from ..database.chunks import Chunks, FileContent
from ..database.hdf5 import Hdf5
from ..database.items import about, read_attrs, read_geometry, read_network, read_version
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
_SPACE = ("descriptors/mean", "descriptors/projection")
_NAMES, _PARTS = "label_names", {"bytes": "u1", "ends": "<i8"}  # each text's bytes, one after the other
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
        rows = (shape for name, shape in _datasets(self).items() if name in (*ARRAYS, DESCRIPTORS))
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in rows)


class IndexFile:
    """A gallery index, opened to be read; nothing of it is trusted.

    Args:
        path: The file.

    Attributes:
        record: What the images have in common.
        label_names: Names of the classes.

    Raises:
        DatabaseError: If there is no such file, or it is no index, a newer or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DatabaseError(f"no gallery index {path}; make one with `embedcam index`")
        self.path, self._content = path, FileContent(path)
        try:
            with self._about(""):
                self._file = Hdf5(self._content)
                read_version(self._file, ENCODING, VERSION)
            own = (DESCRIPTORS, *_SPACE) if "descriptors" in self._file else ()
            names = [*ARRAYS, *own, *(f"{text}/{part}" for text in (*TEXTS, _NAMES) for part in _PARTS)]
            self._datasets = {name: self._dataset(name) for name in names}
            with self._about(""):
                self.record = self._record()
                require(self._forms())
            self.label_names = self.texts(_NAMES, slice(0, self._datasets[f"{_NAMES}/ends"].shape[0]))
        except DatabaseError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._content.close()

    def __enter__(self) -> IndexFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._datasets["scales"].shape[0]

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of what `read` reads."""
        return ARRAYS if self.record.space is None else (*ARRAYS, DESCRIPTORS)

    def read(self, name: str, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Read what is stored of some images.

        Args:
            name: One of `arrays`.
            rows: Which images: consecutive ones, or (n,) indices.

        Returns:
            Their rows.

        Raises:
            DatabaseError: If they are damaged.
        """
        with self._about(name):
            values = self._rows(name, rows)
            if name == "labels" and not ((values >= -1) & (values < len(self.label_names))).all():
                raise DatabaseError(f"expected indices in -1..{len(self.label_names) - 1}")
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise DatabaseError("expected finite numbers, found NaN or infinity")
        return values

    def _rows(self, name: str, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        stored = self._datasets[name]
        return stored.read(rows) if isinstance(rows, slice) else stored.take(rows)

    def texts(self, key: str, rows: slice | NDArray[np.int64]) -> list[str]:
        """Read texts of some images.

        Args:
            key: "ids" or "paths".
            rows: As for `read`.

        Returns:
            Their texts.

        Raises:
            DatabaseError: If they are damaged.
        """
        with self._about(key):
            stored = self._datasets[f"{key}/bytes"]
            if isinstance(rows, slice):
                ends = self._rows(f"{key}/ends", slice(max(rows.start - 1, 0), rows.stop))
                bounds = np.concatenate([[0], ends] if rows.start == 0 else [ends])
                starts, ends = bounds[:-1], bounds[1:]
            else:
                bounds = self._rows(f"{key}/ends", np.stack([np.maximum(rows - 1, 0), rows]).ravel())
                starts, ends = np.where(rows == 0, 0, bounds[: len(rows)]), bounds[len(rows) :]
            if not ((starts >= 0) & (starts <= ends) & (ends <= stored.shape[0])).all():
                raise DatabaseError("expected rising ends")
            if isinstance(rows, slice) and len(starts):
                data, first = stored.read(slice(int(starts[0]), int(ends[-1]))).tobytes(), int(starts[0])
                return [data[a - first : b - first].decode() for a, b in zip(starts, ends, strict=True)]
            return [
                stored.read(slice(a, b)).tobytes().decode() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
            ]

    def blocks(self, rows: int) -> Iterator[slice]:
        """Cut the images into blocks.

        Args:
            rows: Images per block.

        Yields:
            The rows of each block.
        """
        for start in range(0, len(self), rows):
            yield slice(start, min(start + rows, len(self)))

    @contextlib.contextmanager
    def _about(self, item: str) -> Iterator[None]:
        try:
            with about(item) if item else contextlib.nullcontext():
                yield
        except DatabaseError as error:
            raise DatabaseError(f"{self.path} is not a readable gallery index: {error}") from error

    def _dataset(self, name: str) -> Chunks:
        with self._about(name):
            return self._file.chunks(name)

    def _record(self) -> GalleryRecord:
        attrs, shape = read_attrs(self._file, ""), self._datasets["cells"].shape
        with about(""):
            texts = {key: str(attrs[key]) for key in ("created", "embedcam_version")}
        with about("cells"):
            _, height, width, _ = shape
        network, geometry = read_network(self._file), read_geometry(self._file, "geometry")
        if network.source is not None:
            network = replace(network, source=network.source.seen_from(self.path.parent))
        return GalleryRecord(network, geometry, (height, width), **texts, space=self._space())

    def _space(self) -> DescriptorSpace | None:
        if DESCRIPTORS not in self._datasets:
            return None
        attrs, geometry = read_attrs(self._file, "descriptors"), read_geometry(self._file, "descriptors")
        mean, projection = (self.read(name, slice(0, self._datasets[name].shape[0])) for name in _SPACE)
        with about("descriptors"):
            _, height, width, _ = self._datasets[DESCRIPTORS].shape
            return DescriptorSpace(str(attrs["layer"]), geometry, (height, width), mean, projection)

    def _forms(self) -> Iterator[Check]:
        yield from network_forms(self.record.network, self.record.geometry)
        if (space := self.record.space) is not None:
            yield from geometry_forms("/descriptors", space.geometry)
        yield Check("/scales", self._datasets["scales"].shape > (0,), "at least one image", "none")
        for name, (shape, dtype) in _datasets(self.record).items():
            found = self._datasets[name]
            own = name.endswith("/bytes") or name.startswith(_NAMES) or name in _SPACE  # as many as there are
            expected = (*(found.shape[:1] if own else (len(self),)), *shape)
            same = found.shape == expected and found.dtype == dtype
            yield Check(f"/{name}", same, f"{np.dtype(dtype)} {expected}", f"{found.dtype} {found.shape}")


def is_index(path: Path) -> bool:
    """Tell whether a file is a gallery index, rather than a weight database or anything else.

    Args:
        path: The file.

    Returns:
        Whether it says so.
    """
    content = FileContent(path)
    try:
        return bool(read_attrs(Hdf5(content), "").get("encoding-type") == ENCODING)
    except DatabaseError:
        return False
    finally:
        content.close()


def _datasets(record: GalleryRecord) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape of a row, and the type, of each data set."""
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
        arrays |= dict(zip(_SPACE, (((), "<f4"), (components, "<f4")), strict=True))
    texts = {f"{text}/{part}": ((), dtype) for text in (*TEXTS, _NAMES) for part, dtype in _PARTS.items()}
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
    for name, (shape, dtype) in _datasets(record).items():
        rows = max((_CHUNK if shape else _SMALL_CHUNK) // (math.prod(shape) * np.dtype(dtype).itemsize), 1)
        options = {"maxshape": (None, *shape), "chunks": (rows, *shape), "fletcher32": True, "track_times": False}
        file.create_dataset(name, (0, *shape), dtype, **options)
    space = {} if record.space is None else dict(zip(_SPACE, (record.space.mean, record.space.projection), strict=True))
    append(file, {_NAMES: label_names}, space)


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
