"""Embeddings that exist already: read from files, and checked against the network."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.items import PATH_KEYS
from ..data.samples import Samples
from ..data.texts import read_lines, read_table
from ..database.neighbors import searchable
from ..errors import DataError
from ..nets.inference import Embedded, embed
from ..nets.network import Network
from ..utils.names import normal_name

logger = logging.getLogger("embedcam")

# Images that are embedded again for comparison.
_SAMPLE = 32
# Largest difference, relative to the spread of the sample's embeddings; half precision and other versions of a library
# stay far below, another interpolation is above.
_TOLERANCE = 0.1
# Embeddings compared at a time, which bounds the memory.
_CHUNK = 2**16


def load_embeddings(file: str | Path, paths: str | Path, samples: Samples) -> Embedded:
    """Read embeddings from a file, and find the image of each by its path.

    Args:
        file: An array (N, D) in NumPy's format, or a FAISS index that can reconstruct its vectors.
        paths: The path of each row, or of each ID of the index, counted from 0: a text file with one path per line; a
            table (.csv, .tsv) with a column "path" and optionally "id"; or .json with a list of paths or a dictionary
            from ID to path. A path and the name of its image are compared from the end, so that folders above the data
            set do not matter.
        samples: The images; embeddings of other images are ignored.

    Returns:
        The embeddings of the images that have one; the others are left out with a warning.

    Raises:
        DataError: If a file cannot be read, paths and embeddings differ in number, or an image has no or two
            embeddings.
    """
    file, paths = Path(file), Path(paths)
    ids, vectors = _read_vectors(file)
    names = _read_paths(paths)
    if len(names) != len(ids) or (unnamed := [number for number in ids.tolist() if number not in names]):
        problem = f"{len(names)} paths" if len(names) != len(ids) else f"no path for {unnamed[0]}"
        raise DataError(f"{paths} has {problem}, {file} {len(ids)} embeddings; give one path for each")
    tails = _tails(samples.ids)
    row_of: dict[int, int] = {}
    for row, number in enumerate(ids.tolist()):
        image = _find(names[number], tails, samples.ids)
        if image is None:
            continue
        if image in row_of:
            raise DataError(f"{file} has two embeddings of {samples.ids[image]}, in rows {row_of[image]} and {row}")
        row_of[image] = row
    if not row_of:
        raise DataError(
            f"no path in {paths}, such as {names[int(ids[0])]!r}, is that of an image, such as {samples.ids[0]!r}; "
            "check --data and the paths"
        )
    if missing := len(samples) - len(row_of):
        logger.warning("%d of %d images have no embedding in %s and are left out", missing, len(samples), file)
    kept = np.array(sorted(row_of), dtype=np.int64)
    return Embedded(kept, np.asarray(vectors[[row_of[image] for image in kept.tolist()]], dtype=np.float32), None)


def check_embeddings(net: Network, samples: Samples, given: Any, **reading: Any) -> Embedded:
    """Compare given embeddings with those of the network, for some images.

    Args:
        net: The network.
        samples: The images.
        given: Of `load_embeddings` or `nets.inference.embed`, or (N, D) in the order of the images.
        reading: Options of `nets.inference.embed`.

    Returns:
        The embeddings, float32.

    Raises:
        DataError: If they have another number or width, are not finite or not normalised, are in another order, or come
            from another network or another preprocessing.
    """
    if not isinstance(given, Embedded):
        array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
        given = Embedded(np.arange(len(samples)), array, None)
    kept, array = given.kept, given.embeddings
    if array.ndim != 2 or len(array) != len(kept) or not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"given embeddings have shape {array.shape} of {array.dtype}, expected floats ({len(kept)}, {net.dim}), "
            "one row for each image"
        )
    if (np.diff([-1, *kept, len(samples)]) < 1).any():
        raise DataError(f"embedded.kept must be the index of each row's image, rising, below {len(samples)}")
    if array.shape[1] != net.dim:
        raise DataError(
            f"given embeddings have {array.shape[1]} dimensions, those of the network {net.dim}; "
            "they are of another network or output"
        )
    array = array.astype(np.float32, copy=False)
    if not (usable := searchable(array)).all():
        raise DataError(f"the given embedding of {samples.ids[kept[usable.argmin()]]} is not finite")
    rows = np.unique(np.linspace(0, len(kept) - 1, _SAMPLE).round().astype(int))
    own = embed(net, samples.subset(kept[rows]), what="checking embeddings", pooled=False, **reading)
    rows = rows[own.kept]
    if problem := _difference(net, array, rows, own.embeddings, [samples.ids[image] for image in kept[rows]]):
        raise DataError(f"given embeddings are not those of the network: {problem}")
    return Embedded(kept, array, given.pooled)


def _difference(
    net: Network, given: NDArray[np.float32], rows: NDArray[np.int64], own: NDArray[np.float32], names: Sequence[str]
) -> str | None:
    """Say how some rows of the given embeddings differ from the network's own; None if they do not."""
    if not (wrong := _apart(given[rows], own)).any():
        return None
    unit, own_unit = _unit(given[rows]), _unit(own)
    turned = _apart(unit, own_unit)
    if not turned.any():
        lengths, expected = (np.linalg.norm(vectors, axis=1) for vectors in (given[rows], own))
        fix = "divide each by its length" if net.metric == "cosine" else "give them as the network returns them"
        return (
            f"their lengths are {lengths.min():.3g} to {lengths.max():.3g}, those of the network "
            f"{expected.min():.3g} to {expected.max():.3g}; {fix}"
        )
    nearest, distance = _nearest(given, own_unit)
    elsewhere = turned & (distance <= _TOLERANCE * _spread(own_unit)) & (nearest != rows)
    if 4 * elsewhere.sum() > turned.sum():  # others may be those of images outside the data set
        first = int(elsewhere.argmax())
        return (
            f"they are in another order, row {rows[first]} is given for {names[first]}, whose embedding is in row "
            f"{nearest[first]}; sort them, or correct the paths"
        )
    if 4 * wrong.sum() <= len(wrong):
        first = int(wrong.argmax())
        return (
            f"{int(wrong.sum())} of {len(wrong)} compared images have another one, such as {names[first]}; "
            "embed images again that have changed"
        )
    unit, own_unit = (_unit(vectors - vectors.mean(axis=0)) for vectors in (unit, own_unit))
    if float((unit * own_unit).sum(axis=1).mean()) > 0.5:
        size = " x ".join(map(str, net.preprocess.input_size))
        return (
            f"they are similar but not equal, as with another preprocessing than the network's ({size}, "
            f"{net.preprocess.interpolation}), or from an index that compresses them; embed the images again"
        )
    return "they have nothing in common, so they are of another network, layer or weights; embed the images again"


def _apart(given: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which embeddings differ by more than rounding."""
    apart: NDArray[np.bool_] = np.linalg.norm(given - own, axis=1) > _TOLERANCE * _spread(own)
    return apart


def _spread(vectors: NDArray[np.float32]) -> float:
    """Root mean square distance from the mean; never less than rounding."""
    squares = np.square(vectors - vectors.mean(axis=0)).sum(axis=1).mean()
    return float(max(np.sqrt(squares), 1e-2 * np.linalg.norm(vectors, axis=1).mean()))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))


def _nearest(given: NDArray[np.float32], own: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the given embedding whose direction is nearest to each unit vector, and their distance."""
    nearest, best = np.zeros(len(own), np.int64), np.full(len(own), -np.inf, np.float32)
    for start in range(0, len(given), _CHUNK):
        cosines = own @ _unit(given[start : start + _CHUNK]).T
        highest = cosines.max(axis=1)
        nearest = np.where(highest > best, start + cosines.argmax(axis=1), nearest)
        best = np.maximum(highest, best)
    return nearest, np.sqrt(np.maximum(2 - 2 * best, 0))


def _read_vectors(file: Path) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Read IDs (N,) and vectors (N, D)."""
    try:
        with file.open("rb") as opened:
            is_numpy = opened.read(6) == b"\x93NUMPY"
        if is_numpy:
            vectors = np.load(file, mmap_mode="r", allow_pickle=False)
            ids = np.arange(len(vectors))
        else:
            ids, vectors = map(np.asarray, _read_index(file))  # faiss.contrib.torch_utils makes them tensors
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; check the path") from error
    except (ValueError, RuntimeError) as error:  # FAISS raises the latter
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"cannot read embeddings from {file}: {reason}; give a .npy file or a FAISS index") from error
    if vectors.ndim != 2 or not len(vectors) or not np.issubdtype(vectors.dtype, np.floating):
        raise DataError(f"{file} has shape {vectors.shape} of {vectors.dtype}, expected embeddings (N, D) of floats")
    return ids, vectors


def _read_index(file: Path) -> tuple[NDArray[np.int64], NDArray[Any]]:
    import faiss

    whole: Any = faiss.read_index(str(file))  # owns the index within
    index, ids = whole, None
    if isinstance(whole, faiss.IndexIDMap):
        ids, index = faiss.vector_to_array(whole.id_map), faiss.downcast_index(whole.index)
    if isinstance(index, faiss.IndexIVF):
        inverted: Any = index
        lists, sizes = inverted.invlists, map(inverted.get_list_size, range(inverted.nlist))
        members = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in enumerate(sizes) if size]
        inner = np.sort(np.concatenate(members))
        inverted.set_direct_map_type(2)  # DirectMap.Hashtable: any IDs
        return inner if ids is None else ids[inner], inverted.reconstruct_batch(inner)
    return np.arange(index.ntotal) if ids is None else ids, index.reconstruct_n(0, index.ntotal)


def _read_paths(file: Path) -> dict[int, str]:
    """Read the path of each row or ID."""
    try:
        if file.suffix.lower() == ".json":
            content = json.loads("\n".join(read_lines(file)))
            pairs: Iterable[tuple[Any, Any]] = content.items() if isinstance(content, dict) else enumerate(content)
        elif file.suffix.lower() in (".csv", ".tsv"):
            columns, table = read_table(file)
            column = next(key for key in (*PATH_KEYS, "image", "img") if key in columns)
            pairs = ((line.get("id", row), line[column]) for row, line in enumerate(table))
        else:
            lines = read_lines(file)
            while lines and not lines[-1]:
                lines.pop()
            pairs = enumerate(lines)
        paths = {int(number): str(path) for number, path in pairs}
    except StopIteration:
        raise DataError(f"{file} has no column 'path'; name the column of the paths in its first line") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is no list of paths: {error}; give one path for each embedding") from error
    if empty := [number for number, path in paths.items() if not path]:
        raise DataError(f"{file} has no path for {empty[0]}; give one path for each embedding")
    return paths


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(normal_name(name.replace("\\", "/"))).parts


def _tails(ids: Sequence[str]) -> dict[tuple[str, ...], int | None]:
    """Map every end of a name, such as ("cat", "1.jpg") and ("1.jpg",), to its image; to None if it is ambiguous."""
    tails: dict[tuple[str, ...], int | None] = {}
    for image, name in enumerate(ids):
        parts = _parts(name)
        for start in range(len(parts)):
            tails[parts[start:]] = None if parts[start:] in tails else image
    return tails | {_parts(name): image for image, name in enumerate(ids)}


def _find(path: str, tails: dict[tuple[str, ...], int | None], ids: Sequence[str]) -> int | None:
    """Find the image whose name ends with a path, or with whose whole name the path ends."""
    parts = _parts(path)
    if (image := tails.get(parts)) is not None:
        return image
    for start in range(1, len(parts)):
        image = tails.get(parts[start:])
        if image is not None and _parts(ids[image]) == parts[start:]:
            return image
    return None
