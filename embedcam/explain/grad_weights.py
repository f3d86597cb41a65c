"""Channel weights of training images, averaged over their triplets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import TargetError
from ..nets import layers
from ..nets.network import Network
from .weighting import WEIGHTINGS, Weighting

# Gradients are computed in chunks of at most this many floats, 64 MiB; torch's intermediate results take several times
# that.
_BUDGET = 2**24


def direction(positives: Tensor, negatives: Tensor, metric: str) -> Tensor:
    """Compute the gradient of the triplet margin with respect to the anchor's embedding.

    It does not depend on the anchor: z·p - z·n gives p - n, and |z - n|² - |z - p|² gives 2 (p - n).

    Args:
        positives: (..., D).
        negatives: (..., D).
        metric: "cosine" or "euclidean".

    Returns:
        (..., D).
    """
    return (positives - negatives) * (1.0 if metric == "cosine" else 2.0)


def grad_weights(
    embed: Callable[[Tensor], Tensor],
    maps: Tensor,
    directions: Tensor,
    method: str = "gradcam",
    *,
    cells: int | None = None,
) -> Tensor:
    """Average the channel weights of each anchor over its triplets.

    A linear weighting takes one vector-Jacobian product per anchor, with the mean direction; others take one per
    triplet, batched.

    Args:
        embed: From feature maps to embeddings (B, D); each image is embedded independently.
        maps: Feature maps (B, K, h, w); with `cells`, their means (B, K, 1, 1).
        directions: (B, pairs, D), from `direction`.
        method: Name of a channel weighting, one of `WEIGHTINGS`.
        cells: Cells h * w of a feature map, for a head that starts with global average pooling and a weighting that
            has a closed form (`Weighting.pooled`).

    Returns:
        (B, K).

    Raises:
        TargetError: If there is no such weighting, or it has no closed form and `cells` is given.

    Source:
        Chen et al. 2020, Adapting Grad-CAM for Embedding Networks (arXiv 2001.06538), section 3.
    """
    with torch.enable_grad():
        leaf = maps.detach().requires_grad_()
        embeddings = embed(leaf)
    weighting = WEIGHTINGS[method]
    if cells is None:
        return _average(embeddings, leaf, directions, weighting, partial(weighting, maps))
    means, pooled = maps[..., 0, 0], weighting.pooled
    if pooled is None:
        raise TargetError(f"method {method!r} has no form for pooled maps; give whole feature maps, without cells")
    return _average(embeddings, leaf, directions, weighting, lambda grad: pooled(means, grad[..., 0, 0], cells))


class WeightedMaps(NamedTuple):
    """Channel weights of images, and the maps and embeddings of the same forward pass.

    Attributes:
        weights: (B, K), float32, or float64 for a network in float64.
        maps: The layer's maps (B, K, h, w), of the same type.
        embeddings: float32 (B, D).
    """

    weights: Tensor
    maps: Tensor
    embeddings: Tensor


def weigh(net: Network, layer: str, images: Tensor, directions: Tensor, method: str = "gradcam") -> WeightedMaps:
    """Compute the channel weights of images at any layer of a network, whatever its head.

    Args:
        net: The network, in evaluation mode.
        layer: Dotted name.
        images: (B, 3, H, W), normalised, on the network's device.
        directions: (B, pairs, D), from `direction`.
        method: Name of a channel weighting, one of `WEIGHTINGS`.

    Returns:
        Weights, maps and embeddings, without a graph.

    Raises:
        TargetError: If there is no such weighting.
    """
    net.reading(layer)  # measured before, since that runs the network too
    with torch.no_grad(), layers.capture({layer: layers.resolve(net.body, layer)}, differentiable=True) as captured:
        embeddings, leaf = net(images), captured[layer]
        as_maps = partial(net.as_maps, images=images, layer=layer)
        maps = _widened(as_maps(leaf.detach()))
        weighting = WEIGHTINGS[method]
        weights_of = lambda gradients: weighting(maps, _widened(as_maps(gradients)))  # noqa: E731
        weights = _average(embeddings, leaf, directions, weighting, weights_of)
        return WeightedMaps(weights, maps, embeddings.detach())


def _average(
    embeddings: Tensor,
    leaf: Tensor,
    directions: Tensor,
    weighting: Weighting,
    weights_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """Average `weights_of` the gradients at `leaf` over the directions."""
    if weighting.linear:
        return weights_of(torch.autograd.grad(embeddings, leaf, directions.mean(dim=1))[0])
    pairs = directions.shape[1]
    chunk = max(1, _BUDGET // max(1, leaf.numel()))
    total: Tensor | float = 0.0
    for start in range(0, pairs, chunk):
        part = directions[:, start : start + chunk].transpose(0, 1)
        (gradients,) = torch.autograd.grad(embeddings, leaf, part, is_grads_batched=True, retain_graph=True)
        for gradient in gradients:
            total = total + weights_of(gradient)
    return torch.as_tensor(total / pairs)


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
