"""Parts of a traced network."""

from __future__ import annotations

from torch import fx


def part(traced: fx.GraphModule, start: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """Extract the part of a traced network that computes one value.

    Args:
        traced: The network; its layers are shared, not copied.
        start: The value that the part takes as input instead of the image; None if it takes the image.
        end: The value that the part returns.

    Returns:
        The part, with only the layers that it needs.

    Raises:
        ValueError: If `end` depends on the image not only through `start`.
    """
    needed: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is not start and node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    if start is not None:
        copied[start] = graph.placeholder("maps")
    for node in traced.graph.nodes:
        if node in needed:
            if start is not None and node.op == "placeholder":
                raise ValueError("its head needs more than the last feature maps")
            copied[node] = graph.node_copy(node, lambda source: copied[source])
    graph.output(copied[end])
    return fx.GraphModule(traced, graph)
