"""A data set cut into shards, whose results are parts of a run."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from .distributed import Group
from .resume import Parts

# Images per shard: seconds to minutes of work, and a few megabytes of embeddings and pooled features.
SHARD = 1024


class Shards:
    """The results of one step of a run, for each shard of a data set.

    Shards begin at fixed images, and no batch crosses a boundary. So a run gives the same numbers whichever process
    computes a shard, and whether or not it was resumed.

    Args:
        parts: The parts of the run, which store the results.
        step: Name of the step.
        images: Number of images in the data set.
        group: The processes that share the work; each has every `group.size`-th shard.
    """

    def __init__(self, parts: Parts, step: str, images: int, group: Group | None = None) -> None:
        self._parts, self._step, self._images, self._group = parts, step, images, group or Group()

    def __len__(self) -> int:
        return -(-self._images // SHARD)

    def images(self, number: int) -> range:
        """Tell which images belong to a shard.

        Args:
            number: Index of the shard.

        Returns:
            Their indices in the data set.
        """
        return range(number * SHARD, min((number + 1) * SHARD, self._images))

    def unfinished(self) -> list[int]:
        """List the shards that this process has to do.

        Returns:
            Their indices.
        """
        mine = range(self._group.rank, len(self), self._group.size)
        return [number for number in mine if self._name(number) not in self._parts]

    def write(self, number: int, **arrays: NDArray[Any]) -> None:
        """Store the result for a shard.

        Args:
            number: Index of the shard.
            arrays: The result.

        Raises:
            OutputError: If it cannot be written.
        """
        self._parts.write(self._name(number), **arrays)

    def read(self, number: int, *keys: str) -> dict[str, NDArray[Any]]:
        """Return the result for a shard.

        Args:
            number: Index of the shard.
            keys: Which arrays to read; all if none is given.

        Returns:
            The arrays by key.

        Raises:
            OutputError: If the file is damaged.
        """
        return self._parts.read(self._name(number), *keys)

    def _name(self, number: int) -> str:
        return f"{self._step}-{number:07d}"
