"""Validity of a weight database: shapes and types, values, and the agreement of its parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DatabaseError
from ..nets.geometry import Geometry
from ..utils.limits import LARGEST_INPUT
from .quantiles import QUANTILES
from .record import NetworkRecord, Record

_TYPES = {
    "centroids": "float32",
    "counts": "int64",
    "weights_mean": "float32",
    "weights_std": "float32",
    "top_channels": "int32",
    "top_weights": "float32",
    "distance_quantiles": "float32",
    "histogram": "int64",
    "embeddings": "float32",
    "cluster": "int64",
    "label": "int64",
    "partition": "int32",
}


class Check(NamedTuple):
    """One condition.

    Attributes:
        item: What it is about, as a path in the file.
        true: Whether it holds.
        expected: What was expected.
        actual: What there is instead.
    """

    item: str
    true: bool
    expected: object
    actual: object


def require_valid(db: Record) -> None:
    """Check shapes, types, indices and numbers.

    Args:
        db: The database.

    Raises:
        DatabaseError: Naming the first item that is wrong, what was expected and what was found.
    """
    require(chain(forms(db), contents(db)))


def require(checks: Iterable[Check]) -> None:
    """Raise an error if something is wrong.

    Args:
        checks: What must hold.

    Raises:
        DatabaseError: Naming the first item that is wrong, what was expected and what was found.
    """
    for item, true, expected, actual in checks:
        if not true:
            raise DatabaseError(f"{item}: expected {expected}, found {actual}; the database is damaged, build it again")


def arrays(db: Record) -> dict[str, NDArray[Any]]:
    """List the arrays of a database.

    Args:
        db: The database.

    Returns:
        Path in the file -> array.
    """
    keys = [key for key in _TYPES if hasattr(db, key)]
    listed = {f"/clusters/{key}": getattr(db, key) for key in keys}
    if db.label_histogram is not None:
        listed["/labels/histogram"] = db.label_histogram
    if db.exemplars is not None:
        keys = [key for key in _TYPES if hasattr(db.exemplars, key)]
        listed |= {f"/exemplars/{key}": getattr(db.exemplars, key) for key in keys}
        if (partitions := db.exemplars.partitions) is not None:
            listed["/exemplars/partitions/centroids"] = partitions.centroids
            listed["/exemplars/partitions/partition"] = partitions.partition
    if db.fusion is not None and db.fusion.weights_mean is not None:
        listed["/refinement/fusion/weights_mean"] = db.fusion.weights_mean
    return listed


def forms(db: Record) -> Iterator[Check]:
    """Check shapes, types and settings.

    Args:
        db: The database.

    Yields:
        What must hold before the values can be checked.
    """
    listed = arrays(db)
    c, t = _length(db.centroids, 0), _length(db.top_channels, 1)
    k, d, labels = db.network.channels, db.network.dim, len(db.label_names or ())
    n = _length(listed["/exemplars/embeddings"], 0) if db.exemplars is not None else 0
    m = _length(listed.get("/exemplars/partitions/centroids", np.empty(0)), 0)
    fine = _length(listed.get("/refinement/fusion/weights_mean", np.empty(0)), 1)
    shapes = {
        "/clusters/centroids": (c, d),
        "/clusters/counts": (c,),
        "/clusters/weights_mean": (c, k),
        "/clusters/weights_std": (c, k),
        "/clusters/top_channels": (c, t),
        "/clusters/top_weights": (c, t),
        "/clusters/distance_quantiles": (c, len(QUANTILES)),
        "/labels/histogram": (c, labels),
        "/exemplars/embeddings": (n, d),
        "/exemplars/top_channels": (n, t),
        "/exemplars/top_weights": (n, t),
        "/exemplars/cluster": (n,),
        "/exemplars/label": (n,),
        "/exemplars/partitions/centroids": (m, d),
        "/exemplars/partitions/partition": (n,),
        "/refinement/fusion/weights_mean": (c, fine),
    }
    for item, array in listed.items():
        dtype = _TYPES[item.rpartition("/")[2]]
        yield Check(item, array.shape == shapes[item], f"shape {shapes[item]}", array.shape)
        yield Check(item, array.dtype == dtype, dtype, array.dtype)
    yield Check("/clusters", c >= 1 and t >= 1, "at least one cluster and one channel", (c, t))
    if db.exemplars is not None:
        yield Check("/exemplars", n >= 1, "at least one image", n)
        yield Check("/exemplars/path", len(db.exemplars.path) == n, f"{n} names", len(db.exemplars.path))
    both = (db.label_names is None) == (db.label_histogram is None)
    yield Check("/labels", both, "names and histogram", "one of them")
    yield from network_forms(db.network, db.geometry)
    if db.refinement is not None:
        size, scale = db.refinement.input_size, db.refinement.distance_scale
        expected = f"positive numbers, {LARGEST_INPUT:,} pixels at most"
        yield Check("/refinement input_size", min(size) >= 1 and size[0] * size[1] <= LARGEST_INPUT, expected, size)
        yield Check("/refinement distance_scale", 0 < scale < np.inf, "a positive number", scale)
        if db.refinement.fusion is not None:
            yield from geometry_forms("/refinement/fusion", db.refinement.fusion.geometry)


def network_forms(network: NetworkRecord, geometry: Geometry) -> Iterator[Check]:
    """Check the settings of a network.

    Args:
        network: The network.
        geometry: Where its cells lie.

    Yields:
        What must hold.
    """
    yield Check("metric", network.metric in ("cosine", "euclidean"), "cosine or euclidean", repr(network.metric))
    types = ("float32", "float16", "bfloat16")
    yield Check("/network number_type", network.number_type in types, " or ".join(types), network.number_type)
    yield Check("/network map_size", min(network.map_size) >= 1, "positive numbers", network.map_size)
    yield from geometry_forms("/geometry", geometry)


def geometry_forms(item: str, geometry: Geometry) -> Iterator[Check]:
    """Check where cells lie.

    Args:
        item: Path of the group in the file.
        geometry: Of the cells.

    Yields:
        What must hold.
    """
    yield Check(f"{item} cell_stride", min(geometry.cell_stride) > 0, "positive numbers", geometry.cell_stride)
    finite = bool(np.isfinite([*geometry.cell_stride, *geometry.first_cell_center]).all())
    yield Check(item, finite, "finite numbers", geometry)


def contents(db: Record) -> Iterator[Check]:
    """Check the values: finite, in range, in order.

    Args:
        db: A database whose forms are valid.

    Yields:
        What must hold before images can be explained.
    """
    for item, array in arrays(db).items():
        yield Check(item, bool(np.isfinite(array).all()), "finite numbers", "NaN or infinity")
    yield Check("/clusters/counts", bool((db.counts >= 1).all()), "no empty cluster", db.counts.min())
    ranges: list[tuple[str, NDArray[Any], int, int]] = [
        ("/clusters/top_channels", db.top_channels, 0, db.network.channels)
    ]
    if (ex := db.exemplars) is not None:
        ranges += [
            ("/exemplars/top_channels", ex.top_channels, 0, db.network.channels),
            ("/exemplars/cluster", ex.cluster, 0, len(db.centroids)),
            ("/exemplars/label", ex.label, -1, max(len(db.label_names or ()), 1)),
        ]
        if ex.partitions is not None:
            m, probes = len(ex.partitions.centroids), ex.partitions.probes
            ranges.append(("/exemplars/partitions/partition", ex.partitions.partition, 0, m))
            yield Check("/exemplars/partitions probes", 1 <= probes <= m, f"1..{m}", probes)
    for item, indices, first, end in ranges:
        outside = indices[(indices < first) | (indices >= end)]
        yield Check(item, outside.size == 0, f"indices in {first}..{end - 1}", outside[:1])
    ordered = bool((np.diff(db.top_weights, axis=1) <= 0).all())
    yield Check("/clusters/top_weights", ordered, "strongest first", "another order")
    rising = bool((np.diff(db.distance_quantiles, axis=1) >= 0).all())
    yield Check("/clusters/distance_quantiles", rising, "rising numbers", "falling ones")


def agreement(db: Record) -> Iterator[Check]:
    """Check that redundant parts agree, which explaining does not need.

    Args:
        db: A database whose forms and contents are valid.

    Yields:
        What holds for every database that `build_database` made.
    """
    rows, top = np.sort(db.top_channels, axis=1), db.top_channels.astype(np.int64)
    repeated = bool((np.diff(rows, axis=1) == 0).any())
    yield Check("/clusters/top_channels", not repeated, "different channels", "a channel twice")
    same = bool((np.take_along_axis(db.weights_mean, top, axis=1) == db.top_weights).all())
    yield Check("/clusters/top_weights", same, "the weights_mean of the top_channels", "other weights")
    rest = db.weights_mean.copy()
    np.put_along_axis(rest, top, -np.inf, axis=1)
    strongest = bool((rest.max(axis=1) <= db.top_weights[:, -1]).all())
    yield Check("/clusters/top_channels", strongest, "the channels with the largest weights_mean", "others")
    yield Check("/clusters/weights_std", bool((db.weights_std >= 0).all()), "no negative number", "a negative one")
    if (ex := db.exemplars) is not None:
        counts = np.bincount(ex.cluster, minlength=len(db.counts))
        equal = np.array_equal(counts, db.counts)
        yield Check("/clusters/counts", equal, f"the exemplars of each cluster, {_few(counts)}", _few(db.counts))
        ordered = bool((np.diff(ex.top_weights, axis=1) <= 0).all())
        yield Check("/exemplars/top_weights", ordered, "strongest first", "another order")
    if db.label_histogram is not None:
        expected, actual = db.counts, db.label_histogram.sum(axis=1)
        if ex is not None:  # the label of an exemplar may be unknown
            expected = np.bincount(ex.cluster, weights=ex.label >= 0, minlength=len(db.counts)).astype(np.int64)
        sums = np.array_equal(expected, actual) and bool((db.label_histogram >= 0).all())
        yield Check("/labels/histogram", sums, f"the images of each cluster, {_few(expected)}", _few(actual))


def _length(array: NDArray[Any], axis: int) -> int:
    return int(array.shape[axis]) if array.ndim > axis else 0


def _few(values: NDArray[Any]) -> str:
    return f"{', '.join(map(str, values[:4].tolist()))}{', ...' if len(values) > 4 else ''}"
