"""The interface of grad-cam: `from embedcam.compat.pytorch_grad_cam import GradCAM, show_cam_on_image`.

`GradCAMPlusPlus` and `ClassifierOutputTarget` are provided too. Differences: parameters get no gradients; the output of
a layer that is overwritten in place is the one before; each of several layers is scaled to [0, 1] at the image's size
and not at its own (which changes thousandths); `with` is allowed, but nothing needs to be released.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import gradient
from ..errors import DataError, EmbedcamError, TargetError
from ..explain.maps import normalize
from ..show.overlay import colorize
from .targets import Kept, name_of


@dataclass(frozen=True)
class ClassifierOutputTarget:
    """The score of a class.

    Attributes:
        category: Index of the class.
    """

    category: int

    def __call__(self, model_output: Tensor) -> Tensor:
        """Select the score.

        Args:
            model_output: (classes,) of one image, or (B, classes).

        Returns:
            The score (), or (B,).
        """
        return model_output[..., self.category]


class GradCAM:
    """Grad-CAM of any network.

    Args:
        model: The network.
        target_layers: Layers of the network; the maps of several are averaged.
        reshape_transform: Converts a layer's output to feature maps (B, K, h, w), if embedcam cannot.

    Attributes:
        outputs: The network's latest output, detached.

    Raises:
        LayerError: If a layer is not part of the network.

    Source:
        grad-cam 1.5.7 (github.com/jacobgil/pytorch-grad-cam).
    """

    _method = "gradcam"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        names = [name_of(model, layer) for layer in target_layers]
        self._cam = gradient.GradCAM(model, names, method=self._method, placement="stretch", reshape=reshape_transform)
        self.outputs: Any = None

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[Callable[[Tensor], Tensor]] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> NDArray[np.float32]:
        """Explain images.

        Args:
            input_tensor: (B, 3, H, W), normalised.
            targets: One target per image, which maps its output to a scalar; None for the class with the highest score.
            aug_smooth: Must be false.
            eigen_smooth: Must be false.

        Returns:
            (B, H, W) in [0, 1].

        Raises:
            DataError: If `input_tensor` is not an image batch.
            TargetError: If there is not one target per image, a target returns no scalar, or smoothing is requested.
        """
        if aug_smooth or eigen_smooth:
            raise TargetError("aug_smooth and eigen_smooth are not supported; omit them, or use grad-cam")

        def scores(output: Tensor) -> Tensor:
            if targets is None:
                return gradient.ClassScore()(output)
            if len(targets) != len(output):
                raise TargetError(f"{len(targets)} targets for {len(output)} images; pass one per image")
            return torch.stack([target(one).squeeze() for target, one in zip(targets, output, strict=True)])

        target = Kept(scores)
        maps = [explanation.heatmaps for explanation in self._cam(input_tensor, target).values()]
        self.outputs = target.output
        averaged: NDArray[np.float32] = maps[0] if len(maps) == 1 else normalize(np.mean(maps, axis=0))
        return averaged

    def __enter__(self) -> GradCAM:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class GradCAMPlusPlus(GradCAM):
    """Grad-CAM++ of any network."""

    _method = "gradcam++"


def show_cam_on_image(
    img: NDArray[np.floating],
    mask: NDArray[np.floating],
    use_rgb: bool = False,
    colormap: str = "jet",
    image_weight: float = 0.5,
) -> NDArray[np.uint8]:
    """Overlay a heat map on an image and scale the result to full brightness.

    Args:
        img: (H, W, 3) in [0, 1].
        mask: (H, W) in [0, 1].
        use_rgb: Whether the image and the result are RGB; BGR otherwise.
        colormap: Name of a colour map of the cmap library; its "jet" differs slightly from OpenCV's.
        image_weight: Weight of the image in [0, 1]; the map has the rest.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: If the image or the map has another shape, or values outside [0, 1].
        EmbedcamError: If the weight is outside [0, 1] or the colour map is unknown.
    """
    if not isinstance(colormap, str):
        raise EmbedcamError(f"colormap must be a name, got {colormap!r}; OpenCV's COLORMAP_JET is called 'jet' here")
    if not 0 <= image_weight <= 1:
        raise EmbedcamError(f"image_weight must lie in [0, 1], got {image_weight}; 0.5 weights image and map equally")
    colors = colorize(mask, colormap)
    if np.shape(img) != colors.shape or not 0 <= np.min(img) <= np.max(img) <= 1:
        raise DataError(f"img must be {colors.shape} in [0, 1], got {np.shape(img)}; divide 8-bit pixels by 255")
    mixed = (1 - image_weight) * (colors if use_rgb else colors[:, :, ::-1]).astype(np.float32) / 255
    mixed = mixed + image_weight * img
    brightest = mixed.max()
    return np.asarray(255 * mixed / brightest if brightest > 0 else mixed).astype(np.uint8)
