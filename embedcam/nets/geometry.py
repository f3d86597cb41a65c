"""Positions of the cells of a feature map in the image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Positions of the cells of a feature map in the image.

    Cell (i, j) is centred at `first_cell_center + (i, j) * cell_stride` in continuous input pixels: pixel p spans
    [p, p + 1).

    Attributes:
        cell_stride: (y, x) distance between the centres of neighboring cells, in pixels.
        first_cell_center: (y, x) centre of cell (0, 0), in pixels.
    """

    cell_stride: tuple[float, float]
    first_cell_center: tuple[float, float]

    def denser(self, density: tuple[int, int]) -> Geometry:
        """Return the geometry with more cells between these.

        Args:
            density: (y, x) cells for one of these.

        Returns:
            The geometry with the same first cell.
        """
        (y, x), (rows, columns) = self.cell_stride, density
        return Geometry((y / rows, x / columns), self.first_cell_center)

    @classmethod
    def stretch(cls, map_size: tuple[int, int], input_size: tuple[int, int]) -> Geometry:
        """Return the geometry of cells that tile the image evenly, as in a plain bilinear resize.

        Args:
            map_size: (h, w) of the feature map.
            input_size: (H, W) of the image.

        Returns:
            The geometry (a resize with `align_corners=False`).
        """
        stride = (input_size[0] / map_size[0], input_size[1] / map_size[1])
        return cls(stride, (stride[0] / 2, stride[1] / 2))


PIXELS = Geometry((1.0, 1.0), (0.5, 0.5))
