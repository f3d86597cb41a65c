"""Time the lookup of the nearest exemplar: exact, and with an inverted file.

    python benchmarks/lookup.py [--sizes 1000 ... 1000000] [--data classes "new classes" uniform] [--json FILE]

Exemplars and queries are synthetic, of length 1. With `classes`, they are distributed like those of a trained network;
with `new classes`, the queries are of classes without exemplars, as in retrieval; `uniform` is the worst case without
structure. Small sets have no inverted file. Recall is the fraction of queries with the same result as exact search;
bytes are those of the index.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from measure import Median, about, interleaved, report
from numpy.typing import NDArray

from embedcam.database.neighbors import Neighbors, partition

KINDS = ("classes", "new classes", "uniform")
# Measured on exemplars of butterflies (MobileNetV2, 10 classes, 128 dimensions): the distance within classes is 0.35
# times that between classes, and their differences have a participation ratio of 27 dimensions.
SPREAD, DIRECTIONS = 0.35, 27
COLUMNS = {
    "data": "",
    "exemplars": ",",
    "batch": "",
    "method": "",
    "ms/query": ".3f",
    "recall": ".3f",
    "bytes": ",",
    "s to partition": ".1f",
    "s to load": ".2f",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000], help="exemplars")
    parser.add_argument("--data", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="queries per call")
    parser.add_argument("--queries", type=int, default=1000, help="queries for the recall")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="JSON file for the table")
    args = parser.parse_args()
    rows = []
    for size in args.sizes:
        for kind in args.data:
            points, queries = synthesise(kind, size, args.queries, args.classes, args.dim)
            rows += [{"data": kind, **row} for row in measure(points, queries, args.batches, args.rounds)]
    report(COLUMNS, rows, about("faiss-cpu", "numpy") | {"classes": args.classes, "dim": args.dim}, args.json)


def synthesise(
    kind: str, exemplars: int, queries: int, classes: int, dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Exemplars and queries of length 1."""
    random = np.random.default_rng(0)
    points = random.standard_normal((exemplars + queries, dim), dtype=np.float32)
    if kind != "uniform":
        # Variances exp(-2 i / n) have a participation ratio of n. A spread s around centers of length 1 becomes
        # s / sqrt(1 + s^2) of the distance between centers after normalisation.
        variances = np.exp(-2 * np.arange(dim, dtype=np.float32) / DIRECTIONS)
        points *= np.sqrt(variances / variances.sum()) * SPREAD / (1 - SPREAD**2) ** 0.5
        centers = _unit(random.standard_normal((2 * classes, dim), dtype=np.float32))
        labels = random.integers(0, classes, exemplars + queries)
        if kind == "new classes":
            labels[exemplars:] += classes
        points += centers[labels]
    points = _unit(points)
    return points[:exemplars], points[exemplars:]


def measure(
    points: NDArray[np.float32], queries: NDArray[np.float32], batches: list[int], rounds: int
) -> list[dict[str, Any]]:
    start = time.perf_counter()
    partitions = partition(points, "cosine")
    partition_seconds = time.perf_counter() - start
    methods = {"exact": None} if partitions is None else {"exact": None, "inverted file": partitions}
    calls: dict[str, Callable[[int], object]] = {}
    columns: dict[str, dict[str, Any]] = {}
    nearest: dict[str, NDArray[np.int64]] = {}
    for method, inverted_file in methods.items():
        start = time.perf_counter()
        neighbors = Neighbors(points, "cosine", inverted_file)
        load_seconds = time.perf_counter() - start
        nearest[method], _ = neighbors.nearest(queries)
        columns[method] = {
            "s to load": load_seconds,
            "s to partition": partition_seconds if inverted_file or partitions is None else None,
            "bytes": faiss.serialize_index(neighbors._index).nbytes,
            "recall": float((nearest[method] == nearest["exact"]).mean()),
        }
        calls[method] = partial(_look_up, neighbors, cycle(queries))
    rows = []
    for batch in batches:
        seconds = interleaved({name: partial(call, batch) for name, call in calls.items()}, rounds)
        for method, times in seconds.items():
            ms = Median.of(1000 * each / batch for each in times)
            rows.append({"exemplars": len(points), "batch": batch, "method": method, "ms/query": ms, **columns[method]})
    return rows


def _look_up(neighbors: Neighbors, queries: Iterator[NDArray[np.float32]], batch: int) -> None:
    """Look up the next queries: repeated ones would be in the caches."""
    neighbors.nearest(np.stack([next(queries) for _ in range(batch)]))


def _unit(points: NDArray[np.float32]) -> NDArray[np.float32]:
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


if __name__ == "__main__":
    main()
