"""Wrap any torch module as an embedding network."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ..data.preprocess import Preprocess
from ..errors import LayerError, NetworkError
from . import layers
from .bypass import bypassing
from .choice import suggest
from .layout import GivenLayout
from .network import Network
from .survey import Survey, measure

# Most of an embedding that may bypass the chosen layer; rounding in half precision stays below.
_BYPASSING = 0.05


class WrappedNet(Network):
    """A user's module as an embedding network; made by `wrap`."""

    def __init__(
        self,
        module: nn.Module,
        layer: str | nn.Module | None,
        output: int | str | Callable[[Any], Tensor] | None,
        to_maps: Callable[[Tensor], Tensor] | None,
        metric: str,
        preprocess: Preprocess,
    ) -> None:
        super().__init__(type(module).__name__, metric, preprocess)
        layers.require_gradients(module)
        _require_images_alone(module)
        self.module = module
        self._output = output
        if isinstance(layer, nn.Module):
            layer = layers.name_of(module, layer)
        if layer is None:
            if to_maps is not None:
                raise LayerError("to_maps describes the output of one layer; name it too, with wrap(..., layer=...)")
            size = self.preprocess.input_size
            survey = Survey(module, size)
            with layers.evaluating(module):
                self.layer = suggest(module, size, select=self._select, survey=survey)
            self._readings[self.layer] = layout = measure(self.body, self.layer, size, survey)
            share = bypassing(module, self.layer, layout.batch, size, self._select)
            if share > _BYPASSING:
                raise LayerError(
                    f"{share:.0%} of the embedding of {type(module).__name__} does not pass {self.layer!r}, the last "
                    "layer with a grid of cells, but comes from earlier layers; name a layer to explain what passes it "
                    "(layer=), or the part of the output that does (output=)"
                )
            self._measure()
        else:
            self.layer = layer
            if to_maps is not None:
                self._readings[self.layer] = GivenLayout(to_maps)

    @property
    def body(self) -> nn.Module:
        """The user's module."""
        return self.module

    def embed(self, images: Tensor) -> Tensor:
        """Embed images."""
        embeddings = self.finish(self.module(images))
        if embeddings.shape[0] != images.shape[0]:
            raise self._no_embeddings(embeddings, f" for {len(images)} images")
        return embeddings

    def finish(self, output: Any) -> Tensor:
        """Select embeddings in what the module returned, and normalise them."""
        embeddings = self._select(output)
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 2:
            raise self._no_embeddings(embeddings)
        embeddings = embeddings.float()  # before normalising: in half precision, lengths are off by 0.1 %
        return functional.normalize(embeddings) if self.metric == "cosine" else embeddings

    def _no_embeddings(self, output: Any, wanted: str = "") -> NetworkError:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        return NetworkError(
            f"{self.architecture} must return embeddings (B, D){wanted}, got {got}; "
            "choose the right part of its output with wrap(..., output=...)"
        )

    def _select(self, output: Any) -> Any:
        if callable(self._output):
            return self._output(output)
        if self._output is None and isinstance(output, list | tuple | dict):
            keys = list(output) if isinstance(output, dict) else list(range(len(output)))
            raise NetworkError(
                f"{self.architecture} returns a {type(output).__name__}; choose the part that is the embedding with "
                f"wrap(..., output=...), one of {keys}"
            )
        try:
            return output if self._output is None else output[self._output]
        except (KeyError, IndexError, TypeError) as error:
            raise NetworkError(f"{self.architecture} has no output {self._output!r}; choose another output=") from error


def _require_images_alone(module: nn.Module) -> None:
    """Refuse models that need a text too: their image tower is a network of its own."""
    parameters = list(inspect.signature(layers.original(module).forward).parameters.values())
    required = [
        each.name
        for each in parameters
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 1 or (parameters and parameters[0].name == "input_ids"):
        needed = required if len(required) > 1 else [parameters[0].name]
        children = ", ".join(name for name, _ in module.named_children())
        raise NetworkError(
            f"{type(module).__name__} takes {', '.join(needed)}, not images alone; wrap the part that embeds images "
            f"(one of {children}), or a module whose forward takes images and calls it"
        )


def wrap(
    module: nn.Module,
    layer: str | nn.Module | None = None,
    *,
    output: int | str | Callable[[Any], Tensor] | None = None,
    to_maps: Callable[[Tensor], Tensor] | None = None,
    metric: str = "cosine",
    preprocess: Any = None,
) -> WrappedNet:
    """Wrap a torch module, so that it can be explained.

    Args:
        module: From images (B, C, H, W) to embeddings (B, D), alone or in a tuple, list or dictionary.
        layer: The feature layer, a module or its dotted name, such as "layer4"; if None, the last one with a grid of
            cells on which the embedding depends.
        output: Which part of the module's output is the embedding: an index, a key, or a function of the output. Not
            needed if the output is one tensor.
        to_maps: From the output of `layer` to feature maps (B, K, h, w), also applied to gradients, where neither
            shapes nor gradients show how its cells are arranged. The layout is measured if None.
        metric: "cosine" (embeddings are normalised to length 1) or "euclidean".
        preprocess: From an image to an input: a `Preprocess`, a torchvision or timm transform, a Hugging Face image
            processor, or a callable, see `Preprocess.of`. If None, that of a timm model's `pretrained_cfg`, or 224 x
            224 with ImageNet's mean and standard deviation.

    Returns:
        A network for `build_database` and `Explainer`; it shares the module's parameters.

    Raises:
        LayerError: If there is no such layer, or none has a spatial output.
        NetworkError: If the metric is unknown, or the module is a TorchScript program or quantised.
        DataError: If the preprocessing cannot be used.
    """
    preprocess = default_preprocess(module) if preprocess is None else Preprocess.of(preprocess)
    return WrappedNet(module, layer, output, to_maps, metric, preprocess)


def default_preprocess(module: nn.Module) -> Preprocess:
    """Return the preprocessing of a module that comes without one.

    Args:
        module: The module.

    Returns:
        That of a timm model's `pretrained_cfg`, or 224 x 224 with ImageNet's mean and standard deviation.
    """
    return Preprocess.from_timm(module) if isinstance(getattr(module, "pretrained_cfg", None), dict) else Preprocess()
