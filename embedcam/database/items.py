"""The items of a weight database in an HDF5 file of format 1, and how to read them; galleries share some."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from ..data.preprocess import Preprocess
from ..errors import DatabaseError
from ..nets.geometry import Geometry
from ..nets.source import NetworkSource
from .hdf5 import Hdf5
from .neighbors import Partitions
from .record import Exemplars, Fusion, NetworkRecord, Refinement

ENCODING = "embedcam-weight-database"
VERSION = "1.0.0"
NETWORK = (
    "sha256",
    "sha256_float16",
    "sha256_bfloat16",
    "number_type",
    "architecture",
    "layer",
    "channels",
    "dim",
    "map_size",
)
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
PARTITIONS = ("centroids", "partition")
# Maximum length of a text attribute, and characters that it must not contain since they control terminals.
_LONGEST, _CONTROL = 1024, re.compile("[\x00-\x1f\x7f-\x9f]")


def read_version(file: Hdf5, encoding: str = ENCODING, supported: str = VERSION) -> str:
    """Check that a file is a weight database, or another kind of file, of a supported format.

    Args:
        file: The file.
        encoding: The kind of file.
        supported: The version that this program writes.

    Returns:
        The version of its format, which has the same major number as `supported`.

    Raises:
        DatabaseError: If it is something else, or has another major version.
    """
    attrs = read_attrs(file, "")
    kind, version = attrs.get("encoding-type"), str(attrs.get("encoding-version"))
    if kind != encoding:
        name = encoding.removeprefix("embedcam-").replace("-", " ")
        raise DatabaseError(f"encoding-type: expected {encoding!r}, found {kind!r}; this is not a {name}")
    if not re.fullmatch(rf"{supported.partition('.')[0]}(\.[0-9]+)*", version):
        raise DatabaseError(f"encoding-version: this embedcam reads {supported}, found {version}; update embedcam")
    return version


def item_names(file: Hdf5) -> list[str]:
    """List the datasets that a file must have.

    Args:
        file: The file.

    Returns:
        Their paths; what is optional only if the file has it.

    Raises:
        DatabaseError: If its groups are damaged.
    """
    groups = {
        "clusters": CLUSTERS,
        "labels": ("names", "histogram"),
        "exemplars": (*EXEMPLARS, "path"),
        "exemplars/partitions": PARTITIONS,
    }
    with about(""):
        names = [
            f"{group}/{key}" for group, keys in groups.items() if group == "clusters" or group in file for key in keys
        ]
        finer = "refinement/fusion/weights_mean"
        return [*names, finer] if finer in file else names


def read_item(file: Hdf5, name: str) -> NDArray[Any]:
    """Read one dataset.

    Args:
        file: The file.
        name: Its path.

    Returns:
        Numbers, or strings as objects.

    Raises:
        DatabaseError: If it is missing or damaged; the message names it.
    """
    with about(name):
        return file.array(name)


def fields_of(file: Hdf5, items: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Assemble the fields of a `Record`, without checking their values.

    Args:
        file: The file.
        items: Result of `read_item` for each of `item_names`.

    Returns:
        The fields.

    Raises:
        DatabaseError: If an attribute is missing or has another type; the message names the item.
    """
    attrs = read_attrs(file, "")
    with about(""):
        fields: dict[str, Any] = {key: str(attrs[key]) for key in ("method", "target", "created", "embedcam_version")}
        fields |= {key: int(attrs[key]) for key in ("pairs", "seed")}
    fields["network"] = read_network(file)
    fields["geometry"] = read_geometry(file, "geometry")
    fields |= {key: items[f"clusters/{key}"] for key in CLUSTERS}
    fields |= dict.fromkeys(("label_names", "label_histogram", "exemplars"))
    if "labels/names" in items:
        fields |= {"label_names": _names(items, "labels/names"), "label_histogram": items["labels/histogram"]}
    if "exemplars/path" in items:
        arrays = {key: items[f"exemplars/{key}"] for key in EXEMPLARS}
        names, partitions = _names(items, "exemplars/path"), _read_partitions(file, items)
        fields["exemplars"] = Exemplars(**arrays, path=names, partitions=partitions)
    fields["refinement"] = _read_refinement(file, items)
    return fields


def read_network(file: Hdf5) -> NetworkRecord:
    """Read which network a file was made with, without checking the values.

    Args:
        file: A weight database or gallery.

    Returns:
        The network.

    Raises:
        DatabaseError: If an attribute is missing or has another type; the message names the item.
    """
    attrs, network, source = read_attrs(file, ""), read_attrs(file, "network"), _read_source(file)
    with about("network"):
        rows, columns = map(int, network["map_size"])
        own: dict[str, Any] = {key: str(network[key]) for key in NETWORK}
        own |= {"channels": int(network["channels"]), "dim": int(network["dim"]), "map_size": (rows, columns)}
        preprocess = Preprocess.recorded(network)
        return NetworkRecord(**own, metric=str(attrs["metric"]), preprocess=preprocess, source=source)


def _read_source(file: Hdf5) -> NetworkSource | None:
    if "network/source" not in file:
        return None
    attrs = read_attrs(file, "network/source")
    with about("network/source"):
        return NetworkSource(**{item.name: str(attrs[item.name]) for item in dataclasses.fields(NetworkSource)})


def _read_partitions(file: Hdf5, items: Mapping[str, NDArray[Any]]) -> Partitions | None:
    group = "exemplars/partitions"
    if f"{group}/partition" not in items:
        return None
    attrs = read_attrs(file, group)
    with about(group):
        return Partitions(items[f"{group}/centroids"], items[f"{group}/partition"], int(attrs["probes"]))


def _read_refinement(file: Hdf5, items: Mapping[str, NDArray[Any]]) -> Refinement | None:
    if "refinement" not in file:
        return None
    fusion = None
    if "refinement/fusion" in file:
        attrs, geometry = read_attrs(file, "refinement/fusion"), read_geometry(file, "refinement/fusion")
        with about("refinement/fusion"):
            fusion = Fusion(str(attrs["layer"]), geometry, items.get("refinement/fusion/weights_mean"))
    attrs = read_attrs(file, "refinement")
    with about("refinement"):
        height, width = attrs["input_size"].tolist()
        return Refinement((height, width), float(attrs["distance_scale"]), fusion)


def read_geometry(file: Hdf5, name: str) -> Geometry:
    """Read where cells lie, without checking the values.

    Args:
        file: A weight database or gallery.
        name: Path of the group.

    Returns:
        The geometry.

    Raises:
        DatabaseError: If an attribute is missing or has another type; the message names the item.
    """
    attrs = read_attrs(file, name)
    with about(name):
        return Geometry(_pair(attrs["cell_stride"]), _pair(attrs["first_cell_center"]))


def _pair(values: NDArray[Any]) -> tuple[float, float]:
    y, x = map(float, values)
    return y, x


def _names(items: Mapping[str, NDArray[Any]], name: str) -> tuple[str, ...]:
    with about(name):
        if items[name].dtype != object or items[name].ndim != 1:
            raise DatabaseError(f"expected a list of strings, found {items[name].dtype} {items[name].shape}")
    return tuple(items[name])


def read_attrs(file: Hdf5, name: str) -> dict[str, Any]:
    """Read an item's attributes; their texts are checked since messages and terminals show them.

    Args:
        file: The file.
        name: Path of the item.

    Returns:
        Name -> value.

    Raises:
        DatabaseError: If they are damaged, or a text is not plain; the message names the item.
    """
    with about(name):
        attrs = file.attrs(name)
        for key, value in attrs.items():
            if isinstance(value, str) and (len(value) > _LONGEST or _CONTROL.search(value)):
                raise DatabaseError(f"{key!r} is not plain text of at most {_LONGEST} characters")
    return attrs


@contextlib.contextmanager
def about(item: str) -> Iterator[None]:
    """Convert any error that damaged content causes into one that names the item.

    Args:
        item: Its path.

    Yields:
        Nothing.

    Raises:
        DatabaseError: Instead of the other error.
    """
    try:
        yield
    except DatabaseError as error:
        raise DatabaseError(f"/{item}: {error}; build it again") from error
    except MemoryError as error:
        raise DatabaseError(f"/{item}: there is not enough memory for it; use another machine") from error
    except KeyError as error:
        raise DatabaseError(f"/{item}: expected an attribute {error}, found none; build it again") from error
    except Exception as error:  # struct.error, and whatever int, float and numpy raise
        reason = " ".join(str(error).split())
        raise DatabaseError(f"/{item}: it is damaged ({reason}); build it again") from error
