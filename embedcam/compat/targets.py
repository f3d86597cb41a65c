"""What both interfaces need: a layer's name, and the network's output beside its explanation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import LayerError
from ..nets import layers
from ..nets.network import Network


def name_of(model: nn.Module, layer: nn.Module) -> str:
    """Find the name of a layer that is given as a module.

    Args:
        model: The model; of a `Network`, its body is looked through.
        layer: One of its layers.

    Returns:
        Its dotted name.

    Raises:
        LayerError: If it is none of the model's.
    """
    body = model.body if isinstance(model, Network) else layers.original(model)
    for name in layers.names(body):
        if body.get_submodule(name) is layer:
            return name
    raise LayerError(f"this {type(layer).__name__} is no layer of {type(body).__name__}; give one of its own modules")


class Kept:
    """A target that also keeps the output which it was asked about: no second forward pass is needed for that.

    Args:
        target: What is explained.

    Attributes:
        output: What the network last put out, without its graph.
    """

    def __init__(self, target: Callable[[Any], Tensor]) -> None:
        self._target = target
        self.output: Any = None

    def __call__(self, output: Any) -> Tensor:
        """Give the scores.

        Args:
            output: Of the network.

        Returns:
            (B,).
        """
        self.output = output.detach() if isinstance(output, Tensor) else output
        return self._target(output)
