"""What follows the feature layer, as a function of the mean of each feature map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .tape import Node, Tape


def of_means(tape: Tape, maps: Tensor, embeddings: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return the function that a network applies to the means of its feature maps.

    Args:
        tape: Of the forward pass of one image.
        maps: Its feature maps, (1, K, h, w).
        embeddings: Its embedding, (1, D).

    Returns:
        From means (B, K) to embeddings (B, D), differentiable; it uses the network's parameters. None if the network
        sees more of the maps than their means.
    """
    nodes = tape.path(embeddings) or []
    means = maps.mean(dim=(2, 3)).flatten()
    pooled = next((node for node in nodes if _equal(node.value, means)), None)
    if pooled is None:
        return None
    after = nodes[nodes.index(pooled) + 1 :]

    def embed(vector: Tensor) -> Tensor:
        values = {pooled: vector.to(pooled.value.dtype).reshape(pooled.value.shape).clone()}

        def value(leaf: Any) -> Any:
            return values[leaf] if isinstance(leaf, Node) else leaf

        for node in after:
            values[node] = node.call(value)
        return values[nodes[-1]][0]

    try:
        embed(means)
    except (KeyError, RuntimeError):  # a value from before the pooling; number types of autocast within the network
        return None
    return torch.vmap(embed)


def _equal(value: Tensor, means: Tensor) -> bool:
    if value.numel() != means.numel():
        return False
    tolerance = max(1e-4, 4 * torch.finfo(value.dtype).eps)
    return torch.allclose(value.flatten().float(), means, rtol=tolerance, atol=1e-6)
