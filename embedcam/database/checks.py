"""What must be true of a weight database: its forms, its contents, and that its parts agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..utils.limits import LARGEST_INPUT
from .record import QUANTILES, WeightDatabase

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
    "cell": "int32",
}


class Check(NamedTuple):
    """One thing that must be true.

    Attributes:
        item: What it is about, as a path in the file.
        true: Whether it is.
        expected: What was expected.
        found: What there is instead.
    """

    item: str
    true: bool
    expected: object
    found: object


def arrays(db: WeightDatabase) -> dict[str, NDArray[Any]]:
    """List the arrays of a database by their paths in its file.

    Args:
        db: The database.

    Returns:
        Path -> array.
    """
    keys = [key for key in _TYPES if hasattr(db, key)]
    found = {f"/clusters/{key}": getattr(db, key) for key in keys}
    if db.label_histogram is not None:
        found["/labels/histogram"] = db.label_histogram
    if db.exemplars is not None:
        keys = [key for key in _TYPES if hasattr(db.exemplars, key)]
        found |= {f"/exemplars/{key}": getattr(db.exemplars, key) for key in keys}
        if (cells := db.exemplars.cells) is not None:
            found |= {"/exemplars/cells/centroids": cells.centroids, "/exemplars/cells/cell": cells.cell}
    if db.refinement is not None and db.refinement.fusion is not None:
        found["/refinement/fusion/weights_mean"] = db.refinement.fusion.weights_mean
    return found


def forms(db: WeightDatabase) -> Iterator[Check]:
    """Check shapes, types and settings.

    Args:
        db: The database.

    Yields:
        What must be true before the numbers can be looked at.
    """
    known = arrays(db)
    c, t = _side(db.centroids, 0), _side(db.top_channels, 1)
    k, d, labels = db.network.channels, db.network.dim, len(db.label_names or ())
    n = _side(known["/exemplars/embeddings"], 0) if db.exemplars is not None else 0
    m = _side(known.get("/exemplars/cells/centroids", np.empty(0)), 0)
    fine = _side(known.get("/refinement/fusion/weights_mean", np.empty(0)), 1)
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
        "/exemplars/cells/centroids": (m, d),
        "/exemplars/cells/cell": (n,),
        "/refinement/fusion/weights_mean": (c, fine),
    }
    for item, array in known.items():
        dtype = _TYPES[item.rpartition("/")[2]]
        yield Check(item, array.shape == shapes[item], f"shape {shapes[item]}", array.shape)
        yield Check(item, array.dtype == dtype, dtype, array.dtype)
    yield Check("/clusters", c >= 1 and t >= 1, "at least one cluster and one channel", (c, t))
    if db.exemplars is not None:
        yield Check("/exemplars", n >= 1, "at least one image", n)
        yield Check("/exemplars/path", len(db.exemplars.path) == n, f"{n} names", len(db.exemplars.path))
    both = (db.label_names is None) == (db.label_histogram is None)
    yield Check("/labels", both, "names and histogram", "one of them")
    yield Check("metric", db.network.metric in ("cosine", "euclidean"), "cosine or euclidean", repr(db.network.metric))
    geometries = {"/geometry": db.geometry}
    if db.refinement is not None:
        size, scale = db.refinement.input_size, db.refinement.distance_scale
        wanted = f"positive numbers, of {LARGEST_INPUT:,} pixels at most"
        yield Check("/refinement input_size", min(size) >= 1 and size[0] * size[1] <= LARGEST_INPUT, wanted, size)
        yield Check("/refinement distance_scale", 0 < scale < np.inf, "a positive number", scale)
        if db.refinement.fusion is not None:
            geometries["/refinement/fusion"] = db.refinement.fusion.geometry
    for item, geometry in geometries.items():
        yield Check(f"{item} cell_stride", min(geometry.cell_stride) > 0, "positive numbers", geometry.cell_stride)
        finite = bool(np.isfinite([*geometry.cell_stride, *geometry.first_cell_center]).all())
        yield Check(item, finite, "finite numbers", geometry)


def contents(db: WeightDatabase) -> Iterator[Check]:
    """Check the numbers: finite, within their ranges, in order.

    Args:
        db: The database, of sound forms.

    Yields:
        What must be true for images to be explained.
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
        if ex.cells is not None:
            m = len(ex.cells.centroids)
            ranges.append(("/exemplars/cells/cell", ex.cells.cell, 0, m))
            yield Check("/exemplars/cells probes", 1 <= ex.cells.probes <= m, f"1..{m}", ex.cells.probes)
    for item, indices, first, end in ranges:
        outside = indices[(indices < first) | (indices >= end)]
        yield Check(item, outside.size == 0, f"indices in {first}..{end - 1}", outside[:1])
    order = bool((np.diff(db.top_weights, axis=1) <= 0).all())
    yield Check("/clusters/top_weights", order, "strongest first", "another order")
    rising = bool((np.diff(db.distance_quantiles, axis=1) >= 0).all())
    yield Check("/clusters/distance_quantiles", rising, "rising numbers", "falling ones")


def agreement(db: WeightDatabase) -> Iterator[Check]:
    """Check that parts which say the same thing twice agree. `build_database` makes them so; explaining needs it not.

    Args:
        db: The database, of sound forms and contents.

    Yields:
        What is true of any database that was built and not edited.
    """
    rows, top = np.sort(db.top_channels, axis=1), db.top_channels.astype(np.int64)
    repeated = bool((np.diff(rows, axis=1) == 0).any())
    yield Check("/clusters/top_channels", not repeated, "different channels", "a channel twice")
    same = bool((np.take_along_axis(db.weights_mean, top, axis=1) == db.top_weights).all())
    yield Check("/clusters/top_weights", same, "the weights_mean of the top_channels", "other weights")
    rest = db.weights_mean.copy()
    np.put_along_axis(rest, top, -np.inf, axis=1)
    strongest = bool((rest.max(axis=1) <= db.top_weights[:, -1]).all())
    yield Check("/clusters/top_channels", strongest, "the channels of largest weights_mean", "others")
    yield Check("/clusters/weights_std", bool((db.weights_std >= 0).all()), "no negative number", "a negative one")
    if (ex := db.exemplars) is not None:
        counts = np.bincount(ex.cluster, minlength=len(db.counts))
        equal = np.array_equal(counts, db.counts)
        yield Check("/clusters/counts", equal, f"the exemplars of each cluster, {_few(counts)}", _few(db.counts))
        order = bool((np.diff(ex.top_weights, axis=1) <= 0).all())
        yield Check("/exemplars/top_weights", order, "strongest first", "another order")
    if db.label_histogram is not None:
        wanted, found = db.counts, db.label_histogram.sum(axis=1)
        if ex is not None:  # some of which may be of unknown label
            wanted = np.bincount(ex.cluster, weights=ex.label >= 0, minlength=len(db.counts)).astype(np.int64)
        sums = np.array_equal(wanted, found) and bool((db.label_histogram >= 0).all())
        yield Check("/labels/histogram", sums, f"the images of each cluster, {_few(wanted)}", _few(found))


def _side(array: NDArray[Any], axis: int) -> int:
    """The length of an axis; 0 where there is none."""
    return int(array.shape[axis]) if array.ndim > axis else 0


def _few(values: NDArray[Any]) -> str:
    return f"{', '.join(map(str, values[:4].tolist()))}{', ...' if len(values) > 4 else ''}"
