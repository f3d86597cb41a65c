"""`torchvision:NAME`: a classifier of torchvision without its classification layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..family import NETWORKS, NetworkFamily, NetworkOptions

if TYPE_CHECKING:
    from ..network import Network


def load(name: str, options: NetworkOptions) -> Network:
    """Load a torchvision classifier as an embedding network: its embedding is what enters the last linear layer.

    Args:
        name: Such as "mobilenet_v2".
        options: `weights` is a file with a state dict of the whole classifier (any number of classes), or "DEFAULT",
            torchvision's own; None means "DEFAULT". By default, the metric is cosine and the preprocessing that of
            torchvision's weights.

    Returns:
        The network.

    Raises:
        NetworkError: If the name, the weights or an option cannot be used.
        LayerError: If there is no such layer.
    """
    from .. import backbones
    from ..wrapped import wrap

    options.refuse("output", reason="the embedding is what enters the classifier")
    preprocess = backbones.preprocess(name)
    backbone = backbones.create(name, options.weights or "DEFAULT")
    if options.input_size is not None:
        preprocess = replace(preprocess, input_size=options.input_size)
    return wrap(backbone, options.layer, metric=options.metric or "cosine", preprocess=preprocess)


NETWORKS.register("torchvision")(NetworkFamily(load, library="torchvision", safe=True))
