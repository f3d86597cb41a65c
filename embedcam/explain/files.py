"""Explain image files: overlays, a contact sheet, raw maps, and a JSON line an image."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.images import list_images
from ..data.loading import batches
from ..data.samples import FileSamples
from ..errors import DataError
from ..explanation import Explanation
from ..files import atomic_path, require_writable, write_text
from ..progress import track
from ..show.boxes import draw_boxes, find_boxes
from ..show.grid import grid, save_png
from ..show.overlay import overlay
from .explainer import Explainer

logger = logging.getLogger("embedcam")

_SHEET_IMAGES = 40
_SHEET_PAIRS_A_ROW = 4
# Overlays keep a picture's own pixels up to this side; more adds nothing to a map of a few cells.
_LONGEST_SIDE = 1600


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
            folders = [
                given,
                *sorted(p for p in given.rglob("*") if p.is_dir() and not p.name.startswith(".")),
            ]
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


def _unique(ids: list[str]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for place, name in enumerate(ids):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            path = Path(name)
            ids[place] = path.with_name(f"{path.stem}-{seen[name]}{path.suffix}").as_posix()
    return tuple(ids)


def explain_files(
    explainer: Explainer,
    inputs: Sequence[str | Path],
    out: str | Path,
    draw: DrawOptions | None = None,
    *,
    batch_size: int = 16,
    strict: bool = False,
    workers: int = 2,
) -> list[dict[str, Any]]:
    """Explain images and write what is seen.

    Writes `overlays/<id>.png`, `maps/<id>.npz` ("heatmap" and "raw", at the network's input size), `contact_sheet.png`
    of the first images, and `explanations.jsonl`, a line an image.

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
    sheet: list[tuple[NDArray[np.uint8], NDArray[np.uint8], str]] = []
    loaded = batches(samples, explainer.net.preprocess, batch_size, strict=strict, workers=workers)
    for indices, images in track(loaded, "explaining", len(samples), unit=batch_size):
        explanation = explainer(torch.from_numpy(images))
        for place, index in enumerate(indices.tolist()):
            picture = _bounded(samples.image(index))
            drawn = _draw(picture, explanation.heatmaps[place], draw)
            line = _line(explainer, samples, index, explanation, place, draw, picture)
            line |= _write(out, samples.ids[index], drawn, explanation, place)
            lines.append(line)
            if len(sheet) < _SHEET_IMAGES:
                sheet.append((picture, drawn, _caption(line)))
    save_png(_contact_sheet(sheet), out / "contact_sheet.png")
    write_text(out / "explanations.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def _bounded(image: Image.Image) -> NDArray[np.uint8]:
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return np.asarray(image)


def _draw(picture: NDArray[np.uint8], heatmap: NDArray[np.float32], draw: DrawOptions) -> NDArray[np.uint8]:
    drawn = overlay(picture, heatmap, alpha=draw.alpha, colormap=draw.colormap)
    if not draw.boxes:
        return drawn
    return draw_boxes(drawn, find_boxes(_at_size(heatmap, picture), draw.threshold))


def _at_size(heatmap: NDArray[np.float32], picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(Image.fromarray(heatmap).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)


def _line(
    explainer: Explainer,
    samples: FileSamples,
    index: int,
    explanation: Explanation,
    place: int,
    draw: DrawOptions,
    picture: NDArray[np.uint8],
) -> dict[str, Any]:
    """Say about one image what a program wants to read; boxes are in pixels of the overlay."""
    assert explanation.clusters is not None
    assert explanation.distances is not None
    assert explanation.typicality is not None
    db, cluster = explainer.database, int(explanation.clusters[place])
    line: dict[str, Any] = {
        "image": str(samples.files[index]),
        "cluster": cluster,
        "cluster_labels": dict(db.labels_of(cluster)),
        "distance": float(explanation.distances[place]),
        "typicality": float(explanation.typicality[place]),
        "notes": explanation.notes[place],
    }
    if db.exemplars is not None and explanation.neighbors is not None:
        neighbor = int(explanation.neighbors[place])
        label = int(db.exemplars.label[neighbor])
        line["looks_like"] = db.exemplars.path[neighbor]
        line["looks_like_label"] = db.label_names[label] if db.label_names is not None and label >= 0 else None
    if draw.boxes:
        found = find_boxes(_at_size(explanation.heatmaps[place], picture), draw.threshold)
        line["boxes"] = [
            {"left": b.left, "top": b.top, "right": b.right, "bottom": b.bottom, "score": float(b.score)} for b in found
        ]
    return line


def _write(out: Path, name: str, drawn: NDArray[np.uint8], explanation: Explanation, place: int) -> dict[str, str]:
    # The suffix stays in the name: a.jpg and a.png may lie in one folder.
    overlay_path, map_path = out / "overlays" / f"{name}.png", out / "maps" / f"{name}.npz"
    save_png(drawn, overlay_path)
    with atomic_path(map_path) as temporary:
        np.savez_compressed(temporary, heatmap=explanation.heatmaps[place], raw=explanation.raw[place])
    return {"overlay": overlay_path.relative_to(out).as_posix(), "map": map_path.relative_to(out).as_posix()}


def _caption(line: dict[str, Any]) -> str:
    labels = next(iter(line["cluster_labels"]), None)
    about = f"cluster {line['cluster']}{f', mostly {labels}' if labels else ''}"
    return (
        f"{about}; distance {line['distance']:.2f}{'; unlike the training images' if line['typicality'] == 0 else ''}"
    )


def _contact_sheet(sheet: list[tuple[NDArray[np.uint8], NDArray[np.uint8], str]]) -> Image.Image:
    rows = [sheet[start : start + _SHEET_PAIRS_A_ROW] for start in range(0, len(sheet), _SHEET_PAIRS_A_ROW)]
    pictures = [[picture for image, drawn, _ in row for picture in (image, drawn)] for row in rows]
    captions = [[text for _, _, caption in row for text in ("", caption)] for row in rows]
    return grid(pictures, captions)
