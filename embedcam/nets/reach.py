"""Check that gradients reach the feature layer of a network."""

from __future__ import annotations

import torch

from ..errors import LayerError, NetworkError
from . import layers
from .network import Network
from .passes import noise


@torch.inference_mode(False)
def require_gradient(net: Network) -> None:
    """Check that the gradient of the embedding reaches the cells of the feature layer; channel weights need it.

    Args:
        net: The network.

    Raises:
        NetworkError: If the embedding has no gradient, as after `detach`, or it is zero, as after a sign.
        LayerError: If the embedding depends on other layers but not on the cells of the feature layer.
    """
    size = net.preprocess.input_size
    reading, images = net.reading(), noise(net.body, size, 2)
    captured_layer = {net.layer: net.feature_layer}
    with torch.no_grad(), layers.evaluating(net), layers.capture(captured_layer, differentiable=True) as captured:
        embeddings = net(images)
        output = captured[net.layer]
        directions = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
        total = (embeddings * directions.to(embeddings.device)).sum()
        gradient = torch.autograd.grad(total, output, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        raise NetworkError(
            f"the embedding of {net.architecture} has no gradient with respect to layer {net.layer!r}: the forward "
            "pass cuts the graph between them, as detach() and inference_mode() do, or the embedding is not computed "
            "from it; change that, or choose another layer"
        )
    if bool(reading.maps(gradient, size).any()):
        return
    if bool(gradient.any()):
        raise LayerError(
            f"the embedding of {net.architecture} does not depend on the cells of layer {net.layer!r}, only on its "
            "other tokens: no attention follows; choose the norm before the last attention (wrap finds it if no layer "
            "is named)"
        )
    raise NetworkError(
        f"the gradient of the embedding of {net.architecture} at layer {net.layer!r} is zero everywhere, as after a "
        "sign, rounding or an arg max; choose the values before that with output="
    )
