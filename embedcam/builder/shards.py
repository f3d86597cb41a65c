"""A build's work on disk, a shard of images at a time: it can be resumed, shared out, and needs little memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.samples import Samples
from ..errors import DatabaseError, OutputError
from ..utils.distributed import Group
from ..utils.files import atomic_path, write_text

# Images a shard: some seconds to minutes of work, and a few megabytes of embeddings and pooled features.
SHARD = 1024
# Rows of a file up to this size in bytes are kept in memory.
_SMALL = 2**26
_ABOUT = "run.json"


class Shards:
    """A folder with the results of every step of a build, each written whole or not at all.

    The shards cut the data set at fixed places, and no batch reaches over a cut. So a run gives the same numbers
    whichever process works out a shard, and whether it was resumed.

    Args:
        folder: Where to; several processes must all see it.
        images: How many there are in the data set.
        about: All that the results depend on, fit for JSON.
        group: The processes that share the work.
        resume: Go on with what is there, rather than begin anew.

    Attributes:
        folder: As given.

    Raises:
        DatabaseError: If what is there is of another run, or processes do not see the same folder.
        OutputError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, images: int, about: dict[str, Any], group: Group, *, resume: bool) -> None:
        self.folder, self._images, self._group = folder, images, group
        about = {**about, "images": images, "shard": SHARD}
        if group.main:
            self._prepare(about, resume)
        group.wait()
        if self._found() != about:
            raise DatabaseError(
                f"process {group.rank} does not find in {folder} what process 0 wrote there; put --out on a file "
                "system that all processes share"
            )

    def _prepare(self, about: dict[str, Any], resume: bool) -> None:
        before = self._found() if resume else None
        if before is not None:
            differs = [
                f"{key} {before.get(key)!r} then, {value!r} now"
                for key, value in about.items()
                if before.get(key) != value
            ]
            if differs:
                raise DatabaseError(
                    f"{self.folder} holds the work of another run ({'; '.join(differs)}); start again without --resume"
                )
            return
        try:
            if self.folder.exists():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise OutputError(f"cannot empty {self.folder}: {error.strerror or error}; remove it by hand") from error
        write_text(self.folder / _ABOUT, json.dumps(about))

    def _found(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / _ABOUT).read_text())
        except (OSError, ValueError):  # nothing was begun
            return None
        return found if isinstance(found, dict) else None

    def __len__(self) -> int:
        return -(-self._images // SHARD)

    def rows(self, number: int) -> range:
        """Tell which images a shard is of.

        Args:
            number: The shard's.

        Returns:
            Their indices in the data set.
        """
        return range(number * SHARD, min((number + 1) * SHARD, self._images))

    def unfinished(self, step: str) -> Iterator[int]:
        """Go through the shards that are this process's to do in a step, and not done yet.

        Args:
            step: The step's name.

        Yields:
            Their numbers.
        """
        for number in range(self._group.rank, len(self), self._group.size):
            if not self._path(step, number).exists():
                yield number

    def done(self, step: str, number: int | None = None) -> bool:
        """Tell whether a step is done.

        Args:
            step: The step's name.
            number: The shard's; None for a step that is done as a whole.

        Returns:
            Whether its result is there.
        """
        return self._path(step, number).exists()

    def write(self, step: str, number: int | None = None, **arrays: NDArray[Any]) -> None:
        """Keep the result of a step.

        Args:
            step: The step's name.
            number: The shard's; None for a step that is done as a whole.
            arrays: The result.

        Raises:
            OutputError: If it cannot be written.
        """
        with atomic_path(self._path(step, number)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def read(self, step: str, number: int | None = None, *names: str) -> dict[str, NDArray[Any]]:
        """Give back the result of a step.

        Args:
            step: The step's name.
            number: The shard's; None for a step that is done as a whole.
            names: Which arrays; all if none is named.

        Returns:
            The arrays by name.

        Raises:
            DatabaseError: If the file is damaged.
        """
        path = self._path(step, number)
        try:
            with np.load(path, allow_pickle=False) as kept:
                return {name: kept[name] for name in names or kept.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DatabaseError(f"{path} cannot be read: {error}; remove it and go on with --resume") from error

    @staticmethod
    def remove_if_empty(folder: Path) -> None:
        """Remove a folder in which no step has left a result to go on with.

        Args:
            folder: The folder.
        """
        if not any(folder.rglob("*.npz")):
            Shards.remove(folder)

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove a folder of shards, once all work is in the database.

        Args:
            folder: The folder.
        """
        shutil.rmtree(folder, ignore_errors=True)

    def _path(self, step: str, number: int | None = None) -> Path:
        return self.folder / (f"{step}.npz" if number is None else f"{step}-{number:07d}.npz")


def fingerprint(samples: Samples) -> str:
    """Tell data sets apart by the names and labels of their images.

    Args:
        samples: The data set.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256(np.asarray(-1 if samples.labels is None else samples.labels, dtype=np.int64).tobytes())
    for name in samples.ids:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()


class Rows:
    """Rows of numbers in a file, read as they are needed; those of a small file are kept in memory.

    Args:
        path: Raw float32.
        width: Numbers a row.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._width = width
        self._file = path.open("rb", buffering=0)
        small = path.stat().st_size <= _SMALL
        self._kept = np.fromfile(path, dtype=np.float32).reshape(-1, width) if small else None

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read some rows.

        Args:
            indices: Of any shape.

        Returns:
            float32 (*indices.shape, width).
        """
        if self._kept is not None:
            return self._kept[indices]
        wanted, places = np.unique(indices, return_inverse=True)
        rows = np.empty((len(wanted), self._width), dtype=np.float32)
        for row, index in zip(rows, wanted.tolist(), strict=True):
            self._file.seek(index * row.nbytes)
            self._file.readinto(row.data)
        return rows[places.reshape(indices.shape)]
