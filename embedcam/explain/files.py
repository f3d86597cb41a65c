"""Explain image files: overlays, a contact sheet, raw maps, and a JSON line an image."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import list_images
from ..data.loading import batches
from ..data.samples import FileSamples
from ..errors import DataError
from ..explanation import Explanation
from ..files import atomic_path, require_writable, write_text
from ..preprocess import Preprocess
from ..progress import track
from ..show.boxes import draw_boxes, find_boxes
from ..show.grid import grid, save_png
from ..show.overlay import overlay

logger = logging.getLogger("embedcam")

_SHEET_IMAGES = 40
_SHEET_PAIRS_A_ROW = 4
_SHEET_CELL = 160
# Overlays keep a picture's own pixels up to this side; more adds nothing to a map of a few cells.
_LONGEST_SIDE = 1600


class AnyExplainer(Protocol):
    """What explains images: by torch or by another runtime."""

    @property
    def preprocess(self) -> Preprocess:
        """From a picture to an input of the size to explain it in."""
        ...

    def __call__(self, images: Any) -> Explanation:
        """Explain an image batch, float32 (B, 3, H, W)."""
        ...

    def labels_of(self, cluster: int) -> list[tuple[str, int]]:
        """List the commonest labels of a cluster, with their counts."""
        ...

    def exemplar(self, index: int) -> tuple[str, str | None]:
        """Name a training image, and its label if it is known."""
        ...


@dataclass(frozen=True)
class DrawOptions:
    """How overlays look.

    Attributes:
        boxes: Draw boxes around strong regions too.
        threshold: Least heat inside a box's region, in (0, 1].
        alpha: Weight of the heat map, in [0, 1].
        colormap: Any name that the cmap library knows.
    """

    boxes: bool = False
    threshold: float = 0.5
    alpha: float = 0.5
    colormap: str = "turbo"


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
    batch_size: int = 16,
    strict: bool = False,
    workers: int = 2,
) -> list[dict[str, Any]]:
    """Explain images and write what is seen.

    Writes `overlays/<id>.png`, `maps/<id>.npz` ("heatmap" and "raw", at the explainer's input size),
    `contact_sheet.png` of the first images, and `explanations.jsonl`, a line an image, whose boxes are in pixels of
    the overlay.

    Args:
        explainer: What explains.
        inputs: Image files and folders.
        out: Folder to write to.
        draw: How overlays look.
        batch_size: Images a batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.

    Returns:
        The lines of `explanations.jsonl`.

    Raises:
        DataError: If no image can be read, or one cannot and `strict` is set.
        OutputError: If the folder cannot be written.
    """
    draw, out = draw or DrawOptions(), Path(out)
    samples = find_files(inputs)
    require_writable(out / "explanations.jsonl")
    lines: list[dict[str, Any]] = []
    sheet: list[_Pair] = []
    loaded = batches(samples, explainer.preprocess, batch_size, strict=strict, workers=workers)
    for indices, images in track(loaded, "explaining", len(samples), unit=batch_size):
        explanation = explainer(images)
        for place, index in enumerate(indices.tolist()):
            image, heatmap = samples.image(index), explanation.heatmaps[place]
            drawn, boxes = draw_overlay(bounded(image, _LONGEST_SIDE), heatmap, draw)
            line = _line(explainer, samples.files[index], explanation, place)
            if draw.boxes:
                line["boxes"] = boxes
            line |= _write(out, samples.ids[index], drawn, explanation, place)
            lines.append(line)
            if len(sheet) < _SHEET_IMAGES:
                small = bounded(image, _SHEET_CELL)  # boxes drawn at full size would be too thin to see
                sheet.append(_Pair(small, draw_overlay(small, heatmap, draw)[0], *_captions(samples.ids[index], line)))
    if len(lines) < len(samples):
        logger.warning("%d of %d images could not be read and were left out", len(samples) - len(lines), len(samples))
    save_png(_contact_sheet(sheet), out / "contact_sheet.png")
    write_text(out / "explanations.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def bounded(image: Image.Image, longest: int) -> NDArray[np.uint8]:
    """Shrink a picture, in place, if it is larger than needed.

    Args:
        image: The picture.
        longest: Most pixels of its longer side.

    Returns:
        uint8 (H, W, 3).
    """
    image.thumbnail((longest, longest))
    return np.asarray(image)


def draw_overlay(
    picture: NDArray[np.uint8], heatmap: NDArray[np.float32], draw: DrawOptions
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Lay a heat map over a picture, with boxes if they are wanted.

    Args:
        picture: uint8 (H, W, 3).
        heatmap: (h, w) in [0, 1].
        draw: How it looks.

    Returns:
        The overlay, of the picture's size, and its boxes in its pixels.
    """
    drawn = overlay(picture, heatmap, alpha=draw.alpha, colormap=draw.colormap)
    if not draw.boxes:
        return drawn, []
    size = (picture.shape[1], picture.shape[0])
    heat = np.asarray(Image.fromarray(heatmap).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    boxes = find_boxes(heat, draw.threshold)
    known = [
        {"left": b.left, "top": b.top, "right": b.right, "bottom": b.bottom, "score": float(b.score)} for b in boxes
    ]
    return draw_boxes(drawn, boxes), known


def _line(explainer: AnyExplainer, file: Path, explanation: Explanation, place: int) -> dict[str, Any]:
    """Say about one image what a program wants to read."""
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


def _write(out: Path, name: str, drawn: NDArray[np.uint8], explanation: Explanation, place: int) -> dict[str, str]:
    # The suffix stays in the name: a.jpg and a.png may lie in one folder.
    overlay_path, map_path = out / "overlays" / f"{name}.png", out / "maps" / f"{name}.npz"
    save_png(drawn, overlay_path)
    with atomic_path(map_path) as temporary:
        np.savez_compressed(temporary, heatmap=explanation.heatmaps[place], raw=explanation.raw[place])
    return {"overlay": overlay_path.relative_to(out).as_posix(), "map": map_path.relative_to(out).as_posix()}


class _Pair(NamedTuple):
    picture: NDArray[np.uint8]
    drawn: NDArray[np.uint8]
    picture_caption: str
    drawn_caption: str


def _captions(name: str, line: dict[str, Any]) -> tuple[str, str]:
    """Say under the picture which one it is and what to mind, under its overlay where the weights come from."""
    usual = line["typicality_in_words"]
    notes = [said for note in line["notes"] if (said := note.partition(":")[0]) != usual]
    label = next(iter(line["cluster_labels"]), None)
    about = f"cluster {line['cluster']}{f' of {label}' if label else ''}"
    # A long label is cut at the end; what warns the reader stands before it.
    return "\n".join([Path(name).name, *notes]), f"{usual}\n{about}"


def _contact_sheet(sheet: list[_Pair]) -> Image.Image:
    rows = [sheet[start : start + _SHEET_PAIRS_A_ROW] for start in range(0, len(sheet), _SHEET_PAIRS_A_ROW)]
    pictures = [[cell for pair in row for cell in (pair.picture, pair.drawn)] for row in rows]
    captions = [[text for pair in row for text in (pair.picture_caption, pair.drawn_caption)] for row in rows]
    return grid(pictures, captions, cell_size=_SHEET_CELL)
