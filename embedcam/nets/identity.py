"""Which network is it? A hash of the parameters that its embedding depends on, the same in every container."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import layers

NUMBER_TYPES = ("float32", "float16", "bfloat16")


def used(module: nn.Module, run: Callable[[], Tensor]) -> set[str]:
    """Find the parameters and buffers that a result depends on.

    Args:
        module: The module.
        run: A forward pass of it, which returns the result.

    Returns:
        Their names in `state_dict`; all names, if the result depends on none as far as can be seen.
    """
    state = module.state_dict(keep_vars=True)
    flow = _Flow(state)
    with layers.evaluating(module), layers.uncompiled(), torch.no_grad(), flow:
        result = run()
    return set(flow.sources(result) or state)


def sha256(state: dict[str, Tensor], number_type: str = "float32") -> str:
    """Hash parameters: names without the containers', shapes, and values rounded to one number type.

    Args:
        state: Name -> tensor, of those that are `used`.
        number_type: One of `NUMBER_TYPES`.

    Returns:
        64 hexadecimal digits.
    """
    levels = {name: [part for part in name.split(".") if part not in ("_orig_mod", "module")] for name in state}
    shared = 0
    for parts in zip(*(each[:-1] for each in levels.values()), strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    digest = hashlib.sha256()
    for name in sorted(levels, key=lambda name: levels[name][shared:]):
        value = state[name].detach()
        rounded = value.float().to(getattr(torch, number_type)) if value.is_floating_point() else value
        digest.update(f"{'.'.join(levels[name][shared:])} {tuple(value.shape)}\n".encode())
        digest.update(rounded.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def number_type(state: dict[str, Tensor]) -> str:
    """Return the coarsest number type among parameters.

    Args:
        state: Name -> tensor.

    Returns:
        One of `NUMBER_TYPES`; float32 for finer ones.
    """
    types = {str(value.dtype).removeprefix("torch.") for value in state.values()}
    return next((name for name in reversed(NUMBER_TYPES) if name in types), "float32")


class _Flow(TorchDispatchMode):
    """Follows which tensors every result is computed from, by their memory: views and work in place count too."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        # Tensors of one mapped file may share their memory, and are told by their offset in it.
        memory = Counter(StorageWeakRef(value.untyped_storage()) for value in state.values())
        self._pools = {each for each, count in memory.items() if count > 1}
        self._sources: dict[tuple[StorageWeakRef, int], frozenset[str]] = {}
        for name, value in state.items():
            self._add(value, frozenset([name]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = self.sources((args, kwargs))
        for tensor in tree_leaves(result):
            if sources and isinstance(tensor, Tensor):
                self._add(tensor, sources)
        return result

    def sources(self, values: Any) -> frozenset[str]:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        return frozenset().union(*(self._sources.get(self._key(tensor), frozenset()) for tensor in tensors))

    def _add(self, tensor: Tensor, sources: frozenset[str]) -> None:
        key = self._key(tensor)
        self._sources[key] = self._sources.get(key, frozenset()) | sources

    def _key(self, tensor: Tensor) -> tuple[StorageWeakRef, int]:
        # The weak reference keeps the memory's address from being used again.
        memory = StorageWeakRef(tensor.untyped_storage())
        return memory, int(tensor.storage_offset()) if memory in self._pools else 0
