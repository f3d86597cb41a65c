"""Measure whether an embedding depends on an image only through one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import layers
from .passes import noise, tensors


def bypassing(
    model: nn.Module,
    layer: str,
    batch_axis: int,
    input_size: tuple[int, int],
    select: Callable[[Any], Any] | None = None,
) -> float:
    """Return the share of the difference of two embeddings that does not come from a layer.

    The model runs on two images, and again with the layer's outputs exchanged: then the embeddings are exchanged too,
    unless something bypasses the layer. Since a class token bypasses the layers of its own block, the inputs of the
    module around the layer are exchanged as well, and the smaller share counts.

    Args:
        model: A module that takes images (B, C, H, W).
        layer: Dotted name of a layer whose output is a tensor.
        batch_axis: Of the images in the output.
        input_size: (H, W).
        select: From the model's output to the embedding; None if the whole output counts.

    Returns:
        From 0, nothing, to about 1; 0 if the embeddings do not differ.
    """
    model = layers.original(model)
    images = noise(model, input_size, 2)

    def exchanged(value: Any) -> Any:
        if isinstance(value, Tensor):
            fits = value.ndim > batch_axis and value.shape[batch_axis] == 2
            return value.flip(batch_axis) if fits else value
        if isinstance(value, tuple | list):
            return type(value)(map(exchanged, value))
        return value

    def embed() -> Tensor:
        output = model(images)
        return torch.cat([each.flatten(1).float() for each in tensors(output if select is None else select(output))], 1)

    def left() -> float:
        return float((embed() - own.flip(0)).norm() / difference)

    with torch.no_grad(), layers.uncompiled(), layers.evaluating(model):
        own = embed()
        difference = (own - own.flip(0)).norm()
        if not difference > 0:
            return 0.0
        module, around = layers.resolve(model, layer), layer.rpartition(".")[0]
        with module.register_forward_hook(lambda _module, _inputs, output: exchanged(output)):
            share = left()
        if around:
            block = layers.resolve(model, around)
            with block.register_forward_pre_hook(lambda _module, inputs: exchanged(inputs)):
                share = min(share, left())
        return share
