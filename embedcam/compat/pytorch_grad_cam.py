"""The interface of grad-cam: `from embedcam.compat.pytorch_grad_cam import GradCAM, show_cam_on_image`.

Also here: `GradCAMPlusPlus` and `ClassifierOutputTarget`. What differs: no gradient is left on the parameters, a layer
that is overwritten in place is explained as it was, each of several layers is scaled to [0, 1] at the image's size and
not at its own (which changes thousandths), and nothing has to be released: `with` is allowed, not needed.
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
        category: Its index.
    """

    category: int

    def __call__(self, model_output: Tensor) -> Tensor:
        """Pick the score.

        Args:
            model_output: (classes,) of one image, or (B, classes).

        Returns:
            The score, or (B,).
        """
        return model_output[..., self.category]


class GradCAM:
    """Grad-CAM of any network.

    Args:
        model: The network.
        target_layers: Its layers; the maps of several are averaged.
        reshape_transform: From a layer's output to feature maps (B, K, h, w), where that cannot be known.

    Attributes:
        outputs: What the network last put out, without its graph.

    Raises:
        LayerError: If a layer is none of the network's.

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
            targets: For each image what turns its output into one scalar; each image's best class if None.
            aug_smooth: Must be false.
            eigen_smooth: Must be false.

        Returns:
            (B, H, W) in [0, 1].

        Raises:
            DataError: If `input_tensor` is no image batch.
            TargetError: If there is not one target an image, or one gives no scalar, or smoothing is asked for.
        """
        if aug_smooth or eigen_smooth:
            raise TargetError("aug_smooth and eigen_smooth are not offered here; leave them out, or keep grad-cam")

        def scores(output: Tensor) -> Tensor:
            if targets is None:
                return gradient.ClassScore()(output)
            if len(targets) != len(output):
                raise TargetError(f"{len(targets)} targets for {len(output)} images; give one an image")
            return torch.stack([target(one).squeeze() for target, one in zip(targets, output, strict=True)])

        target = Kept(scores)
        maps = [explanation.heatmaps for explanation in self._cam(input_tensor, target).values()]
        self.outputs = target.output
        return maps[0] if len(maps) == 1 else normalize(np.mean(maps, axis=0))

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
    """Lay a map over an image and make the result as bright as it can be.

    Args:
        img: (H, W, 3) in [0, 1].
        mask: (H, W) in [0, 1].
        use_rgb: The image is RGB; BGR otherwise, and so is the result.
        colormap: A name known to the cmap library; its "jet" is a little other than OpenCV's.
        image_weight: Of the image, in [0, 1]; the rest is the map's.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: If the image or the map is not what it must be.
        EmbedcamError: If the weight leaves [0, 1] or there is no such colour map.
    """
    if not isinstance(colormap, str):
        raise EmbedcamError(f"colormap must be a name, got {colormap!r}; OpenCV's COLORMAP_JET is called 'jet' here")
    if not 0 <= image_weight <= 1:
        raise EmbedcamError(f"image_weight must lie in [0, 1], got {image_weight}; 0.5 shows image and map alike")
    colors = colorize(mask, colormap)
    if np.shape(img) != colors.shape or not 0 <= np.min(img) <= np.max(img) <= 1:
        raise DataError(f"img must be {colors.shape} in [0, 1], got {np.shape(img)}; divide 8-bit pixels by 255")
    mixed = (1 - image_weight) * (colors if use_rgb else colors[:, :, ::-1]).astype(np.float32) / 255
    mixed = mixed + image_weight * img
    brightest = mixed.max()
    return np.asarray(255 * mixed / brightest if brightest > 0 else mixed).astype(np.uint8)
