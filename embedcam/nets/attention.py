"""Find the layers that only prepare attention: queries, keys and values."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "convolution"}
_SOFTMAX = {"_softmax", "_safe_softmax", "softmax"}


class _Origin(NamedTuple):
    """What a tensor that depends on the image was computed from."""

    layers: frozenset[str] = frozenset()  # whose outputs it is, up to pointwise operations and normalisation
    factors: frozenset[str] = frozenset()  # the same of the two tensors whose product it is
    attention: bool = False  # computed by a softmax of such a product


class Projections(TorchDispatchMode):
    """Records layers whose output enters an attention without another linear operation between.

    Attention is `scaled_dot_product_attention`, or a softmax of a product of two tensors that depend on the image.

    Args:
        image: The input of the pass.

    Attributes:
        found: Names of the layers.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.found: set[str] = set()
        # By id of the tensor; the weak reference detects an id that is used again.
        self._origins: dict[int, tuple[weakref.ref[Tensor], _Origin]] = {}
        self._set(image, _Origin())

    def note(self, layer: str, output: Tensor) -> None:
        """Record that a tensor is the output of a layer."""
        origin = self._of(output)
        if origin is not None:
            self._set(output, origin._replace(layers=origin.layers | {layer}))

    def _of(self, tensor: Tensor) -> _Origin | None:
        entry = self._origins.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def _set(self, tensor: Tensor, origin: _Origin) -> None:
        self._origins[id(tensor)] = (weakref.ref(tensor), origin)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        origins = [origin for tensor in _tensors(args) if (origin := self._of(tensor)) is not None]
        if origins:
            origin = self._next(str(getattr(func, "overloadpacket", "")).removeprefix("aten."), origins)
            for tensor in _tensors((output,)):
                self._set(tensor, origin)
        return output

    def _next(self, name: str, origins: list[_Origin]) -> _Origin:
        names = frozenset[str]().union(*(origin.layers for origin in origins))
        if "scaled_dot_product" in name:
            self.found |= names
            return _Origin()
        if name in _SOFTMAX:
            self.found |= origins[0].factors
            return _Origin(attention=bool(origins[0].factors))
        if name in _PRODUCTS:
            if any(origin.attention for origin in origins):
                self.found |= names
            return _Origin(factors=names if len(origins) > 1 else frozenset())
        factors = frozenset[str]().union(*(origin.factors for origin in origins))
        return _Origin(names, factors, any(origin.attention for origin in origins))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
