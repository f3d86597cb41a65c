"""Time the lookup of the nearest among very many exemplars: exact, and by partitions.

    python benchmarks/lookup.py [--sizes 1000 ... 1000000] [--data classes "new classes" uniform] [--json FILE]

The exemplars are made, of length 1. `classes` are spread as a trained network spreads them, and others of the same
classes are looked up; with `new classes`, others of classes that no exemplar shows, as in retrieval. `uniform` has no
structure at all, the worst there is. Where `partition` makes none, exact search is all there is to time. Recall
is the share of embeddings for which exact search finds the same; bytes are the index's, beside the exemplars' own.
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
# Measured on butterflies' exemplars (MobileNetV2, 10 classes, 128 dimensions): two of a class lie 0.35 times as far
# apart as two of different classes, and what parts them is spread over 27 directions (participation ratio).
SPREAD, DIRECTIONS = 0.35, 27
COLUMNS = {
    "data": "",
    "exemplars": ",",
    "batch": "",
    "method": "",
    "ms a query": ".3f",
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
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="embeddings at once")
    parser.add_argument("--queries", type=int, default=1000, help="embeddings that the recall is of")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also write the table there")
    given = parser.parse_args()
    rows = []
    for size in given.sizes:
        for kind in given.data:
            points, queries = made(kind, size, given.queries, given.classes, given.dim)
            rows += [{"data": kind, **row} for row in measure(points, queries, given.batches, given.rounds)]
    report(COLUMNS, rows, about("faiss-cpu", "numpy") | {"classes": given.classes, "dim": given.dim}, given.json)


def made(
    kind: str, exemplars: int, queries: int, classes: int, dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make exemplars and embeddings to look up, of length 1."""
    random = np.random.default_rng(0)
    points = random.standard_normal((exemplars + queries, dim), dtype=np.float32)
    if kind != "uniform":
        # Variances exp(-2 i / n) have a participation ratio of n; a spread s around centers of length 1 becomes
        # s / sqrt(1 + s^2) of the distance between them once all have length 1.
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
    """Time exact search and, with an inverted file if there is one."""
    start = time.perf_counter()
    partitions = partition(points, "cosine")
    making = time.perf_counter() - start
    methods = {"exact": None} if partitions is None else {"exact": None, "inverted file": partitions}
    works: dict[str, Callable[[int], object]] = {}
    known: dict[str, dict[str, Any]] = {}
    found: dict[str, NDArray[np.int64]] = {}
    for method, given in methods.items():
        start = time.perf_counter()
        neighbors = Neighbors(points, "cosine", given)
        loading = time.perf_counter() - start
        found[method], _ = neighbors.nearest(queries)
        known[method] = {
            "s to load": loading,
            "s to partition": making if given or partitions is None else None,
            "bytes": faiss.serialize_index(neighbors._index).nbytes,
            "recall": float((found[method] == found["exact"]).mean()),
        }
        works[method] = partial(_look_up, neighbors, cycle(queries))
    rows = []
    for batch in batches:
        seconds = interleaved({name: partial(work, batch) for name, work in works.items()}, rounds)
        for method, taken in seconds.items():
            spent = Median.of(1000 * s / batch for s in taken)
            rows.append(
                {"exemplars": len(points), "batch": batch, "method": method, "ms a query": spent, **known[method]}
            )
    return rows


def _look_up(neighbors: Neighbors, queries: Iterator[NDArray[np.float32]], batch: int) -> None:
    """Look up embeddings that were not looked up just before, which would still be at hand in the caches."""
    neighbors.nearest(np.stack([next(queries) for _ in range(batch)]))


def _unit(points: NDArray[np.float32]) -> NDArray[np.float32]:
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


if __name__ == "__main__":
    main()
