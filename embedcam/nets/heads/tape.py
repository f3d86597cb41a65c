"""Record what a network computes from the output of its feature layer on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


@dataclass(eq=False)
class Node:
    """A value that depends on the output of the feature layer.

    Attributes:
        value: The tensor, as it was before a later function worked on it in place.
        function: The function of torch that returned it; None for the output of the feature layer.
        args: Its arguments; a `Node` stands for each of its values that depends on the output of the feature layer.
        kwargs: Likewise.
        item: Position among several tensors that the function returned; None if it returned one.
    """

    value: Tensor
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    item: int | None = None

    @cached_property
    def name(self) -> str:
        """Name of the function, without the marks of operators and of work in place."""
        name = str(getattr(self.function, "__name__", ""))
        bare = name.strip("_")
        return bare.removeprefix("i") if name.startswith("__i") and bare[1:] in _IN_PLACE else bare

    @cached_property
    def parents(self) -> list[Node]:
        """The nodes among the arguments, in order."""
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Node)]

    def call(self, replace: Callable[[Any], Any]) -> Tensor:
        """Call the function again.

        Args:
            replace: From a node or tensor among the arguments to the tensor that is used instead.

        Returns:
            The value that belongs to this node.
        """
        assert self.function is not None
        result = self.function(*mapped(self.args, replace), **mapped(self.kwargs, replace))
        chosen: Tensor = result if self.item is None else result[self.item]
        return chosen


_IN_PLACE = ("add", "sub", "mul", "truediv", "div", "pow")


class Tape(TorchFunctionMode):
    """Records the functions that depend on a layer's output, in the order in which they ran.

    Args:
        layer: The feature layer; recording starts when it has run in this thread.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer, self._thread = layer, threading.get_ident()
        self._handle: RemovableHandle | None = None
        self._nodes: dict[int, Node] = {}  # by the tensor's id; its node keeps the tensor alive
        self.source: Node | None = None

    def __enter__(self) -> Tape:
        self._handle = self._layer.register_forward_hook(self._start)
        return self

    def __exit__(self, *raised: Any) -> None:
        assert self._handle is not None
        self._handle.remove()
        if self.source is not None:
            super().__exit__(*raised)

    def _start(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and self.source is None and threading.get_ident() == self._thread:
            self.source = self._nodes[id(output)] = Node(output)
            super().__enter__()  # only now: before the feature layer, nothing is slowed down

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, and record it if an argument is a node's value."""
        kwargs = kwargs or {}
        known = self._nodes
        if not any(isinstance(leaf, Tensor) and id(leaf) in known for leaf in leaves((args, kwargs))):
            return func(*args, **kwargs)
        arguments, options = mapped(args, self._node), mapped(kwargs, self._node)
        if args and isinstance(arguments[0], Node) and _in_place(func, args, kwargs):
            arguments[0].value = args[0].clone()
        output = func(*args, **kwargs)
        if isinstance(output, Tensor):
            known[id(output)] = Node(output, func, arguments, options)
        elif isinstance(output, tuple | list):
            for item, tensor in enumerate(output):
                if isinstance(tensor, Tensor):
                    known[id(tensor)] = Node(tensor, func, arguments, options, item)
        return output

    def _node(self, leaf: Any) -> Any:
        return self._nodes.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

    def path(self, result: Tensor) -> list[Node] | None:
        """List the nodes that a result was computed from, each after its parents.

        Args:
            result: A tensor that the network computed.

        Returns:
            The nodes, from the output of the feature layer to the result; None if the recorded functions do not lead
            from one to the other.
        """
        if self.source is None or id(result) not in self._nodes:
            return None
        ordered: dict[Node, None] = {}
        waiting = [(self._nodes[id(result)], False)]
        while waiting:
            node, ready = waiting.pop()
            if ready:
                ordered[node] = None
            elif node not in ordered:
                waiting += [(node, True), *((parent, False) for parent in reversed(node.parents))]
        return list(ordered) if self.source in ordered else None


def leaves(value: Any) -> Iterator[Any]:
    """Iterate over what tuples, lists and dictionaries contain, at any depth.

    Args:
        value: Any value.

    Yields:
        Everything that is none of these.
    """
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        yield from leaves(tuple(value.values()))
    else:
        yield value


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Replace what tuples, lists and dictionaries contain, at any depth.

    Args:
        value: Any value.
        change: From what is found to what is put in its place.

    Returns:
        The same structure.
    """
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(mapped(item, change) for item in value)
    return change(value)


def _in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    named = (name.endswith("_") and not name.startswith("__")) or name.startswith("__i")
    return named or bool(kwargs.get("inplace")) or any(arg is True for arg in args)  # of functional.relu and others
