"""How much of a map lies off the object, and how much would by chance."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import read_image
from ..data.samples import Samples
from ..errors import DataError
from ..gallery.items import Item

BORDER = 1 / 8
"""Share of each side of a picture that is its border, at either end."""


class Region(NamedTuple):
    """Where the object is.

    Attributes:
        inside: (H, W) bool, True on the object.
        counted: (H, W) bool, False on ignored pixels.
    """

    inside: NDArray[np.bool_]
    counted: NDArray[np.bool_]


class Share(NamedTuple):
    """How much of a map lies off the object.

    Attributes:
        off: Share of the map's positive values that lie off the object; NaN if there are none.
        expected: Share of the pixels that do: what an even map would have.
    """

    off: float
    expected: float


class Objects:
    """The objects in the images of a data set: their masks or boxes; without any, all but the border of each image.

    Args:
        samples: The images, by their ids.

    Attributes:
        kind: "mask", "pseudo mask", "box", or "border".
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.kind = getattr(samples, "mask_kind", "mask") if samples.has_masks else "border"

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.samples.ids)}

    def picture(self, item: Item) -> Image.Image | None:
        """Read the picture of an image: of the data set, or of its path.

        Args:
            item: The image.

        Returns:
            The picture; None if there is none that can be read.
        """
        row = self._rows.get(item.id)
        try:
            if row is not None:
                return self.samples.image(row)
            return read_image(Path(item.path)) if item.path else None
        except DataError:
            return None

    def region(self, item: Item) -> Region | None:
        """Find the object in an image as the network saw it.

        Args:
            item: The image.

        Returns:
            The region; None if it has no mask, or none that can be used.
        """
        size = item.preprocess.input_size
        if self.kind == "border":
            rows, columns = (slice(edge := round(side * BORDER), side - edge) for side in size)
            inside = np.zeros(size, bool)
            inside[rows, columns] = True
            return Region(inside, np.ones(size, bool))
        row = self._rows.get(item.id)
        try:
            mask = None if row is None else self.samples.mask(row)
            ignore = None if row is None or mask is None else self.samples.ignore(row)
        except DataError:
            return None
        if mask is None:
            return None
        inside = item.preprocess.mask(mask)
        counted = np.ones_like(inside) if ignore is None else ~item.preprocess.mask(ignore)
        return Region(inside & counted, counted) if (inside & counted).any() else None


def share_off(raw: NDArray[np.float32], region: Region) -> Share:
    """Measure how much of a map lies off the object.

    Args:
        raw: (H, W), not negative.
        region: Of the object.

    Returns:
        The share, and what it would be by chance.
    """
    off, total = (float(raw[part].sum(dtype=np.float64)) for part in (region.counted & ~region.inside, region.counted))
    expected = 1 - region.inside.sum() / region.counted.sum()
    return Share(off / total if total else float("nan"), float(expected))
