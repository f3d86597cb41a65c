"""Helpers of both interfaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import LayerError
from ..nets import layers
from ..nets.network import Network


def name_of(model: nn.Module, layer: nn.Module) -> str:
    """Find the name of a layer.

    Args:
        model: The model, or a `Network`, whose body is searched.
        layer: A layer of the model.

    Returns:
        The layer's dotted name.

    Raises:
        LayerError: If the layer is not part of the model.
    """
    body = model.body if isinstance(model, Network) else layers.original(model)
    for name in layers.names(body):
        if body.get_submodule(name) is layer:
            return name
    raise LayerError(f"this {type(layer).__name__} is not a layer of {type(body).__name__}; pass one of its modules")


class Kept:
    """A target that keeps the network's output, so that no second forward pass is needed.

    Args:
        target: The wrapped target.

    Attributes:
        output: The network's latest output, detached.
    """

    def __init__(self, target: Callable[[Any], Tensor]) -> None:
        self._target = target
        self.output: Any = None

    def __call__(self, output: Any) -> Tensor:
        """Compute the scores (B,) from the network's output."""
        self.output = output.detach() if isinstance(output, Tensor) else output
        return self._target(output)
