"""Explain embedding networks: class activation maps without backpropagation, from a precomputed weight database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import EmbedcamError, MissingDependencyError
from .utils import lazy

if TYPE_CHECKING:
    from . import data as data
    from . import database as database
    from . import evaluate as evaluate
    from . import explain as explain
    from . import gallery as gallery
    from . import gradient, receptive_field
    from . import nets as nets
    from . import onnx as onnx
    from . import show as show
    from . import train as train
    from .builder import build_database
    from .data.preprocess import Preprocess
    from .database import WeightDatabase
    from .explain.explainer import Explainer
    from .explain.explanation import Explanation
    from .gallery import Gallery
    from .nets import EmbeddingNet, load_network, wrap
    from .onnx import OnnxExplainer

__all__ = [
    "EmbedcamError",
    "EmbeddingNet",
    "Explainer",
    "Explanation",
    "Gallery",
    "OnnxExplainer",
    "Preprocess",
    "WeightDatabase",
    "__version__",
    "build_database",
    "gradient",
    "load_network",
    "receptive_field",
    "wrap",
]

# Loaded when first used: reading a database needs no torch, explaining needs nothing of training.
_load, __dir__ = lazy.attach(
    __name__,
    {
        "EmbeddingNet": ".nets",
        "Explainer": ".explain",
        "Explanation": ".explain",
        "Gallery": ".gallery",
        "OnnxExplainer": ".onnx",
        "Preprocess": ".data.preprocess",
        "WeightDatabase": ".database",
        "build_database": ".builder",
        "load_network": ".nets",
        "wrap": ".nets",
        **{
            room: f".{room}"
            for room in ("data", "database", "evaluate", "explain", "gallery", "gradient", "nets", "onnx")
        },
        **{room: f".{room}" for room in ("receptive_field", "show", "train")},
    },
)


def _attribute(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"embedcam.{name} needs {error.name}; install it with "
            '`pip install "embedcam[train]"` (or "embedcam[torch]" to only explain)'
        ) from error


if not TYPE_CHECKING:  # a type checker is to find misspelt names
    __getattr__ = _attribute
