"""Keep gradients where a network switches them off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class GradientsKept(TorchFunctionMode):
    """Ignores `torch.no_grad` inside a forward pass, such as that of a frozen trunk, so that gradients pass through.

    Args:
        active: Whether to ignore it now.
    """

    def __init__(self, active: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self._active = active

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and not args[0] and self._active():
            return None
        return func(*args, **(kwargs or {}))
