"""Networks that embed images, their layers, and where the cells of these sit in the image."""

from typing import TYPE_CHECKING

from ..utils import lazy

if TYPE_CHECKING:
    from .embedding import EmbeddingNet
    from .network import Activations, Network
    from .wrapped import WrappedNet, wrap

__all__ = ["Activations", "EmbeddingNet", "Network", "WrappedNet", "wrap"]

# A weight database needs the geometry alone, and no torch.
__getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "Activations": ".network",
        "EmbeddingNet": ".embedding",
        "Network": ".network",
        "WrappedNet": ".wrapped",
        "wrap": ".wrapped",
    },
)
