"""Run a model on noise and observe its layers."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import LayerError
from . import layers

T = TypeVar("T")

_USUAL = 4
_TRIED: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def noise(model: nn.Module, input_size: tuple[int, int], batch: int = 1) -> Tensor:
    """Make images of noise for a model, the same in every call.

    Args:
        model: A module that takes images.
        input_size: (H, W).
        batch: Number B of images.

    Returns:
        (B, C, H, W), normal, of the model's device and number type.
    """
    generator = torch.Generator().manual_seed(0)
    return layers.as_input(model, torch.randn(batch, in_channels(model, input_size), *input_size, generator=generator))


def in_channels(model: nn.Module, input_size: tuple[int, int]) -> int:
    """Return the number of channels of a model's images.

    Args:
        model: A module that takes images.
        input_size: (H, W).

    Returns:
        The channels that its first convolution takes. A number above 4 is tried: where the model rearranges pixels
        into channels first, images have 3. So they have where there is no convolution.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    count = 3 if first is None else first.in_channels
    if count > _USUAL and model not in _TRIED:
        images = layers.as_input(model, torch.zeros(1, count, *input_size))
        try:
            with torch.no_grad(), layers.evaluating(model):
                model(images)
        except RuntimeError:
            count = 3
        _TRIED[model] = count
    return _TRIED.get(model, count)


@contextlib.contextmanager
def observing(model: nn.Module, record: Callable[[str, nn.Module, tuple[object, ...], Tensor], None]) -> Iterator[None]:
    """Call a function with every layer's output in the forward passes of this thread.

    Args:
        model: The model.
        record: Called with name, layer, inputs and output of each layer whose output is a tensor, before later layers
            run.

    Yields:
        Nothing.
    """
    mine = threading.get_ident()

    def hook(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor) and threading.get_ident() == mine:
            record(name, module, inputs, output)

    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: hook(name, module, inputs, output))
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


def tensors(output: object) -> Iterator[Tensor]:
    """Yield the tensors in a module's output.

    Args:
        output: A tensor, or dictionaries, lists and tuples of them.

    Yields:
        Each tensor.
    """
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for item in output:
            yield from tensors(item)
