"""Grad-CAM and Grad-CAM++, with gradients that start at the feature layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .. import layers, receptive_field
from ..errors import TargetError
from ..explanation import Explanation
from ..heatmap import PLACEMENTS, Geometry, combine, place
from ..nets.network import Network
from .targets import ClassScore, Proxy, Scalar, Similarity, Target, TripletMargin

METHODS = ("gradcam", "gradcam++")


def channel_weights(sums: Tensor, gradients: Tensor, method: str = "gradcam") -> Tensor:
    """Turn gradients at the feature layer into channel weights.

    Grad-CAM takes the mean of the gradient g over space. Grad-CAM++ takes the sum of alpha * relu(g) with
    alpha = g² / (2 g² + g³ ΣA), which is 1 / (2 + g ΣA): written so, no power of a small gradient underflows. Where
    g ΣA <= -2 (possible only for maps with negative sums) alpha is not defined and taken as 0.

    Args:
        sums: Feature maps summed over space, (..., K).
        gradients: Of the target at the feature maps, (..., K, h, w).
        method: "gradcam" or "gradcam++".

    Returns:
        (..., K).

    Source:
        Grad-CAM (arXiv 1610.02391) equation 1; Grad-CAM++ (arXiv 1710.11063) equations 5 and 19.
    """
    if method == "gradcam":
        return gradients.mean(dim=(-2, -1))
    denominator = 2 + gradients * sums[..., None, None]
    alpha = torch.where(denominator > 0, 1 / denominator.clamp(min=torch.finfo(denominator.dtype).eps), 0)
    return (alpha * gradients.clamp(min=0)).sum(dim=(-2, -1))


class GradCAM:
    """Explain any network by backpropagation, from the output down to one layer and no further.

    Args:
        model: A classifier, a `Network`, or any module whose output a target understands.
        layer: Dotted name of the feature layer; the network's own, or the last spatial one, if None.
        method: "gradcam" or "gradcam++".
        placement: "receptive-field" puts every cell where the network looked; "stretch" is the plain bilinear resize.

    Raises:
        LayerError: If there is no such layer.
        TargetError: If the method or placement is unknown.
    """

    def __init__(
        self, model: nn.Module, layer: str | None = None, *, method: str = "gradcam", placement: str = "receptive-field"
    ) -> None:
        if method not in METHODS:
            raise TargetError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")
        if placement not in PLACEMENTS:
            raise TargetError(f"unknown placement {placement!r}; use one of {', '.join(PLACEMENTS)}")
        self.model, self.method, self.placement = model, method, placement
        self._body = model.body if isinstance(model, Network) else model
        self.layer = layer or (model.layer if isinstance(model, Network) else layers.suggest(model))
        self._module = layers.resolve(self._body, self.layer)
        self._geometries: dict[tuple[int, int], Geometry] = {}

    def __call__(self, images: Tensor, target: Target | None = None) -> Explanation:
        """Explain images.

        The model is run in evaluation mode and put back; neither its parameters nor their `.grad` are touched.

        Args:
            images: (B, 3, H, W), normalised, on the model's device.
            target: What to explain, one scalar an image; each image's best class if None (classifiers only).

        Returns:
            Heat maps (B, H, W) in [0, 1], the maps before normalising, and the embeddings of a `Network`.

        Raises:
            TargetError: If an embedding network gets no target, or the target is not one scalar an image.
            LayerError: If the layer does not run, or the target does not depend on it.
        """
        target = self._default_target() if target is None else target
        with layers.evaluating(self.model), torch.no_grad():
            with layers.capture({self.layer: self._module}, differentiable=True) as grabbed:
                output = self.model(images)
                leaf = self._leaf(grabbed)
                (gradient,) = torch.autograd.grad(self._scores(target, output).sum(), leaf, allow_unused=True)
            if gradient is None:
                raise layers.LayerError(f"the target does not depend on layer {self.layer!r}; choose one on the way to it")
            maps, gradients = layers.as_maps(leaf.detach()), layers.as_maps(gradient)
            weights = channel_weights(maps.sum(dim=(2, 3)), gradients, self.method)
            size = (int(images.shape[2]), int(images.shape[3]))
            placed = place(combine(maps, weights).float(), self._geometry(size, maps), size)
        embeddings = output.detach().float().cpu().numpy() if isinstance(self.model, Network) else None
        preprocess = self.model.preprocess if isinstance(self.model, Network) else None
        return Explanation.of(np.asarray(placed.cpu()), embeddings=embeddings, preprocess=preprocess)

    def _default_target(self) -> Target:
        if isinstance(self.model, Network):
            listed = ", ".join(t.__name__ for t in (TripletMargin, Similarity, Proxy, Scalar))
            raise TargetError(f"an embedding has no class to explain; give a target, one of {listed}")
        return ClassScore()

    def _leaf(self, grabbed: dict[str, Tensor]) -> Tensor:
        if self.layer not in grabbed:
            raise layers.LayerError(f"layer {self.layer!r} did not run; choose one on the way to the output")
        return grabbed[self.layer]

    @staticmethod
    def _scores(target: Target, output: Tensor) -> Tensor:
        scores = target(output)
        if scores.ndim != 1 or len(scores) != len(output):
            raise TargetError(f"a target must give one scalar an image ({len(output)},), got {tuple(scores.shape)}")
        return scores

    def _geometry(self, size: tuple[int, int], maps: Tensor) -> Geometry:
        if self.placement == "stretch":
            return Geometry.stretch((int(maps.shape[2]), int(maps.shape[3])), size)
        if size not in self._geometries:
            self._geometries[size] = receptive_field.geometry(self._body, self.layer, size)
        return self._geometries[size]
