"""Grad-CAM and its relatives, with gradients that end at the feature layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import LayerError, TargetError
from ..nets import layers, receptive_field
from ..nets.choice import suggest
from ..nets.geometry import Geometry
from ..nets.layout import GivenLayout, Layout, Reading
from ..nets.network import Network
from ..nets.survey import Survey, measure
from .explanation import Explanation
from .maps import PLACEMENTS, combine, place
from .targets import TARGETS, SegmentationScore, Target
from .weighting import WEIGHTINGS


class GradCAM:
    """Explain any network by backpropagation from the output to the feature layer.

    Args:
        model: A classifier, a `Network`, or any module whose output suits the target. A module compiled by
            `torch.compile` is run uncompiled.
        layer: Dotted name of the feature layer, or several names, which are explained in one pass. If None, the
            network's own layer, or the last spatial one.
        method: Name of a channel weighting: "gradcam", "gradcam++" (as the package grad-cam computes it),
            "gradcam++-exact" (the paper's equation), "gradcam++-elementwise" (as pytorch-gradcam computes it), or any
            other of `WEIGHTINGS`.
        placement: "receptive-field" puts every cell at the centre of its receptive field; "stretch" is a bilinear
            resize, as in the package grad-cam.
        reshape: From the layer's output to feature maps (B, K, h, w), for outputs whose layout cannot be
            measured, such as tokens in an unusual order. The cells are assumed to tile the image evenly.

    Raises:
        LayerError: If there is no such layer.
        TargetError: If the method or the placement is unknown.

    Source:
        Grad-CAM (arXiv 1610.02391); Grad-CAM++ (arXiv 1710.11063).
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | Sequence[str] | None = None,
        *,
        method: str = "gradcam",
        placement: str = "receptive-field",
        reshape: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if placement not in PLACEMENTS:
            raise TargetError(f"unknown placement {placement!r}; use one of {', '.join(PLACEMENTS)}")
        layers.require_gradients(model)
        self.model = layers.original(model)
        self._weighting, self.placement = WEIGHTINGS[method], placement
        self._body = self.model.body if isinstance(self.model, Network) else self.model
        if layer is None:
            layer = self.model.layer if isinstance(self.model, Network) else suggest(self.model)
        self._single = isinstance(layer, str)
        self.layers = (layer,) if isinstance(layer, str) else tuple(layer)
        if not self.layers:
            raise LayerError("an empty list of layers explains nothing; name a layer, or leave layer out")
        self._modules = {name: layers.resolve(self._body, name) for name in self.layers}
        self._readings: dict[str, Reading] = {}
        if reshape is not None:
            self._readings = dict.fromkeys(self.layers, GivenLayout(reshape))
        self._all_modules = list(self.model.modules())
        self._geometries: dict[tuple[str, tuple[int, int]], Geometry] = {}

    def __call__(self, images: Tensor, target: Target | None = None) -> Any:
        """Explain images.

        The model is run in evaluation mode, and its mode is restored. Its parameters and their `.grad` do not change.

        Args:
            images: (B, 3, H, W), normalised; moved to the model's device.
            target: What to explain, one scalar per image: `ClassScore()` for a classifier's best class, or another
                target of `embedcam.gradient`.

        Returns:
            An `Explanation`: heat maps (B, H, W) in [0, 1], the maps before normalising, and a `Network`'s
            embeddings. For a sequence of layers, a dictionary of explanations by layer name. For a
            `SegmentationScore` of a sequence of classes, each explanation is a dictionary of explanations by class.

        Raises:
            DataError: If `images` is no image batch.
            TargetError: If there is no target, or it does not give one scalar per image.
            LayerError: If a layer does not run, has no spatial output, or does not affect the target.
        """
        if target is None:
            names = ", ".join(each.__name__ for each in TARGETS)
            raise TargetError(
                f"no target was given; use one of {names}, such as ClassScore() for a classifier's best class"
            )
        images = layers.as_images(self.model, images)
        size = (int(images.shape[2]), int(images.shape[3]))
        # `no_grad` keeps the layers before the feature layer out of the graph; inference mode allows no graph at all.
        with torch.inference_mode(False), torch.no_grad(), layers.evaluating(self.model, self._all_modules):
            self._measure(size)
            output, leaves, gradients = self._differentiate(images, target)
            # These are matrix products, which autocast would compute in half precision.
            with torch.autocast(images.device.type, enabled=False):
                maps = {
                    name: [self._map(name, leaf, each[index], size) for each in gradients]
                    for index, (name, leaf) in enumerate(zip(self.layers, leaves, strict=True))
                }
        classes = target.classes if isinstance(target, SegmentationScore) else None
        explanations = {name: self._explanations(of_layer, output, classes) for name, of_layer in maps.items()}
        return explanations[self.layers[0]] if self._single else explanations

    def _measure(self, size: tuple[int, int]) -> None:
        """Measure the layouts of the layers, once."""
        if self._readings:
            return
        model: nn.Module = self.model
        if isinstance(model, Network):
            self._readings = {name: model.reading(name) for name in self.layers}
        else:
            survey = Survey(model, size)
            self._readings = {name: measure(model, name, size, survey) for name in self.layers}

    def _differentiate(self, images: Tensor, target: Target) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, ...]]]:
        """Run the model; return its output, each layer's output, and for each class the gradients at each layer."""
        scored_layer = target.layer if isinstance(target, SegmentationScore) else None
        modules = dict(self._modules)
        if scored_layer is not None:
            modules[scored_layer] = layers.resolve(self._body, scored_layer)
        with layers.capture(modules, differentiable=True) as outputs:
            output = self.model(images)
            for name in modules:
                if name not in outputs:
                    raise LayerError(f"layer {name!r} did not run; choose one on the way to the output")
            scores = target(output if scored_layer is None else outputs[scored_layer])
            several = isinstance(target, SegmentationScore) and isinstance(target.classes, Sequence)
            self._check(scores, len(images), axes=2 if several else 1)
            leaves = [outputs[name] for name in self.layers]
            gradients = [
                torch.autograd.grad(each, leaves, retain_graph=True, allow_unused=True)
                for each in (scores if several else scores[:, None]).sum(dim=0)
            ]
        for name, gradient in zip(self.layers, gradients[0], strict=True):
            if gradient is None:
                raise LayerError(f"the target does not depend on layer {name!r}; choose one on the way to it")
        return output, [leaf.detach() for leaf in leaves], gradients

    @staticmethod
    def _check(scores: object, count: int, axes: int) -> None:
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        if not isinstance(scores, Tensor) or scores.ndim != axes or len(scores) != count:
            raise TargetError(
                f"a target must give one scalar per image ({count},), got {given}; sum or select what is explained"
            )
        if not scores.requires_grad:
            raise TargetError("the target has no gradient; compute it from the network's output, not detached")

    def _map(self, name: str, output: Tensor, gradient: Tensor, size: tuple[int, int]) -> Tensor:
        """Compute the map (B, H, W) of a layer, before normalising."""
        reading = self._readings[name]
        maps, gradients = (reading.maps(tensor, size).float() for tensor in (output, gradient))
        combined: Tensor = combine(maps, self._weighting(maps, gradients))
        on_grid = isinstance(reading, Layout) and reading.cells == (2, 3)
        if self.placement == "receptive-field" and on_grid:
            geometry = self._geometry(name, size)
        else:
            geometry = Geometry.stretch((combined.shape[1], combined.shape[2]), size)
        placed: Tensor = place(combined, geometry, size)
        return placed

    def _geometry(self, name: str, size: tuple[int, int]) -> Geometry:
        if (name, size) not in self._geometries:
            self._geometries[name, size] = receptive_field.geometry(self._body, name, size, self._readings[name])
        return self._geometries[name, size]

    def _explanations(self, maps: list[Tensor], output: Tensor, classes: int | Sequence[int] | None) -> Any:
        """Normalise the maps of a layer, one per class."""
        of_network: dict[str, Any] = {}
        if isinstance(self.model, Network):
            of_network["embeddings"] = output.detach().float().cpu().numpy()
            of_network["preprocess"] = self.model.preprocess
        explanations = [Explanation.of(raw.cpu().numpy(), **of_network) for raw in maps]
        if self.placement == "stretch":
            explanations = [replace(each, heatmaps=_fade(each.heatmaps, each.raw)) for each in explanations]
        return dict(zip(classes, explanations, strict=True)) if isinstance(classes, Sequence) else explanations[0]


def _fade(heatmaps: NDArray[np.float32], raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale maps of very small range as grad-cam does, for parity.

    grad-cam divides by (range + 1e-7) twice, before and after resizing. Together that is a division by
    range + 1e-7 (range + 1e-7), which matters only if the range is below 1e-8.
    """
    span = np.ptp(raw, axis=(1, 2), keepdims=True).astype(np.float64)
    faded: NDArray[np.float32] = heatmaps * (span / (span + 1e-7 * (span + 1e-7))).astype(np.float32)
    return faded
