"""Which classes are in a picture of any size, and where: class maps of a convolutional classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.images import read_image
from ..data.preprocess import Preprocess
from ..errors import DataError, EmbedcamError, NetworkError
from ..explain.maps import PLACEMENTS, place
from ..nets import backbones, layers
from ..nets.geometry import Geometry
from ..show.boxes import Box, draw_boxes, find_boxes
from ..show.grid import grid, save_png
from ..show.overlay import overlay
from .convolutional import ConvolutionalClassifier, Window

# Told apart on photographs, and by people who see red and green alike (Okabe and Ito 2008).
_COLORS = ("#f0e442", "#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#0072b2")
# Pixels; activations of larger images take many gigabytes.
_LARGEST = 4096 * 4096
_SHEET_CELL = 320
_SHEET_COLUMNS = 4

T = TypeVar("T")


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
        # The surest class comes last, on top of the others.
        for number, found in reversed(list(enumerate(self.found))):
            boxes = [_scaled(box, self.best.shape, picture.shape) for box in found.boxes]
            labels = [f"{found.name} {box.score:.2f}" for box in found.boxes]
            picture = draw_boxes(picture, boxes, labels, _COLORS[number % len(_COLORS)])
        return picture

    def sheet(self, picture: NDArray[np.uint8]) -> Image.Image:
        """Lay out the picture with its boxes, the likeliest class's map, and a heat map of each found class.

        Args:
            picture: uint8 (H', W', 3) RGB, of any size.

        Returns:
            A contact sheet.
        """
        small = Image.fromarray(picture)
        small.thumbnail((_SHEET_CELL, _SHEET_CELL))  # before drawing, so that labels stay readable
        picture = np.asarray(small)
        name, probability = self.strongest(1)[0]
        about = f"{len(self.found)} found" if self.found else f"nothing sure; likeliest {name} {probability:.2f}"
        pictures = [self.draw(picture), overlay(picture, self.best)]
        pictures += [overlay(picture, found.heatmap) for found in self.found]
        captions = [about, "likeliest class", *(f"{each.name} {each.probability:.2f}" for each in self.found)]
        return grid(_in_rows(pictures), _in_rows(captions), cell_size=_SHEET_CELL)


def class_maps(
    classifier: ConvolutionalClassifier,
    images: Tensor,
    *,
    class_threshold: float = 0.85,
    box_threshold: float = 0.5,
    placement: str = "receptive-field",
) -> list[ClassMap]:
    """Find the classes in images, and where they are, with one forward pass.

    Args:
        classifier: The classifier, made convolutional.
        images: (B, 3, H, W), normalised, of any size; moved to the classifier's device.
        class_threshold: A class is found where its probability is at least this, in (0, 1].
        box_threshold: Boxes are drawn around probabilities of at least this, in (0, 1].
        placement: "receptive-field" puts every place where the network looked; "stretch" is the plain
            bilinear resize.

    Returns:
        A class map an image.

    Raises:
        DataError: If `images` are not such, or give numbers that are not finite.
        EmbedcamError: If a threshold or the placement cannot be used.
    """
    for what, threshold, usual in (("class", class_threshold, 0.85), ("box", box_threshold, 0.5)):
        if not 0 < threshold <= 1:
            raise EmbedcamError(f"{what}_threshold must lie in (0, 1], got {threshold}; {usual} is usual")
    if placement not in PLACEMENTS:
        raise EmbedcamError(f"unknown placement {placement!r}; use one of {', '.join(PLACEMENTS)}")
    with torch.inference_mode():
        probabilities = np.asarray(classifier(layers.as_images(classifier, images)).float().softmax(dim=1).cpu())
    unusable = np.flatnonzero(~np.isfinite(probabilities).all(axis=(1, 2, 3)))
    if unusable.size:
        raise DataError(
            f"image {unusable[0]} gives probabilities that are not finite (NaN or infinity in the image or the "
            "network); leave it out"
        )
    names = classifier.names
    size = (int(images.shape[2]), int(images.shape[3]))
    geometry = Geometry.stretch(probabilities.shape[2:], size) if placement == "stretch" else classifier.geometry(size)

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


def load_classifier(name: str, weights: str | Path, *, window: Window = 3) -> ConvolutionalClassifier:
    """Load a classifier of torchvision and make it convolutional.

    Args:
        name: Of a torchvision classifier, such as "mobilenet_v2".
        weights: "DEFAULT" (torchvision's, downloaded), or a file with the network's state dict: safetensors,
            or torch's own format, which is read with `weights_only`.
        window: Side of the averaging window in cells, odd; or "whole".

    Returns:
        The classifier in evaluation mode, with the names of ImageNet's classes if it has as many.

    Raises:
        NetworkError: If the name or the weights cannot be used, or the network cannot be made convolutional.
    """
    from torchvision import models

    if name == backbones.TINY:
        raise NetworkError("'tiny' has no classifier; use a network of torchvision, such as mobilenet_v2")
    model = backbones.classifier(name, download=weights == "DEFAULT")
    if weights != "DEFAULT":
        state = backbones.read_state_dict(weights)
        last, wanted = list(model.state_dict().items())[-1]
        if last in state and len(state[last]) != len(wanted):  # trained for other classes than ImageNet's
            model = models.get_model(name, num_classes=len(state[last]))
        backbones.load_backbone(model, name, state, weights)
        if hasattr(model, "transform_input"):
            # GoogLeNet's and Inception's published weights want it; torchvision sets it on download only.
            model.transform_input = True  # type: ignore[assignment]
    published = models.get_model_weights(name).DEFAULT
    side = published.transforms().crop_size[0]
    names = published.meta["categories"]
    classes = len(list(model.state_dict().values())[-1])
    return ConvolutionalClassifier(
        model.eval(), names if len(names) == classes else None, window=window, input_size=(side, side)
    )


def classmap_file(
    classifier: ConvolutionalClassifier,
    file: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    class_threshold: float = 0.85,
    box_threshold: float = 0.5,
) -> ClassMap:
    """Find the classes in a picture and draw them: `<name>_boxes.png` and `<name>_classes.png`.

    The first is the picture with its labelled boxes, the second a contact sheet of it, the likeliest class's
    map and a heat map of each found class.

    Args:
        classifier: From `load_classifier`.
        file: The picture.
        out: Folder to write to.
        size: Shorter side in pixels at which the picture is looked at: the larger, the smaller are the things
            that are found. The size that the network was made for if None; twice that for a network that
            slides a grid (VGG, AlexNet), which would see one place only.
        class_threshold: A class is found where its probability is at least this, in (0, 1].
        box_threshold: Boxes are drawn around probabilities of at least this, in (0, 1].

    Returns:
        The class map, at the size that the picture was looked at.

    Raises:
        DataError: If the picture cannot be read, or would be too large.
        EmbedcamError: If an option cannot be used.
        OutputError: If the folder cannot be written.
    """
    if size is not None and size < 1:
        raise EmbedcamError(
            f"size must be at least 1 pixel, got {size}; this network was made for {min(classifier.input_size)}"
        )
    file, out = Path(file), Path(out)
    picture = read_image(file)
    side = size or min(classifier.input_size) * (1 if classifier.grid == (1, 1) else 2)
    scale = side / min(picture.size)
    height, width = round(picture.height * scale), round(picture.width * scale)
    if height * width > _LARGEST:
        raise DataError(f"{file} would have {width} x {height} pixels at size {side}; choose a smaller size or crop it")
    preprocess = Preprocess((height, width))
    image = torch.from_numpy(preprocess(picture))[None].to(next(classifier.parameters()).device)
    (found,) = class_maps(classifier, image, class_threshold=class_threshold, box_threshold=box_threshold)
    pixels = np.asarray(picture)
    save_png(found.draw(pixels), out / f"{file.stem}_boxes.png")
    save_png(found.sheet(pixels), out / f"{file.stem}_classes.png")
    return found


def _in_rows(cells: Sequence[T]) -> list[Sequence[T]]:
    return [cells[start : start + _SHEET_COLUMNS] for start in range(0, len(cells), _SHEET_COLUMNS)]


def _scaled(box: Box, own: tuple[int, ...], wanted: tuple[int, ...]) -> Box:
    """Bring a box from a heat map of one (H, W) to a picture of another, rounding outwards."""
    (h, w), (height, width) = own[:2], wanted[:2]
    left, top = box.left * width // w, box.top * height // h
    return replace(box, left=left, top=top, right=-(-box.right * width // w), bottom=-(-box.bottom * height // h))
