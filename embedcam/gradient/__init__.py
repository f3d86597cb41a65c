"""Class activation maps by backpropagation: the yardstick for the gradient-free ones."""

from .gradcam import METHODS, GradCAM, channel_weights
from .targets import ClassScore, Proxy, Scalar, Similarity, Target, TripletMargin

__all__ = [
    "METHODS",
    "ClassScore",
    "GradCAM",
    "Proxy",
    "Scalar",
    "Similarity",
    "Target",
    "TripletMargin",
    "channel_weights",
]
