"""Networks that embed images, their layers, and where the cells of these sit in the image."""

from typing import TYPE_CHECKING

from ..utils import lazy

if TYPE_CHECKING:
    from .catalog import NETWORKS, NetworkFamily, NetworkOptions, load_network
    from .dense import DenseNet
    from .embedding import EmbeddingNet
    from .network import Activations, Network
    from .wrapped import WrappedNet, wrap

__all__ = [
    "NETWORKS",
    "Activations",
    "DenseNet",
    "EmbeddingNet",
    "Network",
    "NetworkFamily",
    "NetworkOptions",
    "WrappedNet",
    "load_network",
    "wrap",
]

# Reading a weight database needs the geometry alone, and no torch.
__getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "NETWORKS": ".catalog",
        "Activations": ".network",
        "DenseNet": ".dense",
        "EmbeddingNet": ".embedding",
        "Network": ".network",
        "NetworkFamily": ".catalog",
        "NetworkOptions": ".catalog",
        "WrappedNet": ".wrapped",
        "load_network": ".catalog",
        "wrap": ".wrapped",
    },
)
