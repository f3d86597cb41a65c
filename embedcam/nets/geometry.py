"""Where the cells of a feature map sit in the image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Where the cells of a feature map sit in the image.

    Cell (i, j) is centred at `first_cell_center + (i, j) * cell_stride` in continuous input pixels: pixel p spans
    [p, p + 1).

    Attributes:
        cell_stride: (y, x) pixels from one cell's centre to the next.
        first_cell_center: (y, x) centre of cell (0, 0).
    """

    cell_stride: tuple[float, float]
    first_cell_center: tuple[float, float]

    @classmethod
    def stretch(cls, map_size: tuple[int, int], input_size: tuple[int, int]) -> Geometry:
        """Lay the cells out evenly, as a plain bilinear resize (without aligned corners) does.

        Args:
            map_size: (h, w) of the feature map.
            input_size: (H, W) of the image.

        Returns:
            The geometry of the plain resize.
        """
        stride = (input_size[0] / map_size[0], input_size[1] / map_size[1])
        return cls(stride, (stride[0] / 2, stride[1] / 2))


PIXELS = Geometry((1.0, 1.0), (0.5, 0.5))
