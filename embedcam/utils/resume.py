"""Finished parts of a run: in a folder, so that an interrupted run can be resumed, or in memory."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from .distributed import Group
from .files import atomic_path, destination, is_stream, temporary_folder, write_text
from .locks import locked
from .names import bounded_name

# Files of rows up to this size in bytes are read into memory.
_SMALL = 2**26
_RUN = "run.json"


class Rows(Protocol):
    """A matrix that may lie in a file."""

    def __getitem__(self, indices: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Read some rows: indices of any shape -> float32 (*indices.shape, width)."""
        ...


class Parts:
    """Finished parts of a run, kept in memory: arrays by name."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, NDArray[Any]]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def write(self, name: str, **arrays: NDArray[Any]) -> None:
        """Store a part, or replace it.

        Args:
            name: Name of the part.
            arrays: Its content.

        Raises:
            OutputError: If it cannot be written.
        """
        self._parts[name] = arrays

    def read(self, name: str, *keys: str) -> dict[str, NDArray[Any]]:
        """Return the content of a part.

        Args:
            name: Name of the part.
            keys: Which arrays to read; all if none is given.

        Returns:
            The arrays by key.

        Raises:
            OutputError: If the file is damaged.
        """
        arrays = self._parts[name]
        return {key: arrays[key] for key in keys or arrays}

    def rows(self, name: str, arrays: Iterable[NDArray[np.float32]], width: int) -> Rows:
        """Store matrices one below the other, unless they are stored already.

        Args:
            name: Name of the result.
            arrays: float32 (n, width) each; not read if the result is stored already.
            width: Number of columns.

        Returns:
            Random access to the rows.

        Raises:
            OutputError: If they cannot be written.
        """
        if name not in self._parts:
            self._parts[name] = {"rows": np.concatenate(list(arrays))}
        return self._parts[name]["rows"]


class SavedParts(Parts):
    """Finished parts of a run, kept in a folder, where an interrupted run is resumed; each is written atomically.

    Args:
        folder: Where to keep them; several processes must all see it.
        run: Everything that the parts depend on, as values that JSON can represent.
        resume: Keep the parts of an interrupted run that are there, instead of removing them.
        group: The processes of the run.

    Attributes:
        folder: As given.

    Raises:
        OutputError: If the folder holds parts of another run, cannot be written, or is not seen by all processes.
    """

    def __init__(
        self, folder: str | Path, run: Mapping[str, Any], *, resume: bool = False, group: Group | None = None
    ) -> None:
        self.folder, group = Path(folder), group or Group()
        described: dict[str, Any] = json.loads(json.dumps(run))  # as the file gives it back
        if group.main:
            self._begin(described, resume)
        group.wait()
        if self._run() != described:
            raise OutputError(
                f"process {group.rank} does not find in {self.folder} what process 0 wrote there; put --out on a file "
                "system that all processes share"
            )

    def _begin(self, run: dict[str, Any], resume: bool) -> None:
        before = self._run() if resume else None
        if before is None:
            try:
                if self.folder.exists():
                    shutil.rmtree(self.folder)
            except OSError as error:
                raise OutputError(f"cannot empty {self.folder}: {error.strerror or error}; remove it") from error
            write_text(self.folder / _RUN, json.dumps(run))
            return
        differences = [
            f"{key} {before.get(key)!r} then, {run[key]!r} now" for key in run if before.get(key) != run[key]
        ]
        if differences:
            raise OutputError(
                f"{self.folder} holds the work of another run ({'; '.join(differences)}); use the same options, or "
                "start again without --resume"
            )

    def _run(self) -> dict[str, Any] | None:
        """Read the description of the run whose parts are there; None if there is none."""
        try:
            run = json.loads((self.folder / _RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return run if isinstance(run, dict) else None

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def write(self, name: str, **arrays: NDArray[Any]) -> None:  # noqa: D102
        with atomic_path(self._path(name)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def read(self, name: str, *keys: str) -> dict[str, NDArray[Any]]:  # noqa: D102
        path = self._path(name)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in keys or arrays.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise OutputError(f"{path} cannot be read: {error}; remove it and resume with --resume") from error

    def rows(self, name: str, arrays: Iterable[NDArray[np.float32]], width: int) -> Rows:  # noqa: D102
        path = self.folder / f"{name}.f32"
        if not path.exists():
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                for array in arrays:
                    array.tofile(file)
        if path.stat().st_size <= _SMALL:
            return np.fromfile(path, np.float32).reshape(-1, width)
        return _FileRows(path, width)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


class _FileRows:
    """Rows of a file of raw float32, read one by one."""

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._width = path, width

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        different, inverse = np.unique(indices, return_inverse=True)
        rows = np.empty((len(different), self._width), dtype=np.float32)
        # Opened for every read: Windows removes no folder with an open file.
        with self._path.open("rb", buffering=0) as file:
            for row, index in zip(rows, different.tolist(), strict=True):
                file.seek(index * row.nbytes)
                file.readinto(row.data)
        return rows[inverse.reshape(indices.shape)]


@contextlib.contextmanager
def work_folder(out: Path, group: Group | None = None) -> Iterator[Path]:
    """Lock an output file, and name a folder beside it for the finished parts of the run that writes it.

    The folder is removed at the end of the run, and after an interruption if it holds no finished part.

    Args:
        out: The output file.
        group: The processes of the run; the first one locks the file and removes the folder.

    Yields:
        `<out>.parts`, which `SavedParts` makes; for a device or pipe, a temporary folder.

    Raises:
        OutputError: If another process is writing `out`, or nothing can be written beside it.
    """
    target = destination(out)
    if is_stream(target):
        with temporary_folder() as folder:
            yield folder / "parts"
        return
    folder = target.with_name(bounded_name(target.name, ".parts"))
    if group is not None and not group.main:
        yield folder
        return
    with locked(out):
        try:
            yield folder
        except BaseException:
            if not any(folder.glob("[!.]*.npz")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
