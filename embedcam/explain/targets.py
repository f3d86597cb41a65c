"""Targets: callables that turn a network's output into the scalar per image that is explained.

Called with an output that does not suit them, they raise a `TargetError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..errors import TargetError
from ..nets.network import METRICS

Target = Callable[[Any], Tensor]


@dataclass(frozen=True)
class ClassScore:
    """The score of a class, before the softmax.

    Attributes:
        index: One class for all images, one per image (B,), or None for each image's best class.
    """

    index: int | Sequence[int] | Tensor | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """Select the scores (B,) from logits (B, classes)."""
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise TargetError(f"ClassScore needs logits (B, classes), got {_describe(output)}; choose another target")
        if self.index is None:
            return output.max(dim=1).values
        index = torch.as_tensor(self.index, device=output.device)
        if index.ndim > 1 or (index.ndim == 1 and len(index) != len(output)):
            raise TargetError(
                f"ClassScore has {index.numel()} classes for {len(output)} images; give one, or one per image"
            )
        _require_classes(index, output.shape[1])
        return output.gather(1, index.expand(len(output))[:, None])[:, 0]


@dataclass(frozen=True)
class SegmentationScore:
    """The scores of a class summed over an image or a part of it, as in MATLAB's `gradCAM` and Seg-Grad-CAM.

    Attributes:
        classes: A class; several, with one map per class; or None for the class with the largest sum in each image.
        reduction_layer: What is summed. None: the softmax of the model's output; "logits": the model's output
            unchanged; otherwise the output of the layer with that name.
        region: Which pixels are summed. None: all; a mask (H, W) or (B, H, W), resized to the scores by nearest
            neighbour; a pixel (y, x) of the scores; "predicted": the pixels where the class has the largest score.

    Source:
        Vinogradova et al. 2020, Towards Interpretable Semantic Segmentation via Gradient-Weighted Class
        Activation Mapping (doi 10.1609/aaai.v34i10.7244), equation 2.
    """

    classes: int | Sequence[int] | None = None
    reduction_layer: str | None = None
    region: NDArray[np.bool_] | Tensor | tuple[int, int] | str | None = None

    @property
    def layer(self) -> str | None:
        """Name of the layer whose output the target takes; None for the model's output."""
        return None if self.reduction_layer == "logits" else self.reduction_layer

    def __call__(self, output: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Sum scores (B, C, H, W), or torchvision's dictionary with "out": (B,), or (B, n) for n classes."""
        scores = output.get("out") if isinstance(output, Mapping) else output
        if not isinstance(scores, Tensor) or scores.ndim != 4:
            raise TargetError(
                f"SegmentationScore needs scores (B, classes, H, W), got {_describe(output)}; "
                "choose another reduction_layer or target"
            )
        if self.reduction_layer is None:
            scores = scores.float().softmax(dim=1)
        sums = self._cut(scores).sum(dim=(2, 3))
        if self.classes is None:
            return sums.max(dim=1).values
        classes = torch.as_tensor(self.classes, device=sums.device)
        _require_classes(classes, sums.shape[1])
        return sums[:, classes]

    def _cut(self, scores: Tensor) -> Tensor:
        """Set the scores outside the region to zero."""
        if self.region is None:
            return scores
        if isinstance(self.region, str):
            if self.region != "predicted":
                raise TargetError(f"unknown region {self.region!r}; use 'predicted', a mask, a pixel (y, x) or None")
            best = scores.argmax(dim=1, keepdim=True)
            return scores * (best == torch.arange(scores.shape[1], device=scores.device)[:, None, None])
        height, width = scores.shape[2:]
        if isinstance(self.region, tuple):
            y, x = self.region
            if not (0 <= y < height and 0 <= x < width):
                raise TargetError(
                    f"pixel {self.region} is outside the scores, {height} x {width}; give (y, x) inside, or a mask"
                )
            return scores[:, :, y : y + 1, x : x + 1]
        mask = torch.as_tensor(self.region, device=scores.device)
        if mask.ndim not in (2, 3) or (mask.ndim == 3 and len(mask) not in (1, len(scores))):
            raise TargetError(
                f"the region of {len(scores)} images must be a mask (H, W) or (B, H, W), "
                f"got {tuple(mask.shape)}; give one mask, or one per image"
            )
        mask = mask.reshape(-1, 1, *mask.shape[-2:]).to(scores.dtype)
        return scores * functional.interpolate(mask, (height, width), mode="nearest-exact")


@dataclass(frozen=True)
class Similarity:
    """The dot product of an embedding with a reference.

    Attributes:
        reference: (D,) or (B, D), from another image.
    """

    reference: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """Compute the dot products (B,) of embeddings (B, D)."""
        reference = _reference("Similarity", output, self.reference)
        lengths = torch.linalg.vector_norm(output.detach(), dim=1)
        if bool(torch.isclose(lengths, torch.ones_like(lengths), atol=1e-2).all()):
            # Rounding depends on the batch: 1e-7 in float32, more in half precision.
            rounding = max(1e-6, torch.finfo(output.dtype).eps * float(reference.abs().max()))
            own = (output.detach() - reference).abs().amax(dim=1) <= rounding
            if bool(own.any()):
                raise TargetError(
                    "Similarity of an image to itself has no gradient, since its cosine is always 1; give the "
                    "embedding of another image"
                )
        return (output * reference).sum(dim=1)


@dataclass(frozen=True)
class Proxy:
    """The dot product of an embedding with the proxy of a class.

    Attributes:
        vector: (D,) or (B, D); in EmbeddingCAM the mean of the class's normalised embeddings, normalised.

    Source:
        EmbeddingCAM (arXiv 2402.00909).
    """

    vector: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """Compute the dot products (B,) of embeddings (B, D)."""
        return (output * _reference("Proxy", output, self.vector)).sum(dim=1)


@dataclass(frozen=True)
class TripletMargin:
    """The margin of a triplet: z·p - z·n (cosine) or |z - n|² - |z - p|² (Euclidean).

    It is not the hinge loss, which has no gradient for an easy triplet, and the opposite sign.

    Attributes:
        positive: (D,) or (B, D).
        negative: (D,) or (B, D).
        hinge: Explain the loss max(0, `margin` - triplet margin) instead.
        margin: Of the loss.
        metric: "cosine" or "euclidean".
    """

    positive: Tensor
    negative: Tensor
    hinge: bool = False
    margin: float = 0.2
    metric: str = "cosine"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise TargetError(f"unknown metric {self.metric!r}; use one of {', '.join(METRICS)}")

    def __call__(self, output: Tensor) -> Tensor:
        """Compute the margins (B,) of embeddings (B, D)."""
        positive = _reference("TripletMargin", output, self.positive)
        negative = _reference("TripletMargin", output, self.negative)
        if self.metric == "cosine":
            margin = (output * (positive - negative)).sum(dim=1)
        else:
            margin = (output - negative).square().sum(dim=1) - (output - positive).square().sum(dim=1)
        return (self.margin - margin).clamp(min=0) if self.hinge else margin


@dataclass(frozen=True)
class Scalar:
    """Any other scalar, such as the value of a regression.

    Attributes:
        function: From the network's output to one scalar per image (B,).
    """

    function: Callable[[Any], Tensor]

    def __call__(self, output: Any) -> Tensor:
        """Apply the function to the network's output."""
        return self.function(output)


TARGETS = (ClassScore, SegmentationScore, TripletMargin, Similarity, Proxy, Scalar)


def _reference(name: str, output: object, reference: Tensor) -> Tensor:
    """Check a reference's shape, and move it to the embeddings' device and type."""
    shape = tuple(reference.shape)
    if (
        not isinstance(output, Tensor)
        or output.ndim != 2
        or shape not in ((output.shape[1],), (1, output.shape[1]), tuple(output.shape))
    ):
        raise TargetError(
            f"{name} needs embeddings (B, D) and a reference (D,) or (B, D), "
            f"got {_describe(output)} and {shape}; take both from the same network"
        )
    # A copy, since a tensor made in inference mode cannot be part of a graph.
    return reference.detach().clone().to(output)


def _require_classes(classes: Tensor, count: int) -> None:
    if classes.numel() == 0 or int(classes.min()) < 0 or int(classes.max()) >= count:
        raise TargetError(f"class {classes.tolist()} does not exist; the network has {count} classes, counted from 0")


def _describe(output: object) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__
