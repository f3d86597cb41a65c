"""Compare image files with another: a picture a pair, and a JSON line."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.images import read_image
from ..data.loading import batches
from ..explain.comparison import Against, Comparison, Pair
from ..explain.explainer import Explainer
from ..nets.network import Network
from ..show.drawing import DrawOptions, bounded, draw_overlay
from ..show.grid import grid, save_png
from ..utils.files import require_writable, write_text
from ..utils.progress import track
from .files import find_files

logger = logging.getLogger("embedcam")

_CELL = 240


def explain_against(
    against: Against | Explainer | Network,
    inputs: Sequence[str | Path],
    other: str | Path,
    out: str | Path,
    draw: DrawOptions | None = None,
    *,
    batch_size: int = 16,
    strict: bool = False,
    workers: int = 2,
) -> list[dict[str, Any]]:
    """Compare image files with another and write what is seen.

    Writes `pairs/<id>.png`, both pictures with what they share and what differs, and `pairs.jsonl`, a line an image:
    similarity, distance, and how much the cells for and those against the match add to the similarity, in either.

    Args:
        against: What compares, or the explainer or network that it is made of.
        inputs: Image files and folders.
        other: The image file that each is compared with.
        out: Folder to write to.
        draw: How overlays look.
        batch_size: Images a batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.

    Returns:
        The lines of `pairs.jsonl`.

    Raises:
        DataError: If the other image or none of the images can be read, or one cannot and `strict` is set.
        NetworkError: If the network's similarity cannot be shared out over cells.
        OutputError: If the folder cannot be written.
    """
    against = against if isinstance(against, Against) else Against(against)
    draw, out = draw or DrawOptions(), Path(out)
    samples, partner = find_files(inputs), read_image(other)
    require_writable(out / "pairs.jsonl")
    seen = against.see(torch.from_numpy(against.preprocess(partner)[None]))
    small_partner = bounded(partner, _CELL)
    lines: list[dict[str, Any]] = []
    loaded = batches(samples, against.preprocess, batch_size, strict=strict, workers=workers)
    for indices, images in track(loaded, "comparing", len(samples), unit=batch_size):
        found = against(torch.from_numpy(images), seen)
        for row, index in enumerate(indices.tolist()):
            line = line_of(samples.files[index], Path(other), found, row)
            pictures = Pair(bounded(samples.image(index), _CELL), small_partner)
            line["pair"] = f"pairs/{samples.ids[index]}.png"
            save_png(_picture(pictures, found, row, line, draw), out / line["pair"])
            lines.append(line)
    if len(lines) < len(samples):
        logger.warning("%d of %d images could not be read and were left out", len(samples) - len(lines), len(samples))
    write_text(out / "pairs.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def line_of(file: Path, other: Path, found: Comparison, row: int) -> dict[str, Any]:
    """Say about one pair what a program wants to read.

    Args:
        file: The image.
        other: What it is compared with.
        found: Of a batch.
        row: The pair's, in the batch.

    Returns:
        Fit for JSON.
    """
    cells = {"image": found.contributions.images[row], "other": found.contributions.other[row]}
    return {
        "image": str(file),
        "other": str(other),
        "similarity": float(found.similarity[row]),
        "distance": float(found.distances[row]),
        "for": {side: float(values.clip(min=0).sum()) for side, values in cells.items()},
        "against": {side: float(values.clip(max=0).sum()) for side, values in cells.items()},
        "notes": found.shared.images.notes[row],
    }


def _picture(
    pictures: Pair[NDArray[np.uint8]], found: Comparison, row: int, line: dict[str, Any], draw: DrawOptions
) -> Image.Image:
    """Lay out both pictures, one under the other, each with what is shared and what differs."""
    sides = (
        ("image", pictures.images, found.shared.images, found.differs.images),
        ("other", pictures.other, found.shared.other, found.differs.other),
    )
    rows = [
        [picture, *(draw_overlay(picture, maps.heatmaps[row], draw)[0] for maps in both)] for _, picture, *both in sides
    ]
    notes = "; ".join(note.partition(":")[0] for note in line["notes"])
    captions = [
        [f"{Path(line[side]).name}\n{notes}", *(f"{line[what][side]:+.2f}" for what in ("for", "against"))]
        for side, *_ in sides
    ]
    titles = [f"similarity {line['similarity']:.2f}", "shared", "differs"]
    return grid(rows, captions, titles, cell_size=_CELL)
