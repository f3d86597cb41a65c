"""What is explained: small callables that turn a network's output into one scalar an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TargetError

Target = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClassScore:
    """The score of a class, before the softmax.

    Attributes:
        index: The class of all images, one class an image (B,), or None for each image's best class.
    """

    index: int | Tensor | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """Pick the scores.

        Args:
            output: Logits (B, classes).

        Returns:
            (B,).

        Raises:
            TargetError: If the class does not exist.
        """
        if output.ndim != 2:
            raise TargetError(f"ClassScore needs logits (B, classes), got {tuple(output.shape)}; choose another target")
        if self.index is None:
            index = output.argmax(dim=1)
        else:
            index = torch.as_tensor(self.index, device=output.device).expand(len(output))
        if int(index.min()) < 0 or int(index.max()) >= output.shape[1]:
            raise TargetError(f"class {self.index} does not exist: the network has {output.shape[1]} classes, counted from 0")
        return output.gather(1, index[:, None])[:, 0]


@dataclass(frozen=True)
class Similarity:
    """How near an embedding is to a reference: their dot product.

    Attributes:
        reference: (D,) or (B, D), from another image.
    """

    reference: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """Compare.

        Args:
            output: Embeddings (B, D).

        Returns:
            (B,).

        Raises:
            TargetError: If the shapes differ, or the reference is the image's own embedding.
        """
        reference = self.reference.to(output)
        _require_width("Similarity", output, reference)
        lengths = torch.linalg.vector_norm(output, dim=1)
        if bool(torch.isclose(lengths, torch.ones_like(lengths), atol=1e-4).all()):
            own = (output.detach() - reference).abs().amax(dim=1) < 1e-6
            if bool(own.any()):
                raise TargetError(
                    "Similarity to the image itself has no gradient: its cosine is 1 whatever the image shows; "
                    "give the embedding of another image"
                )
        return (output * reference).sum(dim=1)


@dataclass(frozen=True)
class Proxy:
    """How near an embedding is to a class's proxy (EmbeddingCAM, arXiv 2402.00909).

    Attributes:
        vector: (D,) or (B, D), for example the mean embedding of a class.
    """

    vector: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """Compare.

        Args:
            output: Embeddings (B, D).

        Returns:
            (B,).

        Raises:
            TargetError: If the shapes differ.
        """
        vector = self.vector.to(output)
        _require_width("Proxy", output, vector)
        return (output * vector).sum(dim=1)


@dataclass(frozen=True)
class TripletMargin:
    """How much nearer an embedding is to its positive than to its negative.

    The margin is z·p - z·n (cosine) or |z - n|² - |z - p|² (Euclidean), not cut off at a hinge: an easy triplet's
    hinged loss has no gradient at all.

    Attributes:
        positive: (D,) or (B, D).
        negative: (D,) or (B, D).
        metric: "cosine" or "euclidean".
        hinge: None, or the margin m of the literal loss max(0, m - margin).
    """

    positive: Tensor
    negative: Tensor
    metric: str = "cosine"
    hinge: float | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """Measure the margin.

        Args:
            output: Embeddings (B, D).

        Returns:
            (B,).

        Raises:
            TargetError: If the shapes differ.
        """
        positive, negative = self.positive.to(output), self.negative.to(output)
        _require_width("TripletMargin", output, positive)
        _require_width("TripletMargin", output, negative)
        if self.metric == "cosine":
            margin = (output * (positive - negative)).sum(dim=1)
        else:
            margin = (output - negative).square().sum(dim=1) - (output - positive).square().sum(dim=1)
        return margin if self.hinge is None else (self.hinge - margin).clamp(min=0)


@dataclass(frozen=True)
class Scalar:
    """Anything else, such as the value of a regression.

    Attributes:
        function: From the network's output to one scalar an image (B,).
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, output: Tensor) -> Tensor:
        """Apply the function.

        Args:
            output: What the network puts out.

        Returns:
            (B,).
        """
        return self.function(output)


def _require_width(name: str, output: Tensor, reference: Tensor) -> None:
    if output.ndim != 2 or reference.shape[-1] != output.shape[1]:
        raise TargetError(
            f"{name} needs embeddings of the same width, got {tuple(output.shape)} and {tuple(reference.shape)}; "
            "take both from the same network"
        )
