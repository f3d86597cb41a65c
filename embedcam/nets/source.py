"""Where a network came from, as a weight database records it. Needs no torch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import astuple, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import NetworkError


@dataclass(frozen=True)
class NetworkSource:
    """What `load_network` was asked for.

    Attributes:
        spec: The SPEC.
        weights: The weights file, "DEFAULT", or "".
        output: Which part of the module's output is the embedding, or "".
        library: Name and version of the library that made it, such as "timm 1.0.31", or "".
        file_sha256: Hash of the one file that it was loaded from, 64 hexadecimal digits; "" if there is none.
    """

    spec: str
    weights: str = ""
    output: str = ""
    library: str = ""
    file_sha256: str = ""

    def __str__(self) -> str:
        parts = [self.spec, self.weights, f"output {self.output}" if self.output else "", self.library]
        return ", ".join(filter(None, [*parts, f"file {self.file_sha256[:12]}" if self.file_sha256 else ""]))

    @property
    def file(self) -> str:
        """The file that was loaded, or ""."""
        if self.weights not in ("", "DEFAULT"):
            return self.weights
        return self.spec if self.spec.endswith(".safetensors") else ""

    def sealed(self) -> NetworkSource:
        """Return the source with the hash of its file.

        Returns:
            The source.
        """
        try:
            return replace(self, file_sha256=_sha256(Path(self.file))) if self.file else self
        except OSError:  # it is gone meanwhile
            return self

    def relative_to(self, folder: Path) -> NetworkSource:
        """Return the source with its file as seen from a folder, in which the database is written.

        Args:
            folder: The folder.

        Returns:
            The source.
        """
        return self._at(os.path.relpath(self.file, folder)) if self.file else self

    def seen_from(self, folder: Path) -> NetworkSource:
        """Undo `relative_to`.

        Args:
            folder: In which the database lies now.

        Returns:
            The source.
        """
        return self._at(os.path.normpath(folder / self.file)) if self.file else self

    def _at(self, file: str) -> NetworkSource:
        return replace(self, weights=file) if self.weights else replace(self, spec=file)

    @property
    def recordable(self) -> bool:
        """Whether files can hold its texts."""
        return all(text.isprintable() and len(text) <= 1024 for text in astuple(self))

    def found(self, folder: Path) -> NetworkSource:
        """Find the file again: where it was, or in a folder.

        Args:
            folder: Where the database lies.

        Returns:
            The source with the file's path now.

        Raises:
            NetworkError: If there is no such file, or it has changed.
        """
        if not self.file:
            return self
        places = [Path(self.file), folder / Path(self.file).name]
        there = [path for path in places if path.is_file()]
        if not there:
            raise NetworkError(f"the recorded network {self.file} is gone; say where it is with --net")
        for path in there:
            if _sha256(path) == self.file_sha256:
                return self._at(str(path))
        raise NetworkError(
            f"the recorded network {there[0]} has changed; restore it, or build or index again with this one"
        )


def library(name: str) -> str:
    """Return a library with its version.

    Args:
        name: Of its distribution, or "".

    Returns:
        Such as "timm 1.0.31"; "" if it is not installed.
    """
    try:
        return f"{name} {version(name)}" if name else ""
    except PackageNotFoundError:
        return ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
