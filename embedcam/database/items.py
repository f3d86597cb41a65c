"""What an HDF5 file must hold to be a weight database of format 1, and taking it out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from ..data.preprocess import Preprocess, usable
from ..errors import DatabaseError
from ..nets.geometry import Geometry
from .hdf5 import Hdf5
from .neighbors import Cells
from .record import Exemplars, Fusion, NetworkRecord, Refinement

ENCODING = "embedcam-weight-database"
VERSION = "1.0.0"
CLUSTERS = (
    "centroids",
    "counts",
    "weights_mean",
    "weights_std",
    "top_channels",
    "top_weights",
    "distance_quantiles",
)
EXEMPLARS = ("embeddings", "top_channels", "top_weights", "cluster", "label")
CELLS = ("centroids", "cell")
# Characters of an attribute, and those that it must not have: they would steer a terminal.
_LONGEST, _CONTROL = 1024, re.compile("[\x00-\x1f\x7f-\x9f]")


def read_version(file: Hdf5) -> str:
    """Make sure that a file is a weight database of a format that can be read.

    Args:
        file: The file.

    Returns:
        The version of its format; with another number than `VERSION`'s behind the first point it may hold more.

    Raises:
        DatabaseError: If it is something else, or of a newer format.
    """
    attrs = _attrs(file, "")
    kind, version = attrs.get("encoding-type"), str(attrs.get("encoding-version"))
    if kind != ENCODING:
        raise DatabaseError(f"encoding-type: expected {ENCODING!r}, found {kind!r}; this is not a weight database")
    if not re.fullmatch(rf"{VERSION.partition('.')[0]}(\.[0-9]+)*", version):
        raise DatabaseError(f"encoding-version: this embedcam reads {VERSION}, found {version}; update embedcam")
    return version


def item_names(file: Hdf5) -> list[str]:
    """List the data sets that a file should have.

    Args:
        file: The file.

    Returns:
        Their paths; of the optional groups those that the file has.

    Raises:
        DatabaseError: If its groups are damaged.
    """
    groups = {
        "clusters": CLUSTERS,
        "labels": ("names", "histogram"),
        "exemplars": (*EXEMPLARS, "path"),
        "exemplars/cells": CELLS,
        "refinement/fusion": ("weights_mean",),
    }
    with _about(""):
        return [
            f"{group}/{key}" for group, keys in groups.items() if group == "clusters" or group in file for key in keys
        ]


def read_item(file: Hdf5, name: str) -> NDArray[Any]:
    """Read one data set.

    Args:
        file: The file.
        name: Its path.

    Returns:
        Numbers, or strings as objects.

    Raises:
        DatabaseError: If it is missing or damaged; the message names it.
    """
    with _about(name):
        return file.array(name)


def fields_of(file: Hdf5, items: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Put together what a `WeightDatabase` is made of; its numbers are not looked at.

    Args:
        file: The file.
        items: What `read_item` gave for each of `item_names`.

    Returns:
        Its fields.

    Raises:
        DatabaseError: If an attribute is missing or of another type; the message names the item.
    """
    attrs, network = _attrs(file, ""), _attrs(file, "network")
    with _about(""):
        fields: dict[str, Any] = {key: str(attrs[key]) for key in ("method", "target", "created", "embedcam_version")}
        fields |= {key: int(attrs[key]) for key in ("pairs", "seed")}
    with _about("network"):
        height, width = network["input_size"].tolist()
        fields["network"] = NetworkRecord(
            str(network["sha256"]),
            str(network["architecture"]),
            str(network["layer"]),
            int(network["channels"]),
            int(network["dim"]),
            str(attrs["metric"]),
            usable(
                Preprocess(
                    (height, width),
                    _triple(network["mean"]),
                    _triple(network["std"]),
                    str(network["interpolation"]),
                )
            ),
        )
    fields["geometry"] = _read_geometry(file, "geometry")
    fields |= {key: items[f"clusters/{key}"] for key in CLUSTERS}
    fields |= dict.fromkeys(("label_names", "label_histogram", "exemplars"))
    if "labels/names" in items:
        fields |= {"label_names": _names(items, "labels/names"), "label_histogram": items["labels/histogram"]}
    if "exemplars/path" in items:
        arrays = {key: items[f"exemplars/{key}"] for key in EXEMPLARS}
        names, cells = _names(items, "exemplars/path"), _read_cells(file, items)
        fields["exemplars"] = Exemplars(**arrays, path=names, cells=cells)
    fields["refinement"] = _read_refinement(file, items)
    return fields


def _read_cells(file: Hdf5, items: Mapping[str, NDArray[Any]]) -> Cells | None:
    if "exemplars/cells/cell" not in items:
        return None
    attrs = _attrs(file, "exemplars/cells")
    with _about("exemplars/cells"):
        return Cells(items["exemplars/cells/centroids"], items["exemplars/cells/cell"], int(attrs["probes"]))


def _read_refinement(file: Hdf5, items: Mapping[str, NDArray[Any]]) -> Refinement | None:
    if "refinement" not in file:
        return None
    fusion = None
    if (weights := items.get("refinement/fusion/weights_mean")) is not None:
        attrs, geometry = _attrs(file, "refinement/fusion"), _read_geometry(file, "refinement/fusion")
        with _about("refinement/fusion"):
            fusion = Fusion(str(attrs["layer"]), geometry, weights)
    attrs = _attrs(file, "refinement")
    with _about("refinement"):
        height, width = attrs["input_size"].tolist()
        return Refinement((height, width), float(attrs["distance_scale"]), fusion)


def _read_geometry(file: Hdf5, name: str) -> Geometry:
    attrs = _attrs(file, name)
    with _about(name):
        return Geometry(_pair(attrs["cell_stride"]), _pair(attrs["first_cell_center"]))


def _pair(values: NDArray[Any]) -> tuple[float, float]:
    y, x = map(float, values)
    return y, x


def _triple(values: NDArray[Any]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _names(items: Mapping[str, NDArray[Any]], name: str) -> tuple[str, ...]:
    with _about(name):
        if items[name].dtype != object or items[name].ndim != 1:
            raise DatabaseError(f"expected a list of strings, found {items[name].dtype} {items[name].shape}")
    return tuple(items[name])


def _attrs(file: Hdf5, name: str) -> dict[str, Any]:
    """Read an item's attributes: names and settings, which end up in messages and on terminals."""
    with _about(name):
        attrs = file.attrs(name)
        for key, value in attrs.items():
            if isinstance(value, str) and (len(value) > _LONGEST or _CONTROL.search(value)):
                raise DatabaseError(f"{key!r} is no plain text of at most {_LONGEST} characters")
    return attrs


@contextlib.contextmanager
def _about(item: str) -> Iterator[None]:
    """Turn whatever reading damaged content raises into one error that names the item."""
    try:
        yield
    except DatabaseError as error:
        raise DatabaseError(f"/{item}: {error}; build it again") from error
    except MemoryError as error:
        raise DatabaseError(f"/{item}: there is not enough memory for it; use another machine") from error
    except KeyError as error:
        raise DatabaseError(f"/{item}: expected an attribute {error}, found none; build it again") from error
    except Exception as error:  # struct.error, and the errors of types and values, of numpy too
        reason = " ".join(str(error).split())
        raise DatabaseError(f"/{item}: it is damaged ({reason}); build it again") from error
