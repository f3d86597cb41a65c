"""Class maps: which classes are in an image of any size, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from ..nets.weights import load_into, read_state_dict, without_prefixes
from ..show.boxes import Box, draw_boxes, find_boxes
from ..show.drawing import bounded, scale_box
from ..show.grid import grid, save_png
from ..show.overlay import overlay
from ..utils.files import require_writable
from ..utils.names import bounded_name
from .convolutional import ConvolutionalClassifier, Window

# Colour-blind safe (Okabe and Ito 2008).
_COLORS = ("#f0e442", "#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#0072b2")
_MAX_PIXELS = 4096 * 4096  # activations of larger images take many gigabytes
_PICTURE_SIZE = 320
_SHEET_COLUMNS = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Detection:
    """A class detected in an image.

    Attributes:
        index: Index of the class.
        name: Name of the class.
        probability: Maximum probability over all positions, in [0, 1].
        heatmap: float32 (H, W), probability of the class at every pixel.
        boxes: Bounding boxes of the connected regions of high probability, in pixels of the heat map, largest first.
    """

    index: int
    name: str
    probability: float
    heatmap: NDArray[np.float32]
    boxes: list[Box]


@dataclass(frozen=True)
class ClassMap:
    """Class probabilities over an image.

    Attributes:
        probabilities: float32 (C, h, w), softmax over the classes at each position of the map.
        best: float32 (H, W), probability of the most likely class at every pixel.
        detections: Classes whose probability reaches the threshold somewhere, most likely first.
        names: (C,) names of all classes.
    """

    probabilities: NDArray[np.float32]
    best: NDArray[np.float32]
    detections: list[Detection]
    names: Sequence[str]

    def strongest(self, count: int = 5) -> list[tuple[str, float]]:
        """List the classes with the highest maximum probability, regardless of the threshold.

        Args:
            count: Number of classes.

        Returns:
            (name, probability), most likely first.
        """
        peaks = self.probabilities.max(axis=(1, 2))
        return [(self.names[index], float(peaks[index])) for index in np.argsort(-peaks, kind="stable")[:count]]

    def draw(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Draw the boxes of all detections, one colour per class, with class name and mean probability.

        Args:
            picture: uint8 (H', W', 3) RGB, of any size.

        Returns:
            uint8 (H', W', 3) RGB.
        """
        # The most likely class is drawn last, on top of the others.
        for number, detection in reversed(list(enumerate(self.detections))):
            boxes = [scale_box(box, self.best.shape, picture.shape) for box in detection.boxes]
            labels = [f"{detection.name} {box.score:.2f}" for box in detection.boxes]
            picture = draw_boxes(picture, boxes, labels, _COLORS[number % len(_COLORS)])
        return picture

    def sheet(self, picture: NDArray[np.uint8]) -> Image.Image:
        """Draw a contact sheet: boxes, map of the most likely class, and a heat map per detection.

        Args:
            picture: uint8 (H', W', 3) RGB, of any size.

        Returns:
            The contact sheet.
        """
        picture = bounded(Image.fromarray(picture), _PICTURE_SIZE)  # before drawing, so that labels stay readable
        name, probability = self.strongest(1)[0]
        summary = f"{len(self.detections)} classes" if self.detections else f"none; best is {name} {probability:.2f}"
        pictures = [self.draw(picture), overlay(picture, self.best)]
        pictures += [overlay(picture, detection.heatmap) for detection in self.detections]
        captions = [summary, "most likely class", *(f"{each.name} {each.probability:.2f}" for each in self.detections)]
        return grid(_in_rows(pictures), _in_rows(captions), picture_size=_PICTURE_SIZE)


def class_maps(
    classifier: ConvolutionalClassifier,
    images: Tensor,
    *,
    class_threshold: float = 0.85,
    box_threshold: float = 0.5,
    placement: str = "receptive-field",
) -> list[ClassMap]:
    """Detect and localise classes in images with one forward pass.

    Args:
        classifier: The convolutional classifier.
        images: (B, 3, H, W), normalised, of any size; moved to the classifier's device.
        class_threshold: Minimum probability of a detection, in (0, 1].
        box_threshold: Minimum probability inside a box, in (0, 1].
        placement: "receptive-field" places each position at the center of its receptive field; "stretch" resizes
            the map bilinearly.

    Returns:
        One class map per image.

    Raises:
        DataError: If `images` has another shape, or gives probabilities that are not finite.
        EmbedcamError: If a threshold or the placement is invalid.
    """
    for name, threshold, default in (("class", class_threshold, 0.85), ("box", box_threshold, 0.5)):
        if not 0 < threshold <= 1:
            raise EmbedcamError(f"{name}_threshold must lie in (0, 1], got {threshold}; the default is {default}")
    if placement not in PLACEMENTS:
        raise EmbedcamError(f"unknown placement {placement!r}; use one of {', '.join(PLACEMENTS)}")
    with torch.inference_mode():
        probabilities = np.asarray(classifier(layers.as_images(classifier, images)).float().softmax(dim=1).cpu())
    unusable = np.flatnonzero(~np.isfinite(probabilities).all(axis=(1, 2, 3)))
    if unusable.size:
        raise DataError(
            f"image {unusable[0]} gives probabilities that are not finite (NaN or infinity in the image or the "
            "network); remove it"
        )
    names = classifier.names
    size = (int(images.shape[2]), int(images.shape[3]))
    geometry = Geometry.stretch(probabilities.shape[2:], size) if placement == "stretch" else classifier.geometry(size)

    maps = []
    for classes in probabilities:
        peaks = classes.max(axis=(1, 2))
        detected = [int(index) for index in np.argsort(-peaks, kind="stable") if peaks[index] >= class_threshold]
        best, *heatmaps = place(np.stack([classes.max(axis=0), *classes[detected]]), geometry, size).clip(0, 1)
        detections = [
            Detection(index, names[index], float(peaks[index]), heatmap, find_boxes(heatmap, box_threshold))
            for index, heatmap in zip(detected, heatmaps, strict=True)
        ]
        maps.append(ClassMap(classes, best, detections, names))
    return maps


def load_classifier(name: str, weights: str | Path, *, window: Window = 3) -> ConvolutionalClassifier:
    """Load a torchvision classifier and make it convolutional.

    Args:
        name: Name of a torchvision classifier, such as "mobilenet_v2".
        weights: "DEFAULT" (downloaded by torchvision), or a state dict file: safetensors, or a torch file, which is
            read with `weights_only`.
        window: Side of the averaging window in cells, odd; or "whole".

    Returns:
        The classifier in evaluation mode. Its classes have ImageNet's names if their number matches.

    Raises:
        NetworkError: If the name or the weights are invalid, or the network cannot be made convolutional.
    """
    from torchvision import models

    if name == backbones.TINY:
        raise NetworkError("'tiny' has no classifier; use a torchvision network such as mobilenet_v2")
    model = backbones.classifier(name, download=weights == "DEFAULT")
    if weights != "DEFAULT":
        state = without_prefixes(read_state_dict(weights), model)
        last, tensor = list(model.state_dict().items())[-1]
        if last in state and len(state[last]) != len(tensor):  # not trained on ImageNet's classes
            model = models.get_model(name, num_classes=len(state[last]))
        load_into(model, state, weights, f"backbone {name!r}")
        if hasattr(model, "transform_input"):
            # GoogLeNet's and Inception's published weights need it; torchvision sets it only on download.
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
    """Detect the classes in an image file, and write `<name>_boxes.png` and `<name>_classes.png`.

    The first is the image with labelled boxes, the second the contact sheet of `ClassMap.sheet`.

    Args:
        classifier: The convolutional classifier, see `load_classifier`.
        file: The image.
        out: Output folder.
        size: Shorter side of the network's input, in pixels; a larger size detects smaller objects. By default the
            size that the network was trained for, or twice that if it slides a grid (VGG, AlexNet), which would
            otherwise see a single position.
        class_threshold: Minimum probability of a detection, in (0, 1].
        box_threshold: Minimum probability inside a box, in (0, 1].

    Returns:
        The class map, at the size of the network's input.

    Raises:
        DataError: If the image cannot be read, or would be too large.
        EmbedcamError: If an option is invalid.
        OutputError: If the folder cannot be written.
    """
    if size is not None and size < 1:
        raise EmbedcamError(
            f"size must be at least 1 pixel, got {size}; this network was trained for {min(classifier.input_size)}"
        )
    outputs = output_files(file, out)
    for output in outputs:
        require_writable(output, [file])
    picture = read_image(file)
    side = size or min(classifier.input_size) * (1 if classifier.grid == (1, 1) else 2)
    scale = side / min(picture.size)
    height, width = round(picture.height * scale), round(picture.width * scale)
    if height * width > _MAX_PIXELS:
        raise DataError(f"{file} would have {width} x {height} pixels at size {side}; choose a smaller size or crop it")
    preprocess = Preprocess((height, width))
    image = torch.from_numpy(preprocess(picture))[None].to(next(classifier.parameters()).device)
    (class_map,) = class_maps(classifier, image, class_threshold=class_threshold, box_threshold=box_threshold)
    pixels = np.asarray(picture)
    save_png(class_map.draw(pixels), outputs[0])
    save_png(class_map.sheet(pixels), outputs[1])
    return class_map


def output_files(file: str | Path, out: str | Path) -> tuple[Path, Path]:
    """Name the files that `classmap_file` writes.

    Args:
        file: The image.
        out: Output folder.

    Returns:
        The image with boxes, and the contact sheet.
    """
    stem, out = Path(file).stem, Path(out)
    return out / bounded_name(stem, "_boxes.png"), out / bounded_name(stem, "_classes.png")


def _in_rows(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + _SHEET_COLUMNS] for start in range(0, len(items), _SHEET_COLUMNS)]
