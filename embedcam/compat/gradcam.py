"""The interface of pytorch-gradcam: `from embedcam.compat.gradcam import GradCAM, GradCAMpp, visualize_cam`.

Differences: the model runs in evaluation mode and its parameters get no gradients; batches are supported, each image is
explained by itself; the output of a layer that is overwritten in place is the one before; a map without heat is zero,
not NaN; Grad-CAM++'s mask has the image's size, not always 224 x 224; "classifier_0" of a VGG is that layer, not its
features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import gradient
from ..errors import DataError, LayerError
from ..explain.maps import normalize
from ..nets.passes import noise, run
from ..nets.survey import measure
from ..show.overlay import colorize
from .targets import Kept, name_of


class GradCAM:
    """Grad-CAM of a classifier.

    Args:
        arch: The classifier, or a dictionary with "arch", "layer_name" and, for `verbose`, "input_size".
        target_layer: The layer, as a module or by name; unused with a dictionary.
        verbose: Print the size of the maps.

    Raises:
        LayerError: If there is no such layer.

    Source:
        github.com/1Konny/gradcam_plus_plus-pytorch; pytorch-gradcam 0.2.1 (github.com/vickyliin).
    """

    _method = "gradcam"

    def __init__(
        self,
        arch: nn.Module | Mapping[str, Any],
        target_layer: nn.Module | str | bool | None = None,
        verbose: bool = False,
    ) -> None:
        given: Mapping[str, Any] = arch if isinstance(arch, Mapping) else {"arch": arch, "layer_name": target_layer}
        if missing := [key for key in ("arch", "layer_name") if key not in given]:
            raise LayerError(f"the dictionary lacks {' and '.join(missing)}; it needs arch and layer_name")
        self.model_arch: nn.Module = given["arch"]
        name = given["layer_name"]
        if isinstance(name, nn.Module):
            name = name_of(self.model_arch, name)
        if not isinstance(name, str):
            raise LayerError(f"target_layer must be a module or a name, got {name!r}; pass one such as 'layer4'")
        self._cam = gradient.GradCAM(self.model_arch, name, method=self._method, placement="stretch")
        # With a dictionary, the second argument is `verbose`.
        if (verbose or target_layer is True) and "input_size" in given:
            print("saliency_map size :", self._map_size(*given["input_size"]))

    @classmethod
    def from_config(cls, arch: nn.Module, model_type: str, layer_name: str) -> GradCAM:
        """Create the method from the name of a layer.

        Args:
            arch: The classifier.
            model_type: Unused: layers of any model are found.
            layer_name: Name in pytorch-gradcam ("layer4_bottleneck2_conv3") or in torch ("layer4.2.conv3").

        Returns:
            The method.

        Raises:
            LayerError: If there is no such layer.
        """
        return cls(arch, layer_name)

    def _map_size(self, height: int, width: int) -> torch.Size:
        (name,) = self._cam.layers
        maps = measure(self.model_arch, name, (height, width)).maps
        with torch.no_grad():
            images = noise(self.model_arch, (height, width))
            return run(self.model_arch, name, images, lambda output: maps(output, (height, width)).shape[2:])

    def __call__(
        self, input: Tensor, class_idx: int | None = None, retain_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Explain images.

        Args:
            input: (B, 3, H, W), normalised.
            class_idx: Index of the class; None for the class with the highest score of each image.
            retain_graph: Unused: no graph is kept.

        Returns:
            Masks (B, 1, H, W) in [0, 1] and logits (B, classes), both detached.

        Raises:
            DataError: If `input` is not an image batch.
            TargetError: If there is no such class.
        """
        target = Kept(gradient.ClassScore(class_idx))
        raw = self._cam(input, target).raw
        return torch.from_numpy(normalize(raw))[:, None].to(input.device), target.output

    forward = __call__


class GradCAMpp(GradCAM):
    """Grad-CAM++ of a classifier, with equation 19 as in pytorch-gradcam."""

    _method = "gradcam++-elementwise"


def visualize_cam(mask: Tensor, img: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Overlay a mask on its image, in the colours of matplotlib's "jet" (OpenCV's differ slightly).

    Args:
        mask: (1, 1, H, W) in [0, 1].
        img: (1, 3, H, W) or (3, H, W) in [0, 1].
        alpha: Factor of the colours.

    Returns:
        The colours (3, H, W), and their sum with the image (3, H, W), divided by its maximum.

    Raises:
        DataError: If the mask is not a single map in [0, 1] of the image's size.
    """
    heat = mask.detach().cpu().numpy()
    heat = heat.reshape(heat.shape[-2:]) if heat.size == heat.shape[-1] * heat.shape[-2] else heat
    picture = img.detach().cpu().float()
    if picture.ndim == 4 and len(picture) == 1:
        picture = picture[0]
    if tuple(picture.shape) != (3, *heat.shape):
        raise DataError(
            f"a mask {tuple(mask.shape)} and an image {tuple(img.shape)} do not match; pass those of one image"
        )
    colors = torch.from_numpy(colorize(heat, "jet")).permute(2, 0, 1).float() / 255 * alpha
    result = colors + picture
    return colors, result / result.max()
