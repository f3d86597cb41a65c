"""Compare image files with a reference image."""

from __future__ import annotations

import functools
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
from ..data.loading import read_batches
from ..data.preprocess import Preprocess
from ..explain.comparison import Against, Comparison, Pair
from ..explain.explainer import Explainer
from ..explain.json_lines import comparison_line
from ..nets.network import Network
from ..show.drawing import DrawOptions, bounded, draw_overlay
from ..show.grid import grid, save_png
from ..utils.files import require_writable, write_text
from ..utils.names import bounded_name
from ..utils.progress import track
from .files import find_files, prepare

logger = logging.getLogger("embedcam")

_PICTURE_SIZE = 240


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
    """Compare image files with a reference image, and write pictures and scores.

    Writes `pairs/<id>.png`, both images with their shared and differing regions, and `pairs.jsonl`, one line per image
    as `comparison_line` describes it.

    Args:
        against: The comparison, or an explainer or network to make it from.
        inputs: As for `find_files`.
        other: The reference image file.
        out: Output folder.
        draw: Drawing options.
        batch_size: Images per batch.
        strict: Raise on an unreadable image instead of skipping it with a warning.
        workers: Threads that read images.

    Returns:
        The lines of `pairs.jsonl`.

    Raises:
        DataError: If the reference or all images are unreadable, or one image is and `strict` is set.
        NetworkError: If the similarity of the network cannot be decomposed over cells.
        OutputError: If the folder cannot be written.
    """
    against = against if isinstance(against, Against) else Against(against)
    draw, out = draw or DrawOptions(), Path(out)
    samples, reference = find_files(inputs, out), read_image(other)
    require_writable(out / "pairs.jsonl", [*samples.files, other])
    reference_maps = against.see(torch.from_numpy(against.preprocess(reference)[None]))
    reference_picture = bounded(reference, _PICTURE_SIZE)
    lines: list[dict[str, Any]] = []
    read = functools.partial(prepare, against.preprocess, _PICTURE_SIZE)
    batches = read_batches(samples, read, batch_size, strict=strict, workers=workers)
    for batch in track(batches, "comparing", len(samples), unit=batch_size):
        images = torch.from_numpy(np.stack([prepared.image for _, prepared in batch]))
        comparison = against(images, reference_maps)
        for row, (index, prepared) in enumerate(batch):
            line = comparison_line(comparison, row, samples.files[index], other)
            line["pair"] = bounded_name(f"pairs/{samples.ids[index]}", ".png")
            pictures = Pair(prepared.picture, reference_picture)
            save_png(_draw_pair(pictures, comparison, row, line, draw, against.preprocess), out / line["pair"])
            lines.append(line)
    if len(lines) < len(samples):
        logger.warning("%d of %d images could not be read and were left out", len(samples) - len(lines), len(samples))
    write_text(out / "pairs.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def _draw_pair(
    pictures: Pair[NDArray[np.uint8]],
    comparison: Comparison,
    row: int,
    line: dict[str, Any],
    draw: DrawOptions,
    preprocess: Preprocess,
) -> Image.Image:
    sides = (
        ("image", pictures.images, comparison.shared.images, comparison.differs.images),
        ("other", pictures.other, comparison.shared.other, comparison.differs.other),
    )
    rows = [
        [
            picture,
            *(
                draw_overlay(picture, preprocess.on_picture(maps.heatmaps[row], picture.shape[:2]), draw)[0]
                for maps in both
            ),
        ]
        for _, picture, *both in sides
    ]
    notes = "; ".join(note.partition(":")[0] for note in line["notes"])
    captions = [
        [f"{Path(line[side]).name}\n{notes}", *(f"{line[sign][side]:+.2f}" for sign in ("for", "against"))]
        for side, *_ in sides
    ]
    titles = [f"similarity {line['similarity']:.2f}", "shared", "differs"]
    return grid(rows, captions, titles, picture_size=_PICTURE_SIZE)
