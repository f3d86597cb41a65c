"""Channel weights of training images, averaged over their triplets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..nets import layers
from ..nets.network import Network
from .gradcam import channel_weights

# Gradients of so many floats at most are held at once, 64 MiB; what torch makes on the way is several times that.
_BUDGET = 2**24


def direction(positives: Tensor, negatives: Tensor, metric: str) -> Tensor:
    """Give the derivative of the triplet margin by the anchor's embedding.

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
    sums: Tensor | None = None,
    cells: int | None = None,
) -> Tensor:
    """Average the channel weights of each anchor over its triplets.

    Grad-CAM is linear in the direction: all triplets of an anchor cost one vector-Jacobian product with the mean
    direction. Grad-CAM++ is not: one product a triplet, batched.

    Args:
        embed: From feature maps to embeddings (B, D); each image by itself.
        maps: Feature maps (B, K, h, w); or, for a head that starts with global average pooling, their means
            (B, K, 1, 1).
        directions: (B, pairs, D), from `direction`.
        method: "gradcam" or "gradcam++".
        sums: Feature maps summed over space (B, K), if `maps` holds means.
        cells: Cells h * w of a feature map, if `maps` holds means.

    Returns:
        (B, K).

    Source:
        Chen et al. 2020, Adapting Grad-CAM for Embedding Networks (arXiv 2001.06538), section 3.
    """
    with torch.enable_grad():
        leaf = maps.detach().requires_grad_()
        embeddings = embed(leaf)
    return weights_from_graph(embeddings, leaf, directions, method, sums=sums, cells=cells)


class Weighed(NamedTuple):
    """Channel weights of images, and what the pass that gave them saw.

    Attributes:
        weights: (B, K).
        maps: The layer's maps (B, K, h, w).
        embeddings: (B, D).
    """

    weights: Tensor
    maps: Tensor
    embeddings: Tensor


def weigh(net: Network, layer: str, images: Tensor, directions: Tensor, method: str = "gradcam") -> Weighed:
    """Work out the channel weights of images at any layer of a network, whatever its head.

    Args:
        net: The network, in evaluation mode.
        layer: Dotted name.
        images: (B, 3, H, W), normalised, on the network's device.
        directions: (B, pairs, D), from `direction`.
        method: "gradcam" or "gradcam++".

    Returns:
        Weights, maps and embeddings, without a graph.
    """
    with torch.no_grad(), layers.capture({layer: layers.resolve(net.body, layer)}, differentiable=True) as grabbed:
        embeddings = net(images)
        as_maps = partial(net.as_maps, images=images, layer=layer)
        weights = weights_from_graph(embeddings, grabbed[layer], directions, method, as_maps=as_maps)
        return Weighed(weights, as_maps(grabbed[layer].detach()), embeddings.detach())


def weights_from_graph(
    embeddings: Tensor,
    leaf: Tensor,
    directions: Tensor,
    method: str,
    *,
    as_maps: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    sums: Tensor | None = None,
    cells: int | None = None,
) -> Tensor:
    """Do the work of `grad_weights` on a graph that was already built from `leaf` to `embeddings`.

    Args:
        embeddings: (B, D), with a graph back to `leaf`.
        leaf: The feature layer's output as the network has it.
        directions: (B, pairs, D).
        method: "gradcam" or "gradcam++".
        as_maps: From the layer's output to (B, K, h, w).
        sums: As in `grad_weights`.
        cells: As in `grad_weights`.

    Returns:
        (B, K).
    """
    spread = 1 if cells is None else cells  # a mean over n cells passes 1 / n of its gradient to each
    if method == "gradcam":
        (gradient,) = torch.autograd.grad(embeddings, leaf, directions.mean(dim=1))
        return channel_weights(leaf.new_empty(0), as_maps(gradient) / spread, method)
    sums = as_maps(leaf.detach()).sum(dim=(2, 3)) if sums is None else sums
    total = torch.zeros_like(sums)
    pairs = directions.shape[1]
    chunk = max(1, _BUDGET // max(1, leaf.numel()))
    for start in range(0, pairs, chunk):
        part = directions[:, start : start + chunk].transpose(0, 1)
        (gradients,) = torch.autograd.grad(embeddings, leaf, part, is_grads_batched=True, retain_graph=True)
        for gradient in gradients:
            # Where one cell stands for `cells` equal ones, the sum over space has that many equal terms.
            total += channel_weights(sums, as_maps(gradient) / spread, method) * spread
    return total / pairs
