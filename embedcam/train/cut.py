"""Split a backbone at a layer, to train only the layers after it."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ..errors import LayerError
from ..nets import layers
from ..nets.graph import part


def cut(backbone: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Split a backbone at a layer's output.

    Args:
        backbone: A torchvision network (anything that torch.fx can trace).
        layer: Dotted name of the last layer of the first part.

    Returns:
        The part up to and including the layer, and the part after it. They share the backbone's parameters, and
        together compute what the backbone computes in evaluation mode.

    Raises:
        LayerError: If there is no such layer, or a later layer also depends on the layers before it.
    """
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    layers.resolve(backbone, layer)
    with layers.evaluating(backbone), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the graphs of training and evaluation differ in dropout nodes
        _, nodes = get_graph_node_names(backbone)
        try:
            traced: Any = create_feature_extractor(
                backbone,
                eval_return_nodes={layer: "cut", nodes[-1]: "out"},
                train_return_nodes={nodes[-1]: "out"},
            )
        except (ValueError, RuntimeError) as error:
            raise LayerError(
                f"cannot cut {type(backbone).__name__} at {layer!r}: {error}; choose another layer"
            ) from error
        traced.eval()  # chooses the graph; also changes the mode of the shared layers, which `evaluating` restores
    ends = next(node for node in traced.graph.nodes if node.op == "output").args[0]

    try:
        return part(traced, None, ends["cut"]), part(traced, ends["cut"], ends["out"])
    except ValueError as error:
        raise LayerError(
            f"cannot train from {layer!r} on: a later layer also depends on the layers before it; "
            "choose a layer that everything passes through, such as the end of a stage"
        ) from error
