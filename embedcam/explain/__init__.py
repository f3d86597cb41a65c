"""The online half: explain images with one forward pass and a weight database."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiled import CompiledExplainer
    from .explainer import Explainer
    from .onnx import OnnxExplainer

__all__ = ["CompiledExplainer", "Explainer", "OnnxExplainer"]

# Loaded when first used: an exported explainer runs without torch.
_HOME = {"CompiledExplainer": "compiled", "Explainer": "explainer", "OnnxExplainer": "onnx"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'embedcam.explain' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
