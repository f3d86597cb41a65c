"""The weight database as an HDF5 file, format 1. Runs without torch, and reads without h5py."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DatabaseError
from ..nets.geometry import Geometry
from ..utils.files import write_bytes
from ..utils.limits import LARGEST
from .hdf5 import Hdf5
from .items import CELLS, CLUSTERS, ENCODING, EXEMPLARS, VERSION, fields_of, item_names, read_item, read_version
from .record import WeightDatabase

if TYPE_CHECKING:
    import h5py

_MARK = b"\nembedcam-sha256:"
_TRAILER_LENGTH = len(_MARK) + 64

logger = logging.getLogger("embedcam")


def save(db: WeightDatabase, path: str | Path) -> None:
    """Write a database, whole or not at all; equal databases give equal bytes.

    Args:
        db: The database.
        path: Where to.

    Raises:
        OutputError: If it cannot be written.
    """
    import h5py

    buffer = io.BytesIO()  # first into memory: libhdf5 crashes where a disk is full
    # Not left to h5py's default: the layout is part of the format.
    with h5py.File(buffer, "w", libver="earliest") as file:
        _fill(file, db)
    write_bytes(path, seal(buffer.getvalue()))


def seal(content: bytes) -> bytes:
    """Put a checksum of a whole file behind its end, which HDF5 ignores; its own checksums cover the arrays alone.

    Args:
        content: An HDF5 file.

    Returns:
        The same and its checksum.
    """
    return content + _trailer(content)


def _trailer(content: bytes | memoryview) -> bytes:
    return _MARK + hashlib.sha256(content).hexdigest().encode()


def unseal(data: bytes) -> tuple[memoryview, bool]:
    """Compare a file with its checksum.

    Args:
        data: A whole file.

    Returns:
        The HDF5 file, and whether it had a checksum; one of another writer has none.

    Raises:
        DatabaseError: If they do not match.
    """
    place = data.rfind(_MARK[:8], max(len(data) - _TRAILER_LENGTH, 0))
    if place < 0:
        return memoryview(data), False
    content = memoryview(data)[:place]
    if data[place:] != _trailer(content):
        raise DatabaseError("its checksum does not match its content: the file is damaged, copy it again or rebuild it")
    return content, True


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
        if db.exemplars.cells is not None:
            cells = _group(file, "exemplars/cells")
            cells.attrs["probes"] = db.exemplars.cells.probes
            for key in CELLS:
                _array(cells, key, getattr(db.exemplars.cells, key))
    if db.refinement is not None:
        refinement = _group(file, "refinement")
        refinement.attrs["input_size"], refinement.attrs["distance_scale"] = (
            db.refinement.input_size,
            db.refinement.distance_scale,
        )
    if db.fusion is not None:
        fusion = _group(file, "refinement/fusion")
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


_PACKED = {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True, "track_times": False}


def _array(group: h5py.Group, name: str, value: Any) -> None:
    _mark(group.create_dataset(name, data=value, **_PACKED), "array", "0.2.0")


def _strings(group: h5py.Group, name: str, values: tuple[str, ...]) -> None:
    import h5py

    # Of fixed length: strings of variable length lie outside the checksummed chunks.
    encoded = [value.encode() for value in values]
    dtype = h5py.string_dtype("utf-8", max([1, *map(len, encoded)]))
    item = group.create_dataset(name, data=np.array(encoded, dtype=dtype), dtype=dtype, **_PACKED)
    _mark(item, "string-array", "0.2.0")


def load(path: str | Path) -> WeightDatabase:
    """Read a database completely into memory, then check it.

    Args:
        path: A file that `save` wrote.

    Returns:
        The database.

    Raises:
        DatabaseError: If the file is missing, damaged, foreign, newer, inconsistent or too large.
    """
    path = Path(path)
    data = read_bytes(path)
    try:
        file = Hdf5(unseal(data)[0])
        if (version := read_version(file)) != VERSION:
            logger.warning("%s is of format %s; this embedcam knows %s and reads that much", path, version, VERSION)
        items = {name: read_item(file, name) for name in item_names(file)}
        return WeightDatabase(**fields_of(file, items))
    except DatabaseError as error:
        raise DatabaseError(f"{path} is not a readable weight database: {error}") from error


def read_bytes(path: Path) -> bytes:
    """Read a whole file, if it may be a weight database.

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
        raise DatabaseError(f"{path} has {size:,} bytes, a weight database has {LARGEST:,} at most; build it smaller")
    try:
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise DatabaseError(f"cannot read {path}: {error or 'there is not enough memory'}; check the file") from error
