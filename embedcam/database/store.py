"""The weight database as an HDF5 file, format 1. Runs without torch; reading needs no h5py."""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DatabaseError
from ..nets.geometry import Geometry
from ..utils.files import write_bytes
from ..utils.limits import LARGEST
from .hdf5 import Hdf5
from .items import (
    CLUSTERS,
    ENCODING,
    EXEMPLARS,
    NETWORK,
    PARTITIONS,
    VERSION,
    fields_of,
    item_names,
    read_item,
    read_version,
)
from .record import NetworkRecord, Record

if TYPE_CHECKING:
    import h5py

_MARK = b"\nembedcam-sha256:"
_TRAILER_LENGTH = len(_MARK) + 64

logger = logging.getLogger("embedcam")


def save(db: Record, path: str | Path) -> None:
    """Write a database atomically; equal databases give equal bytes.

    Args:
        db: The database.
        path: File to write.

    Raises:
        OutputError: If it cannot be written.
    """
    import h5py

    buffer = io.BytesIO()  # not straight to disk: libhdf5 crashes if the disk is full
    # The layout is part of the format.
    with h5py.File(buffer, "w", libver="earliest") as file:
        _fill(file, db, Path(path).parent)
    write_bytes(path, seal(buffer.getvalue()))


def seal(content: bytes) -> bytes:
    """Append a checksum of the whole file, which HDF5 ignores; HDF5's own checksums cover the arrays alone.

    Args:
        content: An HDF5 file.

    Returns:
        The file with its checksum.
    """
    return content + _trailer(content)


def _trailer(content: bytes | memoryview) -> bytes:
    return _MARK + hashlib.sha256(content).hexdigest().encode()


def unseal(data: bytes) -> tuple[memoryview, bool]:
    """Compare a file with its checksum and remove it.

    Args:
        data: A whole file.

    Returns:
        The HDF5 file, and whether it had a checksum; files of other programs may have none.

    Raises:
        DatabaseError: If they do not match.
    """
    end = data.rfind(_MARK[:8], max(len(data) - _TRAILER_LENGTH, 0))
    if end < 0:
        return memoryview(data), False
    content = memoryview(data)[:end]
    if data[end:] != _trailer(content):
        raise DatabaseError("its checksum does not match its content: the file is damaged, copy it again or rebuild it")
    return content, True


def _fill(file: h5py.File, db: Record, folder: Path) -> None:
    _mark(file, ENCODING, VERSION)
    for key in ("embedcam_version", "created", "seed", "method", "target", "pairs"):
        file.attrs[key] = getattr(db, key)
    write_network(file, db.network, db.geometry, folder)

    clusters = _group(file, "clusters")
    for key in CLUSTERS:
        _array(clusters, key, getattr(db, key))
    if db.label_names is not None:
        labels = _group(file, "labels")
        _strings(labels, "names", db.label_names)
        _array(labels, "histogram", db.label_histogram)
    if db.exemplars is not None:
        exemplars = _group(file, "exemplars")
        for key in EXEMPLARS:
            _array(exemplars, key, getattr(db.exemplars, key))
        _strings(exemplars, "path", db.exemplars.path)
        if db.exemplars.partitions is not None:
            partitions = _group(file, "exemplars/partitions")
            partitions.attrs["probes"] = db.exemplars.partitions.probes
            for key in PARTITIONS:
                _array(partitions, key, getattr(db.exemplars.partitions, key))
    if db.refinement is not None:
        refinement = _group(file, "refinement")
        for key in ("input_size", "distance_scale"):
            refinement.attrs[key] = getattr(db.refinement, key)
    if db.fusion is not None:
        fusion = _group(file, "refinement/fusion")
        fusion.attrs["layer"] = db.fusion.layer
        _geometry(fusion, db.fusion.geometry)
        if db.fusion.weights_mean is not None:
            _array(fusion, "weights_mean", db.fusion.weights_mean)


def write_network(file: h5py.File, record: NetworkRecord, geometry: Geometry, folder: Path) -> None:
    """Write which network a file was made with.

    Args:
        file: An HDF5 file.
        record: The network.
        geometry: Where its cells lie.
        folder: In which the file will lie.
    """
    file.attrs["metric"] = record.metric
    network = _group(file, "network")
    for key in NETWORK:
        network.attrs[key] = getattr(record, key)
    for key, value in record.preprocess.record().items():
        network.attrs[key] = 0.0 if value is None else value
    if record.source is not None and (source := record.source.relative_to(folder)).recordable:
        group = _group(file, "network/source")
        for key, value in asdict(source).items():
            group.attrs[key] = value
    write_geometry(file, "geometry", geometry)


def write_geometry(file: h5py.File, name: str, geometry: Geometry) -> None:
    """Write where cells lie.

    Args:
        file: An HDF5 file.
        name: Path of the group, which is made.
        geometry: Of the cells.
    """
    _geometry(_group(file, name), geometry)


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


_PACKED = {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True, "track_times": False}


def _array(group: h5py.Group, name: str, value: Any) -> None:
    _mark(group.create_dataset(name, data=value, **_PACKED), "array", "0.2.0")


def _strings(group: h5py.Group, name: str, values: tuple[str, ...]) -> None:
    import h5py

    # Fixed length, since strings of variable length lie outside the checksummed chunks.
    encoded = [value.encode() for value in values]
    dtype = h5py.string_dtype("utf-8", max([1, *map(len, encoded)]))
    item = group.create_dataset(name, data=np.array(encoded, dtype=dtype), dtype=dtype, **_PACKED)
    _mark(item, "string-array", "0.2.0")


def decode(data: bytes, path: Path) -> dict[str, Any]:
    """Read the fields of a database from the bytes of its file.

    Args:
        data: The whole file.
        path: Its path, for messages.

    Returns:
        The fields of a `Record`; their values are not checked.

    Raises:
        DatabaseError: If the file is damaged, foreign or newer.
    """
    file = Hdf5(unseal(data)[0])
    if (version := read_version(file)) != VERSION:
        logger.warning("%s has format %s; this embedcam supports %s and ignores newer items", path, version, VERSION)
    return fields_of(file, {name: read_item(file, name) for name in item_names(file)})


def read_bytes(path: Path) -> bytes:
    """Read a whole file, unless it is too large to be a weight database.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        DatabaseError: If it is missing, cannot be read or is too large.
    """
    if not path.is_file():
        raise DatabaseError(f"no weight database {path}; make one with `embedcam build`")
    if (size := path.stat().st_size) > LARGEST:
        raise DatabaseError(f"{path} has {size:,} bytes, a weight database has at most {LARGEST:,}; check the file")
    try:
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise DatabaseError(f"cannot read {path}: {error or 'there is not enough memory'}; check the file") from error
