"""Read a gallery index."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..database.checks import Check, geometry_forms, network_forms, require
from ..database.chunks import Chunks, FileContent
from ..database.hdf5 import Hdf5
from ..database.items import about, read_attrs, read_geometry, read_network, read_version
from ..errors import DatabaseError
from . import format as layout
from .format import DescriptorSpace, GalleryRecord


class IndexFile:
    """A gallery index, opened to be read; nothing of it is trusted.

    Args:
        path: The file.

    Attributes:
        record: What the images have in common.
        label_names: Names of the classes.

    Raises:
        DatabaseError: If there is no such file, or it is no index, a newer or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DatabaseError(f"no gallery index {path}; make one with `embedcam index`")
        self.path, self._content = path, FileContent(path)
        try:
            with self._about(""):
                self._file = Hdf5(self._content)
                read_version(self._file, layout.ENCODING, layout.VERSION)
            own = (layout.DESCRIPTORS, *layout.SPACE) if "descriptors" in self._file else ()
            names = [
                *layout.ARRAYS,
                *own,
                *(f"{text}/{part}" for text in (*layout.TEXTS, layout.NAMES) for part in layout.PARTS),
            ]
            self._datasets = {name: self._dataset(name) for name in names}
            with self._about(""):
                self.record = self._record()
                require(self._forms())
            self.label_names = self.texts(layout.NAMES, slice(0, self._datasets[f"{layout.NAMES}/ends"].shape[0]))
        except DatabaseError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._content.close()

    def __enter__(self) -> IndexFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._datasets["scales"].shape[0]

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of what `read` reads."""
        return layout.ARRAYS if self.record.space is None else (*layout.ARRAYS, layout.DESCRIPTORS)

    def read(self, name: str, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Read what is stored of some images.

        Args:
            name: One of `arrays`.
            rows: Which images: consecutive ones, or (n,) indices.

        Returns:
            Their rows.

        Raises:
            DatabaseError: If they are damaged.
        """
        with self._about(name):
            values = self._rows(name, rows)
            if name == "labels" and not ((values >= -1) & (values < len(self.label_names))).all():
                raise DatabaseError(f"expected indices in -1..{len(self.label_names) - 1}")
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise DatabaseError("expected finite numbers, found NaN or infinity")
        return values

    def _rows(self, name: str, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        stored = self._datasets[name]
        return stored.read(rows) if isinstance(rows, slice) else stored.take(rows)

    def texts(self, key: str, rows: slice | NDArray[np.int64]) -> list[str]:
        """Read texts of some images.

        Args:
            key: "ids" or "paths".
            rows: As for `read`.

        Returns:
            Their texts.

        Raises:
            DatabaseError: If they are damaged.
        """
        with self._about(key):
            stored = self._datasets[f"{key}/bytes"]
            if isinstance(rows, slice):
                ends = self._rows(f"{key}/ends", slice(max(rows.start - 1, 0), rows.stop))
                bounds = np.concatenate([[0], ends] if rows.start == 0 else [ends])
                starts, ends = bounds[:-1], bounds[1:]
            else:
                bounds = self._rows(f"{key}/ends", np.stack([np.maximum(rows - 1, 0), rows]).ravel())
                starts, ends = np.where(rows == 0, 0, bounds[: len(rows)]), bounds[len(rows) :]
            if not ((starts >= 0) & (starts <= ends) & (ends <= stored.shape[0])).all():
                raise DatabaseError("expected rising ends")
            if isinstance(rows, slice) and len(starts):
                data, first = stored.read(slice(int(starts[0]), int(ends[-1]))).tobytes(), int(starts[0])
                return [data[a - first : b - first].decode() for a, b in zip(starts, ends, strict=True)]
            return [
                stored.read(slice(a, b)).tobytes().decode() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
            ]

    def blocks(self, rows: int) -> Iterator[slice]:
        """Cut the images into blocks.

        Args:
            rows: Images per block.

        Yields:
            The rows of each block.
        """
        for start in range(0, len(self), rows):
            yield slice(start, min(start + rows, len(self)))

    @contextlib.contextmanager
    def _about(self, item: str) -> Iterator[None]:
        try:
            with about(item) if item else contextlib.nullcontext():
                yield
        except DatabaseError as error:
            raise DatabaseError(f"{self.path} is not a readable gallery index: {error}") from error

    def _dataset(self, name: str) -> Chunks:
        with self._about(name):
            return self._file.chunks(name)

    def _record(self) -> GalleryRecord:
        attrs, shape = read_attrs(self._file, ""), self._datasets["cells"].shape
        with about(""):
            texts = {key: str(attrs[key]) for key in ("created", "embedcam_version")}
        with about("cells"):
            _, height, width, _ = shape
        network, geometry = read_network(self._file), read_geometry(self._file, "geometry")
        if network.source is not None:
            network = replace(network, source=network.source.seen_from(self.path.parent))
        return GalleryRecord(network, geometry, (height, width), **texts, space=self._space())

    def _space(self) -> DescriptorSpace | None:
        if layout.DESCRIPTORS not in self._datasets:
            return None
        attrs, geometry = read_attrs(self._file, "descriptors"), read_geometry(self._file, "descriptors")
        mean, projection = (self.read(name, slice(0, self._datasets[name].shape[0])) for name in layout.SPACE)
        with about("descriptors"):
            _, height, width, _ = self._datasets[layout.DESCRIPTORS].shape
            return DescriptorSpace(str(attrs["layer"]), geometry, (height, width), mean, projection)

    def _forms(self) -> Iterator[Check]:
        yield from network_forms(self.record.network, self.record.geometry)
        if (space := self.record.space) is not None:
            yield from geometry_forms("/descriptors", space.geometry)
        yield Check("/scales", self._datasets["scales"].shape > (0,), "at least one image", "none")
        for name, (shape, dtype) in layout.datasets(self.record).items():
            found = self._datasets[name]
            # Not one row per image, but any number of rows.
            own = name.endswith("/bytes") or name.startswith(layout.NAMES) or name in layout.SPACE
            expected = (*(found.shape[:1] if own else (len(self),)), *shape)
            same = found.shape == expected and found.dtype == dtype
            yield Check(f"/{name}", same, f"{np.dtype(dtype)} {expected}", f"{found.dtype} {found.shape}")


def is_index(path: Path) -> bool:
    """Tell whether a file is a gallery index, rather than a weight database or anything else.

    Args:
        path: The file.

    Returns:
        Whether it says so.
    """
    content = FileContent(path)
    try:
        return bool(read_attrs(Hdf5(content), "").get("encoding-type") == layout.ENCODING)
    except DatabaseError:
        return False
    finally:
        content.close()
