"""Named places in pictures, such as the parts of birds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Where the parts of the objects are.

    Attributes:
        names: (P,) of the parts.
        groups: (P,) name of the group of each part, such as "head" of a beak.
        places: float (N, P, 2): x and y in pixels of each picture, NaN where a part is not visible.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    places: NDArray[np.float64]

    def subset(self, rows: NDArray[np.int64]) -> Keypoints:
        """Select pictures by index."""
        return replace(self, places=self.places[rows])


def box_mask(box: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw a box as a mask.

    Args:
        box: (4,) left, top, width and height in pixels.
        size: (width, height) of the picture.

    Returns:
        (height, width), True on every pixel that the box touches.
    """
    left, top, width, height = box
    mask = np.zeros(size[::-1], dtype=bool)
    mask[max(0, int(top)) : int(np.ceil(top + height)), max(0, int(left)) : int(np.ceil(left + width))] = True
    return mask
