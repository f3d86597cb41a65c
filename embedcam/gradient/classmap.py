"""Which classes are in a picture of any size, and where: class maps of a convolutional classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..data.images import read_image
from ..errors import EmbedcamError, NetworkError
from ..heatmap import PLACEMENTS, Geometry, place
from ..nets import backbones
from ..preprocess import Preprocess
from ..show.boxes import Box, draw_boxes, find_boxes
from ..show.grid import grid, save_png
from ..show.overlay import overlay
from .convolutional import ConvolutionalClassifier

# Told apart on photographs, and by people who see red and green alike (Okabe and Ito 2008).
_COLORS = ("#f0e442", "#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#0072b2")
_SHEET_CELL = 480
_SHEET_COLUMNS = 4


@dataclass(frozen=True)
class FoundClass:
    """A class that is somewhere in an image.

    Attributes:
        index: Of the class, from 0.
        name: Of the class.
        probability: The highest over all places, in [0, 1].
        heatmap: float32 (H, W), the class's probability at every pixel.
        boxes: Around each connected region of high probability, in pixels of the heat map, the largest first.
    """

    index: int
    name: str
    probability: float
    heatmap: NDArray[np.float32]
    boxes: list[Box]


@dataclass(frozen=True)
class ClassMap:
    """What a convolutional classifier sees in one image.

    Attributes:
        probabilities: float32 (C, h, w), the softmax over the classes at each place of the map.
        best: float32 (H, W), the probability of the likeliest class at every pixel.
        found: The classes whose probability passes the threshold somewhere, the surest first.
        names: (C,) of all classes.
    """

    probabilities: NDArray[np.float32]
    best: NDArray[np.float32]
    found: list[FoundClass]
    names: Sequence[str]

    def strongest(self, count: int = 5) -> list[tuple[str, float]]:
        """List the classes of highest probability at any place, whether or not they pass a threshold.

        Args:
            count: How many.

        Returns:
            (name, probability), the surest first.
        """
        peaks = self.probabilities.max(axis=(1, 2))
        return [(self.names[index], float(peaks[index])) for index in np.argsort(-peaks, kind="stable")[:count]]

    def draw(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Draw the boxes of all found classes, a colour a class, each with its class and mean probability.

        Args:
            picture: uint8 (H', W', 3) RGB, of any size.

        Returns:
            uint8 (H', W', 3) RGB.
        """
        y, x = (mine / own for mine, own in zip(picture.shape, self.best.shape, strict=False))
        # The surest class comes last, on top of the others.
        for number, found in reversed(list(enumerate(self.found))):
            boxes = [_scaled(box, y, x) for box in found.boxes]
            labels = [f"{found.name} {box.score:.2f}" for box in found.boxes]
            picture = draw_boxes(picture, boxes, labels, _COLORS[number % len(_COLORS)])
        return picture

    def sheet(self, picture: NDArray[np.uint8]) -> Image.Image:
        """Lay out the picture with its boxes, the map of the likeliest class, and a heat map of each found class.

        Args:
            picture: uint8 (H', W', 3) RGB, of any size.

        Returns:
            A contact sheet.
        """
        name, probability = self.strongest(1)[0]
        about = "classes found" if self.found else f"no class found; the likeliest is {name} {probability:.2f}"
        cells = [(self.draw(picture), about), (overlay(picture, self.best), "probability of the likeliest class")]
        cells += [(overlay(picture, f.heatmap), f"{f.name} {f.probability:.2f}") for f in self.found]
        rows = [cells[start : start + _SHEET_COLUMNS] for start in range(0, len(cells), _SHEET_COLUMNS)]
        pictures, captions = ([[cell[part] for cell in row] for row in rows] for part in (0, 1))
        return grid(pictures, captions, cell_size=_SHEET_CELL)


def class_maps(
    classifier: ConvolutionalClassifier,
    images: Tensor,
    names: Sequence[str] | None = None,
    *,
    class_threshold: float = 0.85,
    box_threshold: float = 0.5,
    placement: str = "receptive-field",
) -> list[ClassMap]:
    """Find the classes in images, and where they are, with one forward pass.

    Args:
        classifier: The classifier, made convolutional.
        images: (B, 3, H, W), normalised, of any size, on the classifier's device.
        names: (C,) of the classes; their numbers if None.
        class_threshold: A class is found where its probability is at least this, in (0, 1].
        box_threshold: Boxes are drawn around probabilities of at least this, in (0, 1].
        placement: "receptive-field" puts every place where the network looked; "stretch" is the plain bilinear resize.

    Returns:
        A class map an image.

    Raises:
        EmbedcamError: If a threshold or the placement cannot be used.
        NetworkError: If there is not one name a class.
    """
    if not 0 < class_threshold <= 1:
        raise EmbedcamError(f"class_threshold must lie in (0, 1], got {class_threshold}; 0.85 is usual")
    if placement not in PLACEMENTS:
        raise EmbedcamError(f"unknown placement {placement!r}; use one of {', '.join(PLACEMENTS)}")
    with torch.inference_mode():
        probabilities = np.asarray(classifier(images).float().softmax(dim=1).cpu())
    classes, *cells = probabilities.shape[1:]
    names = [f"class {index}" for index in range(classes)] if names is None else names
    if len(names) != classes:
        raise NetworkError(f"the network has {classes} classes, but there are {len(names)} names; give one a class")
    size = (int(images.shape[2]), int(images.shape[3]))
    geometry = Geometry.stretch((cells[0], cells[1]), size) if placement == "stretch" else classifier.geometry(size)

    def find(index: int, probability: float, heatmap: NDArray[np.float32]) -> FoundClass:
        return FoundClass(index, names[index], probability, heatmap, find_boxes(heatmap, box_threshold))

    maps = []
    for mine in probabilities:
        peaks = mine.max(axis=(1, 2))
        sure = [int(index) for index in np.argsort(-peaks, kind="stable") if peaks[index] >= class_threshold]
        placed = place(np.stack([mine.max(axis=0), *mine[sure]]), geometry, size).clip(0, 1)
        found = [find(index, float(peaks[index]), heatmap) for index, heatmap in zip(sure, placed[1:], strict=True)]
        maps.append(ClassMap(mine, placed[0], found, names))
    return maps


def load_classifier(name: str, weights: str | Path) -> tuple[nn.Module, list[str]]:
    """Load a classifier of torchvision with the names of its classes.

    Args:
        name: Of a torchvision classifier, such as "mobilenet_v2".
        weights: "DEFAULT" (torchvision's, downloaded), or a file with the network's state dict: safetensors, or torch's
            own format, which is read with `weights_only`. The file may be of another number of classes than ImageNet's.

    Returns:
        The classifier, in evaluation mode, and its classes' names: ImageNet's if there are 1,000, else their numbers.

    Raises:
        NetworkError: If the name or the weights cannot be used.
    """
    ...
