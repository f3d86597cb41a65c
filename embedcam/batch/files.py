"""Explain image files: write overlays, maps, a contact sheet and JSON lines."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import itertools
import json
import logging
import re
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
from ..data.images import STDIN, read_image
from ..data.loading import in_order, read_batches
from ..data.preprocess import Preprocess
from ..data.samples import FileSamples
from ..data.tree import describe, find_pictures
from ..errors import DataError, OutputError
from ..explain.answer import Answer
from ..explain.explanation import AnyExplainer
from ..explain.json_lines import explanation_line
from ..show.drawing import SHEET_IMAGES, DrawOptions, SheetEntry, bounded, contact_sheet, draw_overlay
from ..show.grid import save_png
from ..show.overlay import overlay_signed
from ..utils import progress
from ..utils.files import atomic_path, remove_unfinished, require_writable
from ..utils.names import bounded_name, normal_name
from ..utils.resume import SavedParts, work_folder
from .journal import Journal, Lines

logger = logging.getLogger("embedcam")

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: Path joins several
_LONGEST_SIDE = 1600  # of overlays, in pixels


def find_files(inputs: Sequence[str | Path], out: Path | None = None) -> FileSamples:
    """Collect image files from files, folders, patterns and standard input.

    Args:
        inputs: Image files; folders, which are searched as `find_pictures` does; patterns such as "x/*.jpg"; and "-",
            one image on standard input.
        out: Folder that the run writes to, whose pictures of earlier runs are left out.

    Returns:
        The images, sorted within each folder. Their ids are unique and can be used as file names.

    Raises:
        DataError: If an input does not exist or is an address, or a folder has no image.
    """
    files: list[Path] = []
    ids: list[str] = []
    problems: list[str] = []
    for path in expand(inputs):
        if path.is_dir():
            tree = find_pictures(path, out)
            if not any(tree.folders.values()):
                found = f" (left out: {describe(tree.left_out)})" if tree.left_out else ""
                raise DataError(f"no image in {path}{found}; use a folder with JPEG, PNG or other images")
            tree.warn()
            files += [path / name for name in tree.ids()]
            ids += tree.ids()
            problems += tree.problems
        elif path == STDIN or path.exists():
            files.append(path)
            ids.append("stdin" if path == STDIN else path.name)
        elif glob.has_magic(str(path)):
            raise DataError(f"no file matches {path}; check the pattern")
        else:
            raise DataError(f"no such file or folder: {path}; check the path")
    return FileSamples(files=tuple(files), ids=_unique(ids), problems=tuple(problems))


def expand(inputs: Sequence[str | Path]) -> list[Path]:
    """Replace patterns by the files that match; what exists, and what matches nothing, stays as it is.

    Args:
        inputs: As for `find_files`.

    Returns:
        The paths.

    Raises:
        DataError: If an input is an address.
    """
    paths: list[Path] = []
    for path in map(Path, inputs):
        if _ADDRESS.match(str(path)) and not path.exists():
            raise DataError(
                f"{str(path).replace(':/', '://', 1)} is an address; files, folders, patterns such as 'x/*.jpg' and - "
                "(standard input) are taken: download it first"
            )
        # Names may contain the characters of patterns. Path.glob takes no absolute pattern.
        matches = [] if path.exists() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        paths += map(Path, matches) if matches else [path]
    return paths


def _unique(ids: list[str]) -> tuple[str, ...]:
    # Names that some file system takes for the same name differ: in case, or in how accents are encoded.
    taken = set(map(_folded, ids))
    seen: set[str] = set()
    for index, name in enumerate(ids):
        if _folded(name) in seen:
            path = Path(name)
            numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}").as_posix() for n in itertools.count(2))
            ids[index] = next(new for new in numbered if _folded(new) not in taken)
            taken.add(_folded(ids[index]))
        seen.add(_folded(name))
    return tuple(ids)


def _folded(name: str) -> str:
    return normal_name(normal_name(name).casefold())


def explain_files(
    explainer: AnyExplainer,
    inputs: Sequence[str | Path],
    out: str | Path,
    draw: DrawOptions | None = None,
    *,
    batch_size: int = 4,
    strict: bool = False,
    workers: int = 2,
    concurrency: int = 1,
    resume: bool = False,
) -> Lines:
    """Explain image files and write the results.

    Writes `overlays/<id>.png`, `maps/<id>.npz` ("heatmap" and "raw", at the explainer's input size or,
    of a centre crop, at the size of the picture that it was cropped from),
    `contact_sheet.png` of the first images, and `explanations.jsonl`, one line per image as `explanation_line`
    describes it, with boxes in pixels of the overlay. Until the run is complete, `explanations.jsonl.parts` holds the
    lines. Reading, explaining and writing run concurrently. Memory use does not grow with the number of images.

    Args:
        explainer: The explainer.
        inputs: As for `find_files`.
        out: Output folder.
        draw: Drawing options.
        batch_size: Images per batch.
        strict: Raise on an unreadable image instead of skipping it with a warning.
        workers: Threads that read images, and threads that draw and write. The output does not depend on it.
        concurrency: Batches explained at the same time, one thread each; the explainer must be thread-safe. On a CPU,
            several single-threaded batches are faster than one batch on all cores.
        resume: Continue an interrupted run after its last complete batch. Images, explainer and options must be
            the same. Without an interrupted run, start from the beginning.

    Returns:
        The lines of `explanations.jsonl`.

    Raises:
        DataError: If no image can be read, or one cannot and `strict` is set.
        OutputError: If the folder cannot be written, another process is writing it, or the interrupted run differs.
    """
    draw, out = draw or DrawOptions(), Path(out)
    samples, table = find_files(inputs, out), out / "explanations.jsonl"
    run = {
        "embedcam": __version__,
        "images": _digest(str(name) for name in itertools.chain(samples.files, samples.ids)),
        "explainer": _identity(explainer, max(1, min(batch_size, len(samples)))),
        "batch_size": batch_size,
        **asdict(draw),
    }
    with work_folder(table) as work:
        if work.exists():  # an earlier run was interrupted
            folders = (out / "overlays", out / "maps")
            remove_unfinished(itertools.chain(out.glob(".*"), *(folder.rglob(".*") for folder in folders)))
        journal = Journal(SavedParts(work, run, resume=resume))
        require_writable(table, samples.files)
        require_writable(out / "contact_sheet.png", samples.files)
        sheet = _resumed(out, journal, len(samples), draw, strict=strict)
        read = functools.partial(prepare, explainer.preprocess, _LONGEST_SIDE)
        explain = functools.partial(_explain, explainer, samples)
        write = functools.partial(_write, out, draw)
        batches = read_batches(samples, read, batch_size, start=journal.done, strict=strict, workers=workers)
        threads = concurrency if concurrency > 1 else 0  # 0 is the calling thread
        explained = in_order(explain, batches, threads, concurrency, "explain")
        tracked = progress.track(explained, "explaining", len(samples) - journal.done, unit=batch_size)
        images = itertools.chain.from_iterable(tracked)
        written = in_order(write, images, workers, batch_size + workers, "write")
        with contextlib.closing(batches), contextlib.closing(explained), contextlib.closing(written):
            lines: list[dict[str, Any]] = []
            for image in written:
                lines.append(image.line)
                if len(sheet) < SHEET_IMAGES:
                    sheet.append(SheetEntry.of(image.picture, image.maps["heatmap"], image.line, draw))
                if image.last:
                    journal.add(image.number + 1, lines)
                    lines = []
        if journal.count < len(samples):
            left_out = len(samples) - journal.count
            logger.warning("%d of %d images could not be read and were left out", left_out, len(samples))
        save_png(contact_sheet(sheet), out / "contact_sheet.png")
        return journal.finish(table)


class Prepared(NamedTuple):
    """An image for the explainer, and the picture to draw on.

    Attributes:
        image: float32 (3, H, W), normalised.
        picture: uint8 (H', W', 3).
    """

    image: NDArray[np.float32]
    picture: NDArray[np.uint8]


def prepare(preprocess: Preprocess, longest: int, image: Image.Image) -> Prepared:
    """Prepare an image for explaining and drawing.

    Args:
        preprocess: Makes the input of the explainer.
        longest: Maximum side of the picture to draw on, in pixels.
        image: The image.

    Returns:
        Both.
    """
    return Prepared(preprocess(image), bounded(image, longest))


class _Explained(NamedTuple):
    number: int
    name: str
    picture: NDArray[np.uint8]
    maps: dict[str, NDArray[np.float32]]  # as stored
    scaled: NDArray[np.float32] | None  # evidence, see `Answer.scaled`
    line: dict[str, Any]
    last: bool  # in its batch


def _explain(explainer: AnyExplainer, samples: FileSamples, batch: list[tuple[int, Prepared]]) -> list[_Explained]:
    explanation = explainer(np.stack([prepared.image for _, prepared in batch]))
    images = []
    answer = explanation if isinstance(explanation, Answer) else None
    scaled = None if answer is None else answer.scaled
    for row, (number, prepared) in enumerate(batch):
        place = functools.partial(explainer.preprocess.on_picture, size=prepared.picture.shape[:2])
        line = explanation_line(explanation, row, samples.files[number], explainer)
        maps = {"heatmap": place(explanation.heatmaps[row]), "raw": place(explanation.raw[row])}
        if answer is not None:
            maps |= {"signed": place(answer.signed[row]), "contributions": answer.contributions[row]}
        images.append(
            _Explained(
                number,
                samples.ids[number],
                prepared.picture,
                maps,
                None if scaled is None else place(scaled[row]),
                line,
                last=row == len(batch) - 1,
            )
        )
    return images


def _write(out: Path, draw: DrawOptions, image: _Explained) -> _Explained:
    drawn, boxes = draw_overlay(image.picture, image.maps["heatmap"], draw)
    if image.scaled is not None:
        drawn = np.hstack([drawn, overlay_signed(image.picture, image.scaled)])
    # Names keep their suffix: a.jpg and a.png may be in the same folder.
    files = {
        "overlay": bounded_name(f"overlays/{image.name}", ".png"),
        "map": bounded_name(f"maps/{image.name}", ".npz"),
    }
    with atomic_path(out / files["overlay"]) as temporary:
        # Full deflate takes four times as long on photographs and saves nothing.
        Image.fromarray(drawn).save(temporary, compress_type=zlib.Z_RLE)
    with atomic_path(out / files["map"]) as temporary:
        # Not compressed: that would save a quarter of the bytes and take longer than all other steps.
        np.savez(temporary, **image.maps)  # type: ignore[arg-type]
    return image._replace(line=image.line | ({"boxes": boxes} if draw.boxes else {}) | files)


def _resumed(out: Path, journal: Journal, total: int, draw: DrawOptions, *, strict: bool) -> list[SheetEntry]:
    """Restore what the complete batches of an interrupted run had on the contact sheet."""
    if journal.done:
        progress.say(f"resuming: {journal.done} of {total} images done")
    if strict and journal.count < journal.done:
        raise DataError(
            f"{journal.done - journal.count} of the first {journal.done} images could not be read and were left out "
            "by the interrupted run; resume without strict, or start again"
        )
    entries = []
    for line in itertools.islice(journal.lines(), SHEET_IMAGES):
        try:
            with np.load(out / line["map"]) as maps:
                heatmap = maps["heatmap"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise OutputError(
                f"cannot read {out / line['map']} of the interrupted run: {error}; start again without resuming"
            ) from error
        entries.append(SheetEntry.of(bounded(read_image(line["image"]), _LONGEST_SIDE), heatmap, line, draw))
    return entries


def _identity(explainer: AnyExplainer, count: int) -> str:
    """A digest of the explanation of a fixed image: it changes with network, database and options."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    # With the batch size of the run: a compiled network would be recompiled for another one.
    explanation = explainer(np.stack([explainer.preprocess(Image.fromarray(pixels))] * count))
    return _digest([json.dumps(explanation_line(explanation, 0, "", explainer)), explanation.raw[0].tobytes().hex()])


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode())
    return digest.hexdigest()[:16]
