"""`timm:NAME`: a network of timm without its classifier."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from ..family import NETWORKS, NetworkFamily, NetworkOptions

if TYPE_CHECKING:
    from ..network import Network


def load(name: str, options: NetworkOptions) -> Network:
    """Load a timm network as an embedding network: its embedding is what enters the classifier.

    Args:
        name: Such as "vit_small_patch14_dinov2.lvd142m", or "hf-hub:ORG/NAME".
        options: `weights` is a file with a state dict; None or "DEFAULT" downloads those of the name. By default, the
            metric is cosine and the preprocessing that of the network's `pretrained_cfg`.

    Returns:
        The network.

    Raises:
        NetworkError: If the name, the weights or an option cannot be used, or the weights cannot be downloaded.
        LayerError: If there is no such layer.
        MissingDependencyError: If timm is not installed.
    """
    from ...data.preprocess import Preprocess
    from ..libraries import loading
    from ..weights import read_state_dict
    from ..wrapped import wrap

    state = None if options.weights in (None, "DEFAULT") else read_state_dict(str(options.weights))
    with loading(f"timm:{name}", "see timm.list_models() for the names; without a connection, give --weights FILE"):
        model = create(name, options.input_size, pretrained=state is None)
    if state is not None:
        fill(model, state, options.weights, f"timm:{name}")
    preprocess = Preprocess.from_timm(model)
    if options.input_size is not None:
        preprocess = preprocess.resized_to(options.input_size)
    return wrap(model, options.layer, output=options.output, metric=options.metric or "cosine", preprocess=preprocess)


def create(name: str, size: tuple[int, int] | None = None, *, pretrained: bool) -> Any:
    """Make a timm model without classifier.

    Args:
        name: As timm takes it.
        size: (height, width) of the input; None for the model's own.
        pretrained: Download its weights.

    Returns:
        The module, which takes other input sizes too where timm provides for that.
    """
    from ..libraries import require

    timm = require("timm", "timm")
    sized = {} if size is None else {"img_size": size}
    # Transformers interpolate their position embeddings if told so; convolutional networks take no such arguments.
    arguments: list[dict[str, Any]] = [{**sized, "dynamic_img_size": True}, sized]
    for more in arguments:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **more)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
    return timm.create_model(name, pretrained=pretrained, num_classes=0)


def fill(model: Any, state: dict[str, Any], source: object, target: str) -> None:
    """Load a state dict into a timm model, as timm converts it.

    Args:
        model: The model.
        state: With or without a classifier, in timm's names or those of the original code.
        source: Where it came from, for messages.
        target: What the model is, for messages.

    Raises:
        NetworkError: If an entry is missing or has another shape.
    """
    from ..weights import load_into, without_prefixes

    state = without_prefixes(state, model)
    own = {name: value.shape for name, value in model.state_dict().items()}
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None and any(name not in state or state[name].shape != own[name] for name in own):
        with contextlib.suppress(KeyError, RuntimeError):  # of another network, which the next line reports
            state = convert(state, model)  # other names, and position embeddings of another size
    load_into(model, state, source, target)


def backbone(name: str, size: tuple[int, int]) -> Any:
    """Make a timm model with random weights; see `create`."""
    return create(name, size, pretrained=False)


NETWORKS.register("timm")(NetworkFamily(load, library="timm", safe=True, backbone=backbone))
