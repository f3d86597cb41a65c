"""Write a gallery index: one pass over the images, in shards that can be resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._version import __version__
from ..data.samples import Samples, fingerprint, input_files
from ..database.neighbors import searchable
from ..database.record import NetworkRecord
from ..errors import DatabaseError, DataError
from ..nets import layers, receptive_field
from ..nets.geometry import Geometry
from ..nets.inference import collected, tensor_batches
from ..nets.network import Network
from ..utils import shards as sharding
from ..utils.clock import now
from ..utils.distributed import Group
from ..utils.files import require_writable
from ..utils.progress import counting
from ..utils.resume import SavedParts, work_folder
from ..utils.shards import Shards
from . import format as layout
from .assembly import copy, new_index
from .descriptors import describe, fit
from .format import DescriptorSpace, GalleryRecord
from .index_file import IndexFile

_BLOCK = 1024  # images copied at a time


def index(
    net: Network,
    samples: Samples,
    out: str | Path,
    *,
    append: bool = False,
    resume: bool = False,
    batch_size: int = 32,
    strict: bool = False,
    workers: int = 2,
    descriptors: bool = True,
    like: str | Path | None = None,
    group: Group | None = None,
) -> int:
    """Index the images of a gallery, so that matches with them can be explained without running the network again.

    Of each image its embedding is stored, its cell embeddings as int8 with one scale per image, and descriptors that
    find corresponding places. Memory does not grow with the number of images.

    Args:
        net: A decomposable network.
        samples: The images.
        out: The file; written completely or not at all.
        append: Add the images to those of the file.
        resume: Continue an interrupted run.
        batch_size: Images per batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.
        descriptors: Store descriptors; without them, cell embeddings find corresponding places less well.
        like: An index of the same network, whose descriptors those of this one can be compared and merged with.
        group: The processes that share the work, see `distributed.join`.

    Returns:
        Number of images in the file.

    Raises:
        NetworkError: If the network has no cell embeddings.
        DatabaseError: If `like` or the index that images are appended to is one of another network.
        DataError: If an embedding is not finite, an appended image is already in the index, or options contradict.
        OutputError: If the file cannot be written, or would replace one that is read.
    """
    net.require_decomposable()
    out, group = Path(out), group or Group()
    stride = receptive_field.geometry(net.body, net.layer, net.preprocess.input_size).denser(net.density)
    record = GalleryRecord(NetworkRecord.of(net), stride, net.map_size, now())
    if append + (like is not None) + (not descriptors) > 1:
        raise DataError("an appended index keeps its kind of descriptors; give one of append, like and no descriptors")
    require_writable(out, [*input_files(samples), like])
    if append:
        record = _as_in(out, record, net)
        _require_new(samples, out)
    if like is not None:
        record = _as_in(Path(like), record, net)
    with work_folder(out, group) as work:
        run = {
            "embedcam": __version__,
            "network": record.network.sha256,
            "layer": net.layer,
            "cells": record.cells,
            "data set": fingerprint(samples),
            "shard": sharding.SHARD,
            "descriptors": descriptors,
        }
        parts = SavedParts(work, run, resume=resume, group=group)
        if descriptors and not append and like is None:
            record = replace(record, space=_fitted(net, record, samples, parts, workers, strict, group))
        shards = Shards(parts, "cells", len(samples), group)
        unfinished = shards.unfinished()
        with counting("indexing", sum(len(shards.images(number)) for number in unfinished)) as count:
            for number in unfinished:
                part = _embedded(net, record, samples, shards.images(number), batch_size, strict, workers, count)
                shards.write(number, **part)
        group.wait()
        if group.main:
            _assemble(record, samples, shards, out, append=append)
        group.wait()
    with IndexFile(out) as file:
        return len(file)


def quantise(cells: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Round cell embeddings to 8 bits, as differences from the embedding, which is stored in full.

    Args:
        cells: float32 (n, h, w, D).
        embeddings: float32 (n, D).

    Returns:
        int8 (n, h, w, D), and the scale (n,) of each image: cells are about the embedding plus the product of both. The
        scale is not finite if a number is not.
    """
    differences = cells - embeddings[:, None, None]
    scales = differences.abs().amax(dim=(1, 2, 3)) / 127
    steps = torch.where(scales > 0, scales, 1)[:, None, None, None]
    return (differences / steps).round().to(torch.int8), scales


def _fitted(
    net: Network, record: GalleryRecord, samples: Samples, parts: SavedParts, workers: int, strict: bool, group: Group
) -> DescriptorSpace:
    """Compute the space of the descriptors, in one process for all."""
    if group.main and "space" not in parts:
        space = fit(net, samples, record.geometry, workers=workers, strict=strict)
        places = np.array([space.geometry.cell_stride, space.geometry.first_cell_center, space.cells])
        parts.write("space", layer=np.array(space.layer), places=places, mean=space.mean, projection=space.projection)
    group.wait()
    stored = parts.read("space")
    stride, first, (height, width) = (tuple(pair) for pair in stored["places"].tolist())
    cells = (int(height), int(width))
    return DescriptorSpace(str(stored["layer"]), Geometry(stride, first), cells, stored["mean"], stored["projection"])


def _as_in(path: Path, record: GalleryRecord, net: Network) -> GalleryRecord:
    """Check that an index is one of the network, and take over its space of descriptors."""
    with IndexFile(path) as file:
        file.record.require_same(net, path)
        if file.record.geometry != record.geometry:
            raise DatabaseError(f"the cells of {path} lie at other places than those of the network; index again")
        return replace(record, space=file.record.space)


def _embedded(
    net: Network,
    record: GalleryRecord,
    samples: Samples,
    images: range,
    batch_size: int,
    strict: bool,
    workers: int,
    count: Any,
) -> dict[str, NDArray[Any]]:
    (height, width), space = net.map_size, record.space
    empty = {
        "kept": np.empty(0, np.int64),
        "embeddings": np.empty((0, net.dim), np.float32),
        "cells": np.empty((0, height, width, net.dim), np.int8),
        "scales": np.empty(0, np.float32),
    }
    if space is not None:
        empty[layout.DESCRIPTORS] = np.empty((0, *space.cells, space.projection.shape[1]), np.int8)
    parts: dict[str, list[NDArray[Any]]] = {key: [] for key in empty}
    subset = samples.subset(images)
    with layers.evaluating(net), torch.inference_mode():
        loaded = tensor_batches(net, subset, batch_size, "indexing", strict=strict, workers=workers, count=count)
        stored = ((rows, _stored(net, record, batch)) for rows, batch in loaded)
        for rows, (embeddings, cells, scales, *descriptors) in collected(stored):
            usable = searchable(embeddings) & np.isfinite(scales)
            if not usable.all():
                bad = int(rows[np.argmin(usable)]) + images.start
                raise DataError(
                    f"the embedding of {samples.ids[bad]} is not finite; check the network and its training"
                )
            arrays = (rows + images.start, embeddings, cells, scales, *descriptors)
            for values, array in zip(parts.values(), arrays, strict=True):
                values.append(array)
    return {key: np.concatenate([empty[key], *values]) for key, values in parts.items()}


def _stored(net: Network, record: GalleryRecord, images: Tensor) -> tuple[Tensor, ...]:
    """Compute embeddings, quantised cell embeddings, their scales and descriptors; nothing waits for a GPU."""
    space = record.space
    seen = net.activations(images, None if space is None else space.layer or None)
    embeddings = seen.embeddings.float()
    cells, scales = quantise(net.cells(seen).embeddings.permute(0, 2, 3, 1), embeddings)
    descriptors = [] if space is None else [describe(space, seen, record.geometry)]
    return embeddings, cells, scales, *descriptors


def _require_new(samples: Samples, out: Path) -> None:
    new = set(samples.ids)
    with IndexFile(out) as file:
        for rows in file.blocks(64 * _BLOCK):
            if twice := new.intersection(file.texts("ids", rows)):
                raise DataError(f"{min(twice)} is in {out} already; leave out what is indexed")


def _assemble(record: GalleryRecord, samples: Samples, shards: Shards, out: Path, *, append: bool) -> None:
    size = len(samples) * (record.bytes_per_image + 256)
    files: Sequence[Any] | None = getattr(samples, "files", None)
    with contextlib.ExitStack() as opened:
        old = opened.enter_context(IndexFile(out)) if append else None
        names = list(dict.fromkeys([*(old.label_names if old else ()), *samples.names]))
        file = opened.enter_context(new_index(out, record, names, size + (out.stat().st_size if append else 0)))
        if old is not None:
            copy(old, file, names, lambda _: None)
        places = np.array([names.index(name) for name in samples.names], dtype=np.int64)
        for number in range(len(shards)):
            part = shards.read(number)
            kept = part.pop("kept")
            labels = np.full(len(kept), -1) if samples.labels is None else places[samples.labels[kept]]
            ids = [samples.ids[row] for row in kept]
            paths = ["" if files is None else str(Path(files[row]).absolute()) for row in kept]
            layout.append(file, {"ids": ids, "paths": paths}, {"labels": labels, **part})
        if file["scales"].shape[0] == 0:
            raise DataError(f"none of the {len(samples)} images can be read; see the warnings above")
