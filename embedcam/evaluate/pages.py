"""Pages about a search: its failures, and its biases."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..explain.maps import place
from ..gallery.items import Item
from ..gallery.matches import Match, versus
from ..gallery.report import seen_picture
from ..show.overlay import overlay, overlay_signed
from ..show.report import write_page
from ..utils.files import write_text
from .bias import Pair, positive
from .errors import Failure
from .objects import Objects

_OUTLINE = 2  # pixels
_COLUMNS = ("label", "other label", "group", "right", "pairs", "similarity", "off", "expected", "excess", "biased")


class Figure(NamedTuple):
    """A picture of a card.

    Attributes:
        picture: uint8 (H, W, 3), or None if it cannot be read.
        caption: What it is.
    """

    picture: NDArray[np.uint8] | None
    caption: str


def write_errors(
    failures: Sequence[Failure], objects: Objects, facts: Sequence[tuple[str, object]], out: Path
) -> list[Path]:
    """Write failures as `errors.html`, one file that needs no network, and as lines of `errors.jsonl`.

    Args:
        failures: In the order in which they are shown.
        objects: The objects in the images.
        facts: (name, value) of what was evaluated.
        out: The folder.

    Returns:
        The files.

    Raises:
        OutputError: If they cannot be written.
    """
    page, lines = out / "errors.html", out / "errors.jsonl"
    cards = [(failure, _figures_of_failure(failure, objects)) for failure in failures]
    write_page(page, "errors.html", cards=cards, facts=facts, kind=objects.kind)
    write_text(lines, "".join(json.dumps(failure.to_dict()) + "\n" for failure in failures))
    return [page, lines]


def write_bias(
    summary: dict[str, Any],
    extremes: Sequence[tuple[Pair, Match]],
    objects: Objects,
    facts: Sequence[tuple[str, object]],
    out: Path,
) -> list[Path]:
    """Write biases as `bias.html`, one file that needs no network, and its rows as `bias.json` and `bias.csv`.

    Args:
        summary: Of `summarise`.
        extremes: The pairs to show.
        objects: The objects in the images.
        facts: (name, value) of what was evaluated.
        out: The folder.

    Returns:
        The files.

    Raises:
        OutputError: If they cannot be written.
    """
    page, table, values = out / "bias.html", out / "bias.csv", out / "bias.json"
    cards = [(pair, match, _figures_of_pair(match, objects)) for pair, match in extremes]
    by_group = {
        group: [row for row in summary["rows"] if row["group"] == group]
        for group in ("all", "class", "pair of classes")
    }
    write_page(page, "bias.html", groups=by_group, cards=cards, facts=facts, kind=objects.kind)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*_COLUMNS, *(f"{name} {end}" for name in ("interval", "excess_interval") for end in ("low", "high"))]
    )
    for row in summary["rows"]:
        labels = (*row["labels"], "", "")[:2]
        writer.writerow([*labels, *(row[key] for key in _COLUMNS[2:]), *row["interval"], *row["excess_interval"]])
    write_text(table, text.getvalue())
    write_text(values, json.dumps(summary, indent=2) + "\n")
    return [page, table, values]


def _figures_of_failure(failure: Failure, objects: Objects) -> list[Figure]:
    query, wrong, right = failure.wrong.query, failure.wrong.hit, failure.right.hit
    signed = place(versus(failure.wrong, failure.right)[0][None], query.geometry, query.preprocess.input_size)[0]
    why = _drawn(query, objects)
    if why is not None:
        why = _outlined(overlay_signed(why, signed / (float(np.abs(signed).max()) or 1.0)), query, objects)
    with_wrong, with_right = (
        _figures(match, [shared.heatmaps[0] for shared in match.shared], objects)
        for match in (failure.wrong, failure.right)
    )
    return [
        Figure(with_wrong[0].picture, "query: shared with the wrong one"),
        Figure(with_wrong[1].picture, f"wrong: shared with the query; {wrong.id}"),
        Figure(why, "query: orange speaks for the wrong one, blue for the right one"),
        Figure(with_right[1].picture, f"right: shared with the query; {right.id}"),
        Figure(with_right[0].picture, "query: shared with the right one"),
    ]


def _figures(match: Match, maps: Sequence[NDArray[np.float32]], objects: Objects) -> list[Figure]:
    """Draw maps in [0, 1] on a query and a hit, with the outlines of their objects."""
    figures = []
    for heatmap, item in zip(maps, (match.query, match.hit), strict=True):
        picture = _drawn(item, objects)
        if picture is not None:
            picture = _outlined(overlay(picture, heatmap), item, objects)
        figures.append(Figure(picture, item.id))
    return figures


def _figures_of_pair(match: Match, objects: Objects) -> list[Figure]:
    maps = positive(match)
    scale = max(float(each.max()) for each in maps) or 1.0
    return _figures(match, [each / scale for each in maps], objects)


def _drawn(item: Item, objects: Objects) -> NDArray[np.uint8] | None:
    picture = objects.picture(item)
    return None if picture is None else seen_picture(item, picture)


def _outlined(picture: NDArray[np.uint8], item: Item, objects: Objects) -> NDArray[np.uint8]:
    region = objects.region(item)
    if region is None:
        return picture
    edge = region.inside & ~ndimage.binary_erosion(region.inside, iterations=_OUTLINE)
    return np.where(edge[..., None], np.uint8(255), picture)
