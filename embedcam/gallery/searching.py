"""Search engines outside the index: one protocol, and the engines by SPEC."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..registry import Registry
from ..utils import libraries


class Hit(NamedTuple):
    """An image that a search found.

    Attributes:
        id: Of the image in the gallery; a number is its row in the index.
        score: Of the search, the higher the better; None if unknown.
        path: Of its file, from which it is explained if the gallery has no such image; empty if unknown.
    """

    id: str | int
    score: float | None = None
    path: str = ""

    def __str__(self) -> str:
        return str(self.id)


class Searcher(Protocol):
    """Finds the nearest images of a gallery."""

    def search(
        self, embeddings: NDArray[np.float32], top: int
    ) -> tuple[Sequence[Sequence[str | int]], Sequence[Sequence[float]]]:
        """Find the nearest images of each query.

        Args:
            embeddings: float32 (Q, D); of length 1 if the network compares by cosine.
            top: Number of images per query.

        Returns:
            Ids and scores (Q, top), the best first; arrays or sequences, fewer per query if fewer are found. Ids are
            those of the gallery, integers are rows of its index. Scores are cosines, or minus the Euclidean distances.
        """
        ...


@dataclass(frozen=True)
class Engine:
    """A search engine, registered in `SEARCHERS` under the prefix of its SPEC.

    Attributes:
        open: Takes the SPEC without prefix, and the network's metric; returns the searcher.
        argument: What follows the prefix, for messages and help, such as "FILE".
    """

    open: Callable[[str, str], Searcher]
    argument: str


SEARCHERS: Registry[Engine] = Registry(
    "search engine", "embedcam.searchers", DataError, home="embedcam.gallery.searchers"
)


def open_searcher(spec: str, metric: str) -> Searcher:
    """Open a search engine by its SPEC.

    Args:
        spec: The prefix of a registered engine, and its argument: `faiss:FILE`, `qdrant:URL/COLLECTION`,
            `lancedb:URI/TABLE`.
        metric: How the gallery's network compares embeddings: "cosine" or "euclidean".

    Returns:
        The searcher.

    Raises:
        DataError: If the SPEC is malformed, or the engine cannot be opened or compares in another way.
        MissingDependencyError: If the library of the engine is not installed.
    """
    name, _, argument = spec.partition(":")
    engine = SEARCHERS[name]
    if not argument:
        raise DataError(f"search engine {spec!r} is incomplete; write {SEARCHERS.usage(name)!r}")
    return engine.open(argument, metric)


def find(searcher: Searcher, embeddings: NDArray[np.float32], top: int) -> list[list[Hit]]:
    """Search, and check what is returned.

    Args:
        searcher: The engine.
        embeddings: float32 (Q, D).
        top: Number of hits per query.

    Returns:
        The hits of each query.

    Raises:
        DataError: If the searcher cannot search, or does not return what the protocol asks for.
    """
    ids, scores = searcher.search(embeddings, top)
    lengths = [list(map(len, each)) for each in (ids, scores)]
    if lengths[0] != lengths[1] or len(ids) != len(embeddings):
        raise DataError(
            f"the searcher returned {len(ids)} rows of ids and {len(scores)} of scores for {len(embeddings)} queries; "
            "return one of each per query, of the same length"
        )
    return [
        [Hit(_plain(name), float(score)) for name, score in zip(*each, strict=True)]
        for each in zip(ids, scores, strict=True)
    ]


def _plain(name: Any) -> str | int:
    if isinstance(name, np.generic):
        name = name.item()
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(f"the searcher returned the id {name!r}; ids are texts, or integers for rows of the index")
    return name


def parse(argument: str, engine: str, keys: Collection[str]) -> tuple[str, dict[str, str]]:
    """Split what follows the prefix of a SPEC.

    Args:
        argument: PLACE, or PLACE,KEY=VALUE and so on.
        engine: The prefix, for messages.
        keys: That the engine takes.

    Returns:
        The place, and the values by key.

    Raises:
        DataError: If a key is unknown or has no value.
    """
    place, *options = re.split(r",(?=\w+=)", argument)
    values = dict(option.split("=", 1) for option in options)
    for key, value in values.items():
        if key not in keys or not value:
            raise DataError(f"unknown option '{key}={value}' of {engine}; write {SEARCHERS.usage(engine)!r}")
    return place, values


def parse_place(argument: str, engine: str) -> tuple[str, str, dict[str, str]]:
    """Split what follows the prefix of an engine that has named parts, such as collections or tables.

    Args:
        argument: PLACE/NAME, followed by `id` and `vector` as for `parse`.
        engine: The prefix, for messages.

    Returns:
        The place, the name, and the values by key.

    Raises:
        DataError: If the place or the name is missing, or a key is unknown or has no value.
    """
    address, values = parse(argument, engine, ("id", "vector"))
    place, _, name = address.rpartition("/")
    if not place or not name:
        raise DataError(f"search engine '{engine}:{argument}' is incomplete; write {SEARCHERS.usage(engine)!r}")
    return place, name, values


def library(name: str, extra: str) -> Any:
    """Import the library of an engine, see `utils.libraries.require`.

    Args:
        name: Its module.
        extra: Name of the extra that installs it.

    Returns:
        The module.
    """
    return libraries.require(name, extra, "this search engine")


def asking(engine: str, remedy: str) -> AbstractContextManager[None]:
    """Turn whatever the library of an engine raises into one line.

    Args:
        engine: What is asked, for messages.
        remedy: What the user can do.

    Returns:
        The context.
    """
    return libraries.in_one_line(DataError, f"{engine} cannot be searched", remedy)


def choose(named: dict[str, int], wanted: str | None, dim: int, place: str, kind: str) -> str:
    """Choose the vectors that embeddings are compared with.

    Args:
        named: Dimensions of each kind of vectors.
        wanted: Its name; None if only one has the dimensions.
        dim: Dimensions of the embeddings.
        place: Where they are, for messages.
        kind: What they are called there.

    Returns:
        The name.

    Raises:
        DataError: If there is none or more than one, or it has other dimensions.
    """
    known = ", ".join(f"{name or 'unnamed'} of {size} dimensions" for name, size in named.items()) or "none"
    if wanted is not None and wanted not in named:
        raise DataError(f"{place} has no {kind} {wanted!r}; it has {known}")
    fitting = [name for name, size in named.items() if size == dim and wanted in (None, name)]
    if not fitting:
        raise DataError(
            f"the network's embeddings have {dim} dimensions, {place} has {known}; search where its embeddings are"
        )
    if len(fitting) > 1:
        raise DataError(f"{place} has more than one {kind} of {dim} dimensions; name one of {', '.join(fitting)}")
    return fitting[0]


def similarities(values: Sequence[float] | NDArray[Any], measure: str, metric: str) -> NDArray[np.float64]:
    """Convert the scores of an engine to those of the protocol.

    Args:
        values: Inner products or Euclidean distances.
        measure: "inner product" or "euclidean".
        metric: "cosine" or "euclidean", of the network.

    Returns:
        Cosines, or minus the distances.
    """
    found = np.asarray(values, np.float64)
    if measure == "inner product":
        return found
    return -found if metric == "euclidean" else 1 - np.square(found) / 2  # of embeddings of length 1


def require_measure(measure: str, metric: str, place: str) -> None:
    """Check that an engine orders images as the network does.

    Args:
        measure: "inner product", "euclidean", or another one.
        metric: "cosine" or "euclidean", of the network.
        place: What is searched, for messages.

    Raises:
        DataError: If the orders differ.
    """
    if measure != "euclidean" and (measure, metric) != ("inner product", "cosine"):
        raise DataError(
            f"{place} compares by {measure}, the network by {metric}; make one that compares as the network"
        )
