"""The gallery index as an HDF5 file, format 1: names, types and chunks; docs/gallery-format.md specifies it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..data.preprocess import Preprocess
from ..database.record import NetworkRecord
from ..errors import DatabaseError
from ..nets.geometry import Geometry
from ..nets.source import NetworkSource

if TYPE_CHECKING:
    import h5py

ENCODING, VERSION = "embedcam-gallery", "1.0.0"
_TEXTS = ("ids", "paths")
# Rows per chunk: of cells few, since a search reads those of single images.
_CHUNK, _CELLS_PER_CHUNK = 4096, 8


@dataclass(frozen=True)
class GalleryRecord:
    """What the images of a gallery have in common.

    Attributes:
        network: The network that the index was made with.
        geometry: Where the cells lie at the network's input size.
        cells: (h, w) cells per image.
        created: UTC, ISO 8601.
        embedcam_version: Of the program that made the index.
    """

    network: NetworkRecord
    geometry: Geometry
    cells: tuple[int, int]
    created: str
    embedcam_version: str = __version__


def open_index(path: Path) -> h5py.File:
    """Open a gallery index to read it.

    Args:
        path: The file.

    Returns:
        An `h5py.File`.

    Raises:
        DatabaseError: If there is none, or it is damaged.
    """
    import h5py

    if not path.is_file():
        raise DatabaseError(f"no gallery index {path}; make one with `embedcam index`")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DatabaseError(f"{path} is no gallery index, or damaged: {error}; make it again") from error


def is_index(path: Path) -> bool:
    """Tell whether a file is a gallery index, rather than a weight database or anything else.

    Args:
        path: The file.

    Returns:
        Whether it says so.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("encoding-type") == ENCODING)
    except OSError:
        return False


def create(file: h5py.File, record: GalleryRecord, label_names: Sequence[str], folder: Path) -> None:
    """Lay out an empty index.

    Args:
        file: An empty file.
        record: Stored as attributes.
        label_names: Names of the classes.
        folder: In which the index will lie.
    """
    dim, (height, width) = record.network.dim, record.cells
    file.attrs["encoding-type"], file.attrs["encoding-version"] = ENCODING, VERSION
    fields = asdict(record)
    fields["network"]["preprocess"] = record.network.preprocess.record()
    if record.network.source is not None:
        source = record.network.source.relative_to(folder)
        fields["network"]["source"] = asdict(source) if source.recordable else None
    file.attrs["record"] = json.dumps(fields, sort_keys=True)
    file.attrs["label_names"] = json.dumps(list(label_names))
    shapes: dict[str, tuple[tuple[int, ...], str, int]] = {
        "embeddings": ((dim,), "<f4", _CHUNK),
        "cells": ((height, width, dim), "<i1", _CELLS_PER_CHUNK),
        "scales": ((), "<f4", _CHUNK),
        "labels": ((), "<i8", _CHUNK),
    }
    for text in _TEXTS:
        shapes |= {f"{text}/bytes": ((), "<u1", 16 * _CHUNK), f"{text}/ends": ((), "<i8", _CHUNK)}
    for name, (shape, dtype, rows) in shapes.items():
        file.create_dataset(
            name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(rows, *shape), fletcher32=True, track_times=False
        )


def append(file: h5py.File, texts: Mapping[str, Sequence[str]], **arrays: NDArray[Any]) -> None:
    """Append images.

    Args:
        file: An index.
        texts: "ids" and "paths" of n images.
        arrays: "embeddings" (n, D), "cells" (n, h, w, D), "scales" (n,) and "labels" (n,).
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


def read_texts(file: h5py.File, key: str, rows: slice) -> list[str]:
    """Read texts of consecutive images.

    Args:
        file: An index.
        key: "ids" or "paths".
        rows: Which images.

    Returns:
        Their texts.
    """
    ends = file[f"{key}/ends"][max(rows.start - 1, 0) : rows.stop]
    first = 0 if rows.start == 0 else int(ends[0])
    ends = ends if rows.start == 0 else ends[1:]
    data = file[f"{key}/bytes"][first : int(ends[-1])].tobytes() if len(ends) else b""
    starts = [first, *ends[:-1].tolist()]
    return [data[a - first : b - first].decode() for a, b in zip(starts, ends.tolist(), strict=True)]


def blocks(file: h5py.File, rows: int) -> Iterator[slice]:
    """Cut the images of an index into blocks.

    Args:
        file: An index.
        rows: Images per block.

    Yields:
        The rows of each block.
    """
    count = file["scales"].shape[0]
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def read_record(file: h5py.File, path: Path) -> tuple[GalleryRecord, list[str]]:
    """Read what the images have in common, and check that the file is an index.

    Args:
        file: The file.
        path: Its path, for messages.

    Returns:
        The record, and the names of the classes.

    Raises:
        DatabaseError: If it is no gallery index, a newer or a damaged one.
    """
    if file.attrs.get("encoding-type") != ENCODING:
        raise DatabaseError(f"{path} is no gallery index; make one with `embedcam index`")
    version = str(file.attrs.get("encoding-version"))
    if version.partition(".")[0] != VERSION.partition(".")[0]:
        raise DatabaseError(f"{path} has gallery format {version}, this embedcam reads {VERSION}; update embedcam")
    try:
        fields = json.loads(file.attrs["record"])
        names = [str(name) for name in json.loads(file.attrs["label_names"])]
        network = dict(fields.pop("network"))
        network["preprocess"] = Preprocess.recorded(network["preprocess"])
        network["map_size"] = _tuple(network["map_size"])
        if network["source"] is not None:
            network["source"] = NetworkSource(**network["source"]).seen_from(path.parent)
        geometry = Geometry(**{key: _tuple(value) for key, value in fields.pop("geometry").items()})
        fields["cells"] = _tuple(fields["cells"])
        record = GalleryRecord(NetworkRecord(**network), geometry, **fields)
        _require_shapes(file, record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatabaseError(f"{path} is a damaged gallery index ({error!r}); make it again") from error
    return record, names


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _require_shapes(file: h5py.File, record: GalleryRecord) -> None:
    count, dim = file["scales"].shape[0], record.network.dim
    expected = {
        "embeddings": ((count, dim), np.float32),
        "cells": ((count, *record.cells, dim), np.int8),
        "scales": ((count,), np.float32),
        "labels": ((count,), np.int64),
        **{f"{text}/ends": ((count,), np.int64) for text in _TEXTS},
    }
    for name, (shape, dtype) in expected.items():
        if file[name].shape != shape or file[name].dtype != dtype:
            raise ValueError(f"/{name} is {file[name].dtype} {file[name].shape}, expected {dtype.__name__} {shape}")
        if file[name].external or file[name].is_virtual:
            raise ValueError(f"/{name} lies in another file")
