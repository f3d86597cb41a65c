"""Run a model on noise and observe its layers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import LayerError
from . import layers

T = TypeVar("T")


def noise(model: nn.Module, input_size: tuple[int, int], batch: int = 1) -> Tensor:
    """Make images of noise for a model, the same in every call.

    Args:
        model: A module that takes images.
        input_size: (H, W).
        batch: Number B of images.

    Returns:
        (B, C, H, W), normal, of the model's device and number type; C is `layers.in_channels`.
    """
    generator = torch.Generator().manual_seed(0)
    return layers.as_input(model, torch.randn(batch, layers.in_channels(model), *input_size, generator=generator))


@contextlib.contextmanager
def observing(model: nn.Module, record: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """Call a function with every layer's output in the forward passes of this thread.

    Args:
        model: The model.
        record: Called with name, layer and output of each layer whose output is a tensor, before later layers run.

    Yields:
        Nothing.
    """
    mine = threading.get_ident()

    def hook(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and threading.get_ident() == mine:
            record(name, module, output)

    handles = [
        module.register_forward_hook(lambda module, _inputs, output, name=name: hook(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with layers.uncompiled():  # compiled code runs neither hooks nor dispatch modes
            yield
    finally:
        for handle in handles:
            handle.remove()


def run(model: nn.Module, layer: str, image: Tensor, look: Callable[[Tensor], T]) -> T:
    """Run a model in evaluation mode and evaluate a function of a layer's output.

    Args:
        model: A module that takes images.
        layer: Dotted name of the layer.
        image: (1, C, H, W).
        look: Called with the layer's first output before later layers run, which may work in place.

    Returns:
        The result of `look`.

    Raises:
        LayerError: If the layer does not exist or does not run.
    """
    seen: list[T] = []

    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not seen:
            seen.append(look(output))

    handle = layers.resolve(model, layer).register_forward_hook(hook)
    try:
        with layers.uncompiled(), layers.evaluating(model):
            model(image)
    finally:
        handle.remove()
    if not seen:
        raise LayerError(f"layer {layer!r} did not run, or its output is not a tensor; choose another")
    return seen[0]
