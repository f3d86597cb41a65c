"""The weight database as an HDF5 file, format 1. Runs without torch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import DatabaseError
from ..files import write_bytes
from ..heatmap import Geometry
from ..preprocess import Preprocess
from .record import Closer, Exemplars, Fusion, NetworkRecord, WeightDatabase

ENCODING = "embedcam-weight-database"
VERSION = "1.0.0"

_MARK = b"\nembedcam-sha256:"
_TRAILER_LENGTH = len(_MARK) + 64

_CLUSTERS = (
    "centroids",
    "counts",
    "weights_mean",
    "weights_std",
    "top_channels",
    "top_weights",
    "distance_quantiles",
)
_EXEMPLARS = ("embeddings", "top_channels", "top_weights", "cluster", "label")


def save(db: WeightDatabase, path: str | Path) -> None:
    """Write a database, whole or not at all; equal databases give equal bytes.

    Args:
        db: The database.
        path: Where to.

    Raises:
        OutputError: If it cannot be written.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        _fill(file, db)
    content = buffer.getvalue()
    write_bytes(path, content + _trailer(content))


def _trailer(content: bytes) -> bytes:
    """Checksum the whole file, behind its end, which HDF5 ignores.

    HDF5's own checksums cover the arrays alone, and damage elsewhere can send the library into an endless loop.
    """
    return _MARK + hashlib.sha256(content).hexdigest().encode()


def _checked(data: bytes) -> bytes:
    """Strip the trailer after comparing it; a file of another writer has none."""
    place = data.rfind(_MARK[:8], len(data) - _TRAILER_LENGTH)
    if place < 0:
        return data
    content = data[:place]
    if data[place:] != _trailer(content):
        raise DatabaseError("its checksum does not match its content: the file is damaged, copy it again or rebuild it")
    return content


def _fill(file: h5py.File, db: WeightDatabase) -> None:
    _mark(file, ENCODING, VERSION)
    for key in ("embedcam_version", "created", "seed", "method", "target", "pairs"):
        file.attrs[key] = getattr(db, key)
    file.attrs["metric"] = db.network.metric

    network = _group(file, "network")
    for key in ("sha256", "architecture", "layer", "channels", "dim"):
        network.attrs[key] = getattr(db.network, key)
    for key in ("input_size", "mean", "std", "interpolation"):
        network.attrs[key] = getattr(db.network.preprocess, key)
    _geometry(_group(file, "geometry"), db.geometry)

    clusters = _group(file, "clusters")
    for key in _CLUSTERS:
        _array(clusters, key, getattr(db, key))
    if db.label_names is not None:
        labels = _group(file, "labels")
        _strings(labels, "names", db.label_names)
        _array(labels, "histogram", db.label_histogram)
    if db.exemplars is not None:
        exemplars = _group(file, "exemplars")
        for key in _EXEMPLARS:
            _array(exemplars, key, getattr(db.exemplars, key))
        _strings(exemplars, "path", db.exemplars.path)
    if db.closer is not None:
        closer = _group(file, "closer")
        closer.attrs["input_size"], closer.attrs["distance_scale"] = db.closer.input_size, db.closer.distance_scale
    if db.fusion is not None:
        fusion = _group(file, "closer/fusion")
        fusion.attrs["layer"] = db.fusion.layer
        _geometry(fusion, db.fusion.geometry)
        _array(fusion, "weights_mean", db.fusion.weights_mean)


def _geometry(group: h5py.Group, geometry: Geometry) -> None:
    group.attrs["cell_stride"] = geometry.cell_stride
    group.attrs["first_cell_center"] = geometry.first_cell_center


def _mark(item: h5py.HLObject, kind: str, version: str) -> None:
    item.attrs["encoding-type"] = kind
    item.attrs["encoding-version"] = version


def _group(file: h5py.File, name: str) -> h5py.Group:
    group = file.create_group(name)
    _mark(group, "dict", "0.1.0")
    return group


def _array(group: h5py.Group, name: str, value: Any) -> None:
    item = group.create_dataset(
        name, data=value, chunks=True, compression="gzip", shuffle=True, fletcher32=True, track_times=False
    )
    _mark(item, "array", "0.2.0")


def _strings(group: h5py.Group, name: str, values: tuple[str, ...]) -> None:
    # Of fixed length: strings of variable length lie outside the checksummed chunks.
    encoded = [value.encode() for value in values]
    dtype = h5py.string_dtype("utf-8", max([1, *map(len, encoded)]))
    item = group.create_dataset(
        name,
        data=np.array(encoded, dtype=dtype),
        dtype=dtype,
        chunks=True,
        compression="gzip",
        shuffle=True,
        fletcher32=True,
        track_times=False,
    )
    _mark(item, "string-array", "0.2.0")


def load(path: str | Path) -> WeightDatabase:
    """Read a database completely into memory, then check it.

    Args:
        path: A file that `save` wrote.

    Returns:
        The database.

    Raises:
        DatabaseError: If the file is missing, damaged, foreign, newer, or inconsistent.
    """
    path = Path(path)
    if not path.is_file():
        raise DatabaseError(f"no weight database {path}; make one with `embedcam build`")
    try:
        with h5py.File(io.BytesIO(_checked(path.read_bytes())), "r") as file:
            return _read(file)
    except DatabaseError as error:
        raise DatabaseError(f"{path}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, ValueError, TypeError and RuntimeError for damage
        reason = " ".join(str(error).split())
        raise DatabaseError(
            f"{path} is not a readable weight database: {reason}; it is damaged or of another program, build it again"
        ) from error


def _read(file: h5py.File) -> WeightDatabase:
    kind, version = file.attrs.get("encoding-type"), str(file.attrs.get("encoding-version"))
    if kind != ENCODING:
        raise DatabaseError(f"encoding-type: expected {ENCODING!r}, found {kind!r}; this is not a weight database")
    if version.split(".")[0] != VERSION.split(".")[0]:
        raise DatabaseError(f"encoding-version: this embedcam reads {VERSION}, found {version}; update embedcam")
    if any(isinstance(link, h5py.SoftLink | h5py.ExternalLink) for link in _links(file)):
        raise DatabaseError("expected only items of the file itself, found a link; build the database again")

    network, attrs = file["network"].attrs, file.attrs
    height, width = map(int, network["input_size"])
    red, green, blue = map(float, network["mean"])
    red_std, green_std, blue_std = map(float, network["std"])
    preprocess = Preprocess(
        (height, width), (red, green, blue), (red_std, green_std, blue_std), str(network["interpolation"])
    )
    record = NetworkRecord(
        str(network["sha256"]),
        str(network["architecture"]),
        str(network["layer"]),
        int(network["channels"]),
        int(network["dim"]),
        str(attrs["metric"]),
        preprocess,
    )
    labels, exemplars, closer = file.get("labels"), file.get("exemplars"), file.get("closer")
    return WeightDatabase(
        network=record,
        geometry=_load_geometry(file["geometry"]),
        method=str(attrs["method"]),
        target=str(attrs["target"]),
        pairs=int(attrs["pairs"]),
        seed=int(attrs["seed"]),
        created=str(attrs["created"]),
        embedcam_version=str(attrs["embedcam_version"]),
        **{key: _load_array(file, f"clusters/{key}") for key in _CLUSTERS},
        label_names=None if labels is None else _load_strings(file, "labels/names"),
        label_histogram=None if labels is None else _load_array(file, "labels/histogram"),
        exemplars=None
        if exemplars is None
        else Exemplars(
            **{key: _load_array(file, f"exemplars/{key}") for key in _EXEMPLARS},
            path=_load_strings(file, "exemplars/path"),
        ),
        closer=None if closer is None else _load_closer(file, closer),
    )


def _load_closer(file: h5py.File, group: h5py.Group) -> Closer:
    height, width = map(int, group.attrs["input_size"])
    fusion = group.get("fusion")
    return Closer(
        input_size=(height, width),
        distance_scale=float(group.attrs["distance_scale"]),
        fusion=None
        if fusion is None
        else Fusion(
            layer=str(fusion.attrs["layer"]),
            geometry=_load_geometry(fusion),
            weights_mean=_load_array(file, "closer/fusion/weights_mean"),
        ),
    )


def _load_geometry(group: h5py.Group) -> Geometry:
    return Geometry(_pair(group.attrs["cell_stride"]), _pair(group.attrs["first_cell_center"]))


def _pair(values: NDArray[Any]) -> tuple[float, float]:
    y, x = map(float, values)
    return y, x


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    item = file.get(name)
    if not isinstance(item, h5py.Dataset):
        raise DatabaseError(
            f"/{name}: expected a dataset, found {'nothing' if item is None else 'a group'}; build it again"
        )
    return item


def _load_array(file: h5py.File, name: str) -> NDArray[Any]:
    return np.asarray(_dataset(file, name)[()])


def _load_strings(file: h5py.File, name: str) -> tuple[str, ...]:
    return tuple(value.decode() if isinstance(value, bytes) else str(value) for value in _dataset(file, name)[()])


def _links(group: h5py.Group) -> Iterator[Any]:
    for name in group:
        link = group.get(name, getlink=True)
        yield link
        if isinstance(link, h5py.HardLink) and isinstance(group[name], h5py.Group):
            yield from _links(group[name])
