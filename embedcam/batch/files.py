"""Explain image files: overlays, a contact sheet, raw maps, and a JSON line an image."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._version import __version__
from ..data.images import list_images, read_image
from ..data.loading import in_order, read_batches
from ..data.preprocess import Preprocess
from ..data.samples import FileSamples
from ..errors import DataError, OutputError
from ..explain.explanation import AnyExplainer, Explanation
from ..show.drawing import SHEET_IMAGES, DrawOptions, Pair, bounded, contact_sheet, draw_overlay
from ..show.grid import save_png
from ..utils import progress
from ..utils.files import atomic_path, require_writable
from ..utils.locks import locked
from .journal import Journal, Lines, remove_unfinished

logger = logging.getLogger("embedcam")

# Overlays keep a picture's own pixels up to this side; more adds nothing to a map of a few cells.
_LONGEST_SIDE = 1600


def find_files(inputs: Sequence[str | Path]) -> FileSamples:
    """Collect the images that files and folders name.

    Args:
        inputs: Image files, and folders, which are searched through.

    Returns:
        The images, sorted within a folder; ids are unique and fit for file names.

    Raises:
        DataError: If an input does not exist, or there is no image at all.
    """
    files: list[Path] = []
    ids: list[str] = []
    for given in map(Path, inputs):
        if given.is_dir():
            folders = [given, *sorted(p for p in given.rglob("*") if p.is_dir() and not _hidden(p.relative_to(given)))]
            found = [file for folder in folders for file in list_images(folder)]
            if not found:
                raise DataError(f"no image in {given}; give a folder with JPEG, PNG or other pictures")
            files += found
            ids += [file.relative_to(given).as_posix() for file in found]
        elif given.exists():
            files.append(given)
            ids.append(given.name)
        else:
            raise DataError(f"no such file or folder: {given}; check the path")
    return FileSamples(files=tuple(files), ids=_unique(ids))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _unique(ids: list[str]) -> tuple[str, ...]:
    taken = set(ids)
    seen: set[str] = set()
    for place, name in enumerate(ids):
        if name in seen:
            path = Path(name)
            numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}").as_posix() for n in itertools.count(2))
            ids[place] = next(new for new in numbered if new not in taken)
            taken.add(ids[place])
        seen.add(name)
    return tuple(ids)


def explain_files(
    explainer: AnyExplainer,
    inputs: Sequence[str | Path],
    out: str | Path,
    draw: DrawOptions | None = None,
    *,
    batch_size: int = 4,
    strict: bool = False,
    workers: int = 2,
    lanes: int = 1,
    resume: bool = False,
) -> Lines:
    """Explain images and write what is seen.

    Writes `overlays/<id>.png`, `maps/<id>.npz` ("heatmap" and "raw", at the explainer's input size),
    `contact_sheet.png` of the first images, and `explanations.jsonl`, a line an image, whose boxes are in pixels of
    the overlay; until all is done, `explanations.journal` stands for the lines. Reading, explaining and writing go on
    side by side, a batch apart. The memory needed does not grow with the number of images.

    Args:
        explainer: What explains.
        inputs: Image files and folders.
        out: Folder to write to.
        draw: How overlays look.
        batch_size: Images a batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead, and as many that draw and write; the files do not depend on them.
        lanes: Batches that are explained at once, each in a thread; the explainer must bear that. Several lanes that
            compute on a core each do more than one on all of them, whose threads wait for each other.
        resume: Go on after the last finished batch of an interrupted run, if there is one, as if it had not been
            interrupted. It must have had the same images, explainer and options.

    Returns:
        The lines of `explanations.jsonl`.

    Raises:
        DataError: If no image can be read, or one cannot and `strict` is set.
        OutputError: If the folder cannot be written, another process is writing it, or the interrupted run was another.
    """
    draw, out = draw or DrawOptions(), Path(out)
    samples, table = find_files(inputs), out / "explanations.jsonl"
    run = {
        "embedcam": __version__,
        "images": _digest(str(name) for name in itertools.chain(samples.files, samples.ids)),
        "explainer": _identity(explainer, max(1, min(batch_size, len(samples)))),
        "batch_size": batch_size,
        **asdict(draw),
    }
    with locked(table), Journal(out / "explanations.journal", run, resume=resume) as journal:
        require_writable(table)
        sheet = _begin(out, journal, len(samples), draw, strict=strict)
        prepare = functools.partial(_prepare, explainer.preprocess)
        explain = functools.partial(_explain, explainer, samples)
        write = functools.partial(_write, out, draw)
        read = read_batches(samples, prepare, batch_size, start=journal.done, strict=strict, workers=workers)
        # A single lane is the calling thread.
        explained = in_order(explain, read, lanes if lanes > 1 else 0, lanes, "explain")
        tracked = progress.track(explained, "explaining", len(samples) - journal.done, unit=batch_size)
        images = itertools.chain.from_iterable(tracked)
        written = in_order(write, images, workers, batch_size + workers, "write")
        with contextlib.closing(read), contextlib.closing(explained), contextlib.closing(written):
            lines: list[dict[str, Any]] = []
            for image in written:
                lines.append(image.line)
                if len(sheet) < SHEET_IMAGES:
                    sheet.append(Pair.of(image.picture, image.heatmap, image.line, draw))
                if image.last:
                    journal.add(image.number + 1, lines)
                    lines = []
        if journal.count < len(samples):
            left_out = len(samples) - journal.count
            logger.warning("%d of %d images could not be read and were left out", left_out, len(samples))
        save_png(contact_sheet(sheet), out / "contact_sheet.png")
        return journal.finish(table)


class _Read(NamedTuple):
    """One image as it is read: for the explainer, and to be drawn on."""

    image: NDArray[np.float32]
    picture: NDArray[np.uint8]


class _Image(NamedTuple):
    """One image on its way from the explainer to the files."""

    number: int
    name: str
    picture: NDArray[np.uint8]
    heatmap: NDArray[np.float32]
    raw: NDArray[np.float32]
    line: dict[str, Any]
    last: bool  # of its batch


def _prepare(preprocess: Preprocess, image: Image.Image) -> _Read:
    return _Read(preprocess(image), bounded(image, _LONGEST_SIDE))


def _explain(explainer: AnyExplainer, samples: FileSamples, batch: list[tuple[int, _Read]]) -> list[_Image]:
    explanation = explainer(np.stack([read.image for _, read in batch]))
    images = []
    for place, (number, read) in enumerate(batch):
        line = line_of(explainer, samples.files[number], explanation, place)
        maps = explanation.heatmaps[place], explanation.raw[place]
        images.append(_Image(number, samples.ids[number], read.picture, *maps, line, last=place == len(batch) - 1))
    return images


def _write(out: Path, draw: DrawOptions, image: _Image) -> _Image:
    """Draw and write an image's files, and add to its line where they are."""
    drawn, boxes = draw_overlay(image.picture, image.heatmap, draw)
    # The suffix stays in the name: a.jpg and a.png may lie in one folder.
    files = {"overlay": f"overlays/{image.name}.png", "map": f"maps/{image.name}.npz"}
    with atomic_path(out / files["overlay"]) as temporary:
        # Photographs repeat nothing but runs: looking for more takes four times as long and saves no bytes.
        Image.fromarray(drawn).save(temporary, compress_type=zlib.Z_RLE)
    with atomic_path(out / files["map"]) as temporary:
        # Not compressed: the digits of floats are noise, a quarter fewer bytes would take longer than all else here.
        np.savez(temporary, heatmap=image.heatmap, raw=image.raw)
    return image._replace(line=image.line | ({"boxes": boxes} if draw.boxes else {}) | files)


def _begin(out: Path, journal: Journal, total: int, draw: DrawOptions, *, strict: bool) -> list[Pair]:
    """Tidy up after an interrupted run, and bring back what its finished batches left on the contact sheet."""
    if journal.interrupted:
        folders = (out / "overlays", out / "maps")
        remove_unfinished(itertools.chain(out.glob(".*"), *(folder.rglob(".*") for folder in folders)))
    if journal.done:
        progress.say(f"resuming: {journal.done} of {total} images are done")
    if strict and journal.count < journal.done:
        raise DataError(
            f"{journal.done - journal.count} of the first {journal.done} images could not be read and were left out "
            "before the interruption; resume without strict, or start again"
        )
    pairs = []
    for line in itertools.islice(journal.lines(), SHEET_IMAGES):
        try:
            with np.load(out / line["map"]) as maps:
                heatmap = maps["heatmap"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise OutputError(
                f"cannot read {out / line['map']}, which the interrupted run wrote: {error}; start again, without "
                "resuming"
            ) from error
        pairs.append(Pair.of(bounded(read_image(line["image"]), _LONGEST_SIDE), heatmap, line, draw))
    return pairs


def _identity(explainer: AnyExplainer, count: int) -> str:
    """Know an explainer by what it says of a made picture: network, weights and options of every kind show in it."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    # In a batch like the first that comes: a compiled network may be compiled again for one of another kind.
    explanation = explainer(np.stack([explainer.preprocess(Image.fromarray(pixels))] * count))
    return _digest([json.dumps(line_of(explainer, Path(), explanation, 0)), explanation.raw[0].tobytes().hex()])


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode())
    return digest.hexdigest()[:16]


def line_of(explainer: AnyExplainer, file: Path, explanation: Explanation, place: int) -> dict[str, Any]:
    """Say about one image what a program wants to read.

    Args:
        explainer: Of the explanation.
        file: The image.
        explanation: Of a batch.
        place: The image's, in the batch.

    Returns:
        Fit for JSON.
    """
    assert explanation.clusters is not None
    assert explanation.distances is not None
    assert explanation.typicality is not None
    assert explanation.anomaly is not None
    cluster = int(explanation.clusters[place])
    line: dict[str, Any] = {
        "image": str(file),
        "cluster": cluster,
        "cluster_labels": dict(explainer.labels_of(cluster)),
        "distance": float(explanation.distances[place]),
        "typicality": float(explanation.typicality[place]),
        "typicality_in_words": explanation.typicality_in_words(place),
        "anomaly": float(explanation.anomaly[place]),
        "notes": explanation.notes[place],
    }
    if explanation.neighbors is not None:
        line["looks_like"], line["looks_like_label"] = explainer.exemplar(int(explanation.neighbors[place]))
    return line
