"""Follow which layers a tensor is computed from, and find those that only prepare attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .of_tensors import OfTensors
from .passes import tensors

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "convolution"}
_SOFTMAX = {"_softmax", "_safe_softmax", "softmax"}


class _Origin(NamedTuple):
    """What a tensor that depends on the image was computed from."""

    layers: frozenset[str] = frozenset()  # whose outputs it is, up to pointwise operations and normalisation
    factors: frozenset[str] = frozenset()  # the same of the two tensors whose product it is
    attention: bool = False  # computed by a softmax of such a product
    gate: bool = False  # computed by a sigmoid
    upstream: int = 0  # layers that it depends on, one bit each


class Origins(TorchDispatchMode):
    """Follows through one forward pass which layers each tensor is computed from.

    A layer prepares attention, such as its queries, keys and values, if its output enters an attention without another
    linear operation between: `scaled_dot_product_attention`, or a softmax of a product of two tensors that depend on
    the image. So does a layer of which a sigmoid is computed that multiplies other values.

    Args:
        image: The input of the pass.

    Attributes:
        projections: Names of the layers that prepare attention.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.projections: set[str] = set()
        self._bits: dict[str, int] = {}
        self._origins: OfTensors[_Origin] = OfTensors()
        self._origins.set(image, _Origin())

    def note(self, layer: str, output: Tensor) -> None:
        """Record that a tensor is the output of a layer."""
        origin = self._origins.get(output)
        if origin is not None:
            bit = self._bits.setdefault(layer, 1 << len(self._bits))
            self._origins.set(output, origin._replace(layers=origin.layers | {layer}, upstream=origin.upstream | bit))

    def upstream(self, tensors: Iterable[Tensor]) -> set[str]:
        """Return the names of the layers that any of some tensors depends on."""
        bits = 0
        for tensor in tensors:
            bits |= getattr(self._origins.get(tensor), "upstream", 0)
        return self._named(bits)

    def _named(self, bits: int) -> set[str]:
        return {name for name, bit in self._bits.items() if bits & bit}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = (*args, *(kwargs or {}).values())
        origins = [origin for tensor in tensors(inputs) if (origin := self._origins.get(tensor)) is not None]
        if origins:
            name = str(getattr(func, "overloadpacket", "")).removeprefix("aten.")
            origin = self._next(name, origins)
            for tensor in tensors(output):
                self._origins.set(tensor, origin)
                if name.endswith("_") and tensor._base is not None:  # written into a part of it
                    base = self._origins.get(tensor._base) or _Origin()
                    self._origins.set(tensor._base, origin._replace(upstream=origin.upstream | base.upstream))
        return output

    def _next(self, name: str, origins: list[_Origin]) -> _Origin:
        names, factors, upstream = frozenset[str](), frozenset[str](), 0
        for origin in origins:
            names, factors, upstream = names | origin.layers, factors | origin.factors, upstream | origin.upstream
        attention = any(origin.attention for origin in origins)
        if "scaled_dot_product" in name:
            self.projections |= names
            return _Origin(upstream=upstream)
        if name in _SOFTMAX:
            self.projections |= factors
            return _Origin(attention=bool(factors), upstream=upstream)
        if name in _PRODUCTS:
            if attention:
                self.projections |= names
            return _Origin(factors=names if len(origins) > 1 else frozenset(), upstream=upstream)
        if name == "mul" and len(origins) == 2 and any(origin.gate for origin in origins):
            gates, gated = sorted(origins, key=lambda origin: not origin.gate)
            self.projections |= self._named(gates.upstream & ~gated.upstream)
            return _Origin(gated.layers, factors, attention, upstream=upstream)
        return _Origin(names, factors, attention, name == "sigmoid", upstream)
