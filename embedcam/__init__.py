"""Explain embedding networks: class activation maps without backpropagation, from a precomputed weight database."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import EmbedcamError, MissingDependencyError

if TYPE_CHECKING:
    from . import data as data
    from . import database as database
    from . import evaluate as evaluate
    from . import explain as explain
    from . import gradient, receptive_field
    from . import heatmap as heatmap
    from . import layers as layers
    from . import nets as nets
    from . import show as show
    from . import train as train
    from .database import WeightDatabase
    from .database.build import build_database
    from .explain import Explainer, OnnxExplainer
    from .explanation import Explanation
    from .nets import EmbeddingNet, wrap
    from .preprocess import Preprocess

__version__ = "0.1.0"

__all__ = [
    "EmbedcamError",
    "EmbeddingNet",
    "Explainer",
    "Explanation",
    "OnnxExplainer",
    "Preprocess",
    "WeightDatabase",
    "build_database",
    "gradient",
    "receptive_field",
    "wrap",
]

# Loaded when first used: reading a database needs no torch, explaining needs nothing of training.
_HOME = {
    "EmbeddingNet": "nets",
    "wrap": "nets",
    "Explainer": "explain",
    "OnnxExplainer": "explain.onnx",
    "Explanation": "explanation",
    "Preprocess": "preprocess",
    "WeightDatabase": "database",
    "build_database": "database.build",
}
_ROOMS = (
    "data",
    "database",
    "evaluate",
    "explain",
    "gradient",
    "heatmap",
    "layers",
    "nets",
    "receptive_field",
    "show",
    "train",
)


def _load(name: str) -> Any:
    if name not in _HOME and name not in _ROOMS:
        raise AttributeError(f"module 'embedcam' has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_HOME.get(name, name)}", __name__)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"embedcam.{name} needs {error.name}; install it with "
            '`pip install "embedcam[train]"` (or "embedcam[torch]" to only explain)'
        ) from error
    value = module if name in _ROOMS else getattr(module, name)
    globals()[name] = value
    return value


if not TYPE_CHECKING:  # a type checker is to find misspelt names
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})
