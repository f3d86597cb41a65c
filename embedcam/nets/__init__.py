"""Networks that embed images."""

from .embedding import EmbeddingNet
from .network import Activations, Network
from .wrapped import WrappedNet, wrap

__all__ = ["Activations", "EmbeddingNet", "Network", "WrappedNet", "wrap"]
