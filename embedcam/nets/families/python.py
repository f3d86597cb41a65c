"""`python:package.module:function`: a network that a function of the user's own makes."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import NetworkError
from ..family import NETWORKS, NetworkFamily, NetworkOptions

if TYPE_CHECKING:
    from ..network import Network


def load(path: str, options: NetworkOptions) -> Network:
    """Call a function that makes a network.

    The working directory is searched for the module too. Errors that the function raises are passed on unchanged.

    Args:
        path: "package.module:function"; the function takes no argument, and returns a module from images (B, 3, H, W)
            to embeddings (B, D), or a network that `wrap` made.
        options: Of a module all, see `wrap`; `weights` is a file with its state dict. Of a wrapped network the layer.

    Returns:
        The network.

    Raises:
        NetworkError: If there is no such function, it returns something else, or an option cannot be used.
        LayerError: If there is no such layer.
    """
    from torch import nn

    from ..network import Network
    from ..weights import load_into, read_state_dict
    from ..wrapped import default_preprocess, wrap

    module_name, _, name = path.partition(":")
    with _working_directory():
        try:
            function = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise NetworkError(
                f"network 'python:{path}' cannot be imported: {error}; write python:package.module:function"
            ) from error
        if not callable(function):
            raise NetworkError(f"{path} is {type(function).__name__}; name a function that returns a network")
        made = function()
    if isinstance(made, Network):
        options.refuse("weights", "output", "metric", "input_size", reason=f"{path} returns a wrapped network")
        if options.layer is not None:
            made.layer = options.layer
        return made
    if not isinstance(made, nn.Module):
        raise NetworkError(f"{path} returns {type(made).__name__}; it must return a torch module or a wrapped network")
    if options.weights is not None:
        load_into(made, read_state_dict(options.weights), options.weights, f"the module of {path}")
    preprocess = default_preprocess(made)
    if options.input_size is not None:
        preprocess = preprocess.resized_to(options.input_size)
    return wrap(made, options.layer, output=options.output, metric=options.metric or "cosine", preprocess=preprocess)


@contextlib.contextmanager
def _working_directory() -> Iterator[None]:
    # The script `embedcam` does not search it, `python -m embedcam` does.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


NETWORKS.register("python")(NetworkFamily(load, "package.module:function"))
