"""Models of Hugging Face's transformers as modules from images to embeddings."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NetworkError
from . import layers


class ImageFeatures(nn.Module):
    """The image part of a model of transformers.

    Args:
        model: The model. Its children that images do not reach, such as a text tower, are removed from it.
        output: Entry of the model's output; None for the first of: image features (of a model with a text tower), the
            pooled output, the class token.
        interpolated: Interpolate position embeddings, if the model can.
    """

    def __init__(self, model: Any, output: int | str | None = None, *, interpolated: bool = False) -> None:
        super().__init__()
        self.model, self._output = model, output
        self._run = "get_image_features" if output is None and hasattr(model, "get_image_features") else "forward"
        run = inspect.signature(getattr(model, self._run)).parameters
        self._options: dict[str, Any] = {}
        if interpolated and "interpolate_pos_encoding" in run:
            self._options["interpolate_pos_encoding"] = True
        if "pixel_values" not in run:
            raise NetworkError(f"{type(model).__name__} takes no images; use a vision model")
        _remove_unreached(self)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            (B, D).
        """
        # The module itself is called where it can be, so that its hooks run.
        run = self.model if self._run == "forward" else getattr(self.model, self._run)
        found = run(pixel_values=images, **self._options)
        if self._output is not None:
            chosen: Tensor = found[self._output]
            return chosen.flatten(1) if chosen.ndim == 4 else chosen
        if isinstance(found, Tensor):
            return found
        for key in ("image_embeds", "pooler_output"):
            if (pooled := found.get(key)) is not None:
                embedding: Tensor = pooled.flatten(1)  # convolutional networks pool to (B, D, 1, 1)
                return embedding
        hidden: Tensor = found["last_hidden_state"]
        if hidden.ndim == 3:
            return hidden[:, 0] if _has_class_token(self.model) else hidden.mean(dim=1)
        return hidden.mean(dim=(2, 3))


def _has_class_token(model: nn.Module) -> bool:
    return any(name.rpartition(".")[2] in ("cls_token", "class_embedding") for name, _ in model.named_parameters())


def _remove_unreached(module: ImageFeatures) -> None:
    """Remove the model's children of which no part runs on an image."""
    model = module.model
    config = getattr(model.config, "vision_config", model.config)
    side = getattr(config, "image_size", 224)
    size = (side, side) if isinstance(side, int) else tuple(side)
    ran: set[nn.Module] = set()
    handles = [each.register_forward_hook(lambda each, *_: ran.add(each)) for each in model.modules()]
    try:
        with layers.evaluating(model), torch.no_grad():
            module(layers.as_input(model, torch.zeros(1, getattr(config, "num_channels", 3), *size)))
    finally:
        for handle in handles:
            handle.remove()
    for name, child in list(model.named_children()):
        if not ran & set(child.modules()):
            delattr(model, name)
