"""`hf:ORG/NAME` or `hf:FOLDER`: the image part of a network of Hugging Face's transformers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..family import NETWORKS, NetworkFamily, NetworkOptions

if TYPE_CHECKING:
    from torch import nn

    from ...data.preprocess import Preprocess
    from ..network import Network

logger = logging.getLogger("embedcam")

_WAY_OUT = (
    "without a connection, give a folder written by save_pretrained; pickled .bin weights are not read, write the "
    "network again with save_pretrained, which gives model.safetensors"
)


def load(name: str, options: NetworkOptions) -> Network:
    """Load a network of transformers; its embedding is the image features, the pooled output, or the class token.

    Of a network with a text tower (CLIP, SigLIP), only the image tower with its projection is kept.

    Args:
        name: "ORG/NAME" on Hugging Face, or a folder written by `save_pretrained`.
        options: `weights` is a file with a state dict for the network that the folder configures; None or "DEFAULT"
            takes those of the name. `output` is another entry of the module's output, such as "last_hidden_state". By
            default, the metric is cosine and the preprocessing that of the image processor.

    Returns:
        The network.

    Raises:
        NetworkError: If the name, the weights or an option cannot be used, or the weights cannot be downloaded.
        LayerError: If there is no such layer.
        MissingDependencyError: If transformers is not installed.
    """
    from ..libraries import loading
    from ..weights import load_into, read_state_dict
    from ..wrapped import wrap

    own = options.weights in (None, "DEFAULT")
    with loading(f"hf:{name}", _WAY_OUT):
        if own:
            model = pretrained(name)
        else:
            model = from_config(_transformers().AutoConfig.from_pretrained(name))
            load_into(model, read_state_dict(str(options.weights)), options.weights, f"hf:{name}")
        preprocess = processor_of(name, model)
    if options.input_size is not None:
        preprocess = preprocess.resized_to(options.input_size)
    module = image_part(model, options.output, preprocess.input_size)
    return wrap(module, options.layer, metric=options.metric or "cosine", preprocess=preprocess)


def _transformers() -> Any:
    from ..libraries import require

    return require("transformers", "hf")


def pretrained(name: str, **where: Any) -> Any:
    """Load a model with its weights, from safetensors only.

    Args:
        name: As for `load`.
        where: Arguments of `from_pretrained`, such as a subfolder.

    Returns:
        The model. A pooling layer that the weights lack, and which would be random, is left out.

    Raises:
        NetworkError: If other weights are missing.
    """
    from ...errors import NetworkError

    fixed = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True, **where}
    model, info = _transformers().AutoModel.from_pretrained(name, **fixed)
    if any("pooler" in key for key in info["missing_keys"]):
        model, info = _transformers().AutoModel.from_pretrained(name, add_pooling_layer=False, **fixed)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise NetworkError(f"{len(missing)} weights are missing, first {missing[0]!r}; use a complete network")
    return model


def from_config(config: Any) -> Any:
    """Make a model with random weights.

    Args:
        config: A configuration of transformers.

    Returns:
        The model.
    """
    return _transformers().AutoModel.from_config(config)


def processor_of(name: str, model: Any, **where: Any) -> Preprocess:
    """Read the image processor of a model.

    Args:
        name: As for `load`.
        model: The model.
        where: As for `pretrained`.

    Returns:
        The preprocessing; ImageNet's at the model's size, with a warning, if it comes without a processor.
    """
    from ...data.preprocess import Preprocess

    try:
        return Preprocess.from_hf(_transformers().AutoImageProcessor.from_pretrained(name, **where))
    except (OSError, ValueError) as error:
        if not Path(name).is_dir():
            raise
        logger.warning("%s has no image processor (%s); ImageNet's preprocessing is used", name, _line(error))
        return Preprocess(_side(model.config) or (224, 224))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _side(config: Any) -> tuple[int, int] | None:
    config = getattr(config, "vision_config", config)
    side = getattr(config, "image_size", None)
    return (side, side) if isinstance(side, int) else None if side is None else (side[0], side[1])


def image_part(model: Any, output: int | str | None = None, size: tuple[int, int] | None = None) -> nn.Module:
    """Make a module from images to embeddings out of a model of transformers.

    Args:
        model: The model; parts that images do not reach are removed from it.
        output: Entry of its output; None for the image features, the pooled output or the class token.
        size: (height, width) of the input; position embeddings are interpolated to it where the model can.

    Returns:
        The module, from (B, 3, H, W) to (B, D).
    """
    from ..huggingface import ImageFeatures

    return ImageFeatures(model, output, interpolated=size is not None and size != _side(model.config)).eval()


def backbone(name: str, size: tuple[int, int]) -> nn.Module:
    """Make the image part of a model with random weights; its configuration comes from the name or folder."""
    from ..libraries import loading

    with loading(f"hf:{name}", _WAY_OUT):
        return image_part(from_config(_transformers().AutoConfig.from_pretrained(name)), size=size)


NETWORKS.register("hf")(NetworkFamily(load, "ORG/NAME", library="transformers", safe=True, backbone=backbone))
