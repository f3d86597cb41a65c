"""Write explained matches: a sheet of pictures per query, JSON lines, and one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..data.images import read_image
from ..errors import DataError
from ..explain.maps import place
from ..show.fonts import Letters
from ..show.grid import grid, save_png
from ..show.overlay import overlay, overlay_signed
from ..utils.files import write_text
from ..utils.names import bounded_name
from .items import Item
from .matches import Match, Matches, versus
from .searching import Hit

logger = logging.getLogger("embedcam")

_PICTURE_SIZE = 240
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:1200px;color:#16191d}"
    ".hits{display:flex;flex-wrap:wrap;gap:16px}figure{margin:0;width:224px}img{width:100%;display:block}"
    "figcaption{font-size:13px;color:#4a525c;overflow-wrap:anywhere}"
)


def write_matches(
    found: Iterable[tuple[Matches, NDArray[np.uint8]]], out: str | Path, *, compare_hits: bool = False
) -> list[dict[str, Any]]:
    """Write explained matches to a folder.

    Writes `sheets/<query>.png`, `matches.jsonl` with one line per hit, and `matches.html`.

    Args:
        found: Matches of one query each, and its picture as the network saw it.
        out: The folder.
        compare_hits: Also show why the first hit is above each other one.

    Returns:
        The lines of `matches.jsonl`.

    Raises:
        OutputError: If the folder cannot be written.
    """
    out, lines, sections = Path(out), [], []
    for matches, picture in found:
        (query,), (hits,) = matches.queries, matches.hits
        missing = matches.missing[0] if matches.missing else {}
        if not hits:
            sections.append(_section(query, [], [], [], missing))
            continue
        columns = [_column(match, picture, hits[0] if compare_hits else None) for match in hits]
        titles = ["query: shared", "hit: shared", "hit: differs", "query: why the first"][: len(columns[0])]
        captions = [_caption(match) for match in hits]
        rows = [list(row) for row in zip(*columns, strict=True)]
        blank: list[str | None] = [None] * len(hits)
        texts: list[Sequence[str | None]] = [captions, *(blank for _ in rows[1:])]
        sheet = bounded_name(f"sheets/{query.id}", ".png")
        save_png(grid(rows, texts, row_titles=titles, picture_size=_PICTURE_SIZE), out / sheet)
        sections.append(_section(query, rows, captions, titles, missing))
        ranks = (rank for rank in itertools.count(1) if rank not in missing)
        for rank, match in zip(ranks, hits, strict=False):
            lines.append({"rank": rank, **match.to_dict(), "sheet": sheet})
            if compare_hits:
                signed, rest = versus(hits[0], match)
                lines[-1]["first_rather_than_this"] = {"contributions": signed.tolist(), "rest": rest}
    write_text(out / "matches.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    page = f"<!doctype html><meta charset=utf-8><title>Matches</title><style>{_STYLE}</style>{''.join(sections)}\n"
    write_text(out / "matches.html", page)
    return lines


def seen_picture(item: Item, image: Image.Image) -> NDArray[np.uint8]:
    """Return a picture as the network sees it: resized, and cropped if the preprocessing does so.

    Args:
        item: Of the picture.
        image: The picture.

    Returns:
        uint8 (H, W, 3).
    """
    picture: NDArray[np.uint8] = item.preprocess.restore(item.preprocess(image)[None])[0]
    return picture


def _hit_picture(item: Item) -> NDArray[np.uint8] | None:
    if not item.path:
        return None
    try:
        return seen_picture(item, read_image(Path(item.path)))
    except DataError as error:
        logger.warning("%s; its picture is left out", error)
        return None


def _column(match: Match, picture: NDArray[np.uint8], first: Match | None) -> list[NDArray[np.uint8] | None]:
    """Draw a hit: what is shared in the query and in the hit, and what differs in the hit."""
    pairs, hit = match.correspondences(), _hit_picture(match.hit)
    drawn: list[NDArray[np.uint8] | None] = [
        _numbered(overlay(picture, match.shared[0].heatmaps[0]), [pair.query for pair in pairs])
    ]
    if hit is None:
        drawn += [None, None]
    else:
        drawn.append(_numbered(overlay(hit, match.shared[1].heatmaps[0]), [pair.hit for pair in pairs]))
        drawn.append(overlay(hit, match.differs[1].heatmaps[0]))
    if first is not None:
        signed = place(versus(first, match)[0][None], match.query.geometry, match.query.preprocess.input_size)[0]
        drawn.append(overlay_signed(picture, signed / (float(np.abs(signed).max()) or 1.0)))
    return drawn


def _numbered(picture: NDArray[np.uint8], places: Sequence[tuple[float, float]]) -> NDArray[np.uint8]:
    """Draw numbered points; places are (y, x) as a share of the picture."""
    image = Image.fromarray(picture)
    draw, radius = ImageDraw.Draw(image), max(picture.shape[1] // 28, 5)
    letters = Letters(round(radius * 1.5))
    for number, (y, x) in reversed(list(enumerate(places, 1))):
        height, width = picture.shape[:2]
        centre = (np.clip(x * width, radius, width - radius), np.clip(y * height, radius, height - radius))
        draw.circle(centre, radius, fill="white", outline="black")
        letters.write(draw, centre, str(number), "black", "mm")
    return np.asarray(image)


def _caption(match: Match) -> str:
    label = "" if match.hit.label is None else f", {match.hit.label}"
    return f"{match.similarity:.3f}{label}\n{Path(match.hit.id).name}"


def _section(
    query: Item,
    rows: list[list[NDArray[np.uint8] | None]],
    captions: Sequence[str],
    titles: Sequence[str],
    missing: Mapping[int, Hit],
) -> str:
    parts = [f"<h2>{html.escape(query.id)}</h2>"]
    if missing:
        names = ", ".join(f"{rank}. {hit}" for rank, hit in missing.items())
        parts.append(f"<p>Not explained, as neither the index nor a picture has them: {html.escape(names)}</p>")
    for title, row in zip(titles, rows, strict=True):
        figures = [
            f"<figure>{_image(picture)}<figcaption>{html.escape(caption)}</figcaption></figure>"
            for picture, caption in zip(row, captions, strict=True)
        ]
        parts.append(f"<h3>{html.escape(title)}</h3><div class=hits>{''.join(figures)}</div>")
    return "".join(parts)


def _image(picture: NDArray[np.uint8] | None) -> str:
    if picture is None:
        return "no picture"
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=88)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
