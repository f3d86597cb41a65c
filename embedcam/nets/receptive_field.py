"""Compute the positions of feature-map cells in the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .geometry import Geometry
from .layout import Layout, Reading
from .passes import noise, run
from .probing import probe
from .survey import measure
from .tracking import Grid, Tracker

__all__ = ["Geometry", "geometry"]


# In inference mode, convolutions are not dispatched as such.
@torch.inference_mode(False)
def geometry(model: nn.Module, layer: str, input_size: tuple[int, int], reading: Reading | None = None) -> Geometry:
    """Compute the stride and the first cell's centre of a layer's output.

    The operations of one forward pass are traced: convolutions, pooling, resizing, padding, cropping, slicing, pixel
    shuffling and adaptive pooling to a divisor of the size move the cells, pointwise operations keep them.

    If no path to the layer can be traced (tokens of a transformer, rearranged cells, custom operations), the geometry
    is measured by `probing.probe`. Traced geometries of the same size as the layer, such as that of a transformer's
    patch embedding, are preferred if the measurement agrees with them.

    Args:
        model: A module that takes images (1, C, H, W).
        layer: Dotted name of the feature layer.
        input_size: (H, W) in pixels.
        reading: Converts the layer's output to feature maps; its layout is measured if None.

    Returns:
        The geometry in continuous input pixels: pixel p spans [p, p + 1).

    Raises:
        LayerError: If the layer does not exist, does not run, or has no spatial output.

    Source:
        Araujo, Norris, Sim 2019, Computing Receptive Fields of Convolutional Neural Networks, section 3
        (doi 10.23915/distill.00021).
    """
    reading = reading or measure(model, layer, input_size)
    image = noise(model, input_size)
    tracker = Tracker(image)

    def look(output: Tensor) -> tuple[Tensor, Grid | None]:
        return reading.maps(output, input_size), tracker.of(output)

    with torch.no_grad(), tracker:
        maps, grid = run(model, layer, image, look)
    if grid is not None and isinstance(reading, Layout) and reading.cells == tuple(axis % 4 for axis in grid.axes):
        return grid.geometry
    size = (maps.shape[2], maps.shape[3])
    return probe(
        model, layer, input_size, reading, [met for met_size, met in reversed(tracker.met) if met_size == size]
    )
