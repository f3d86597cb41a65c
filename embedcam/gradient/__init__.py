"""Class activation maps by backpropagation: the yardstick for the gradient-free ones."""

from .classmap import ClassMap, class_maps
from .convolutional import ConvolutionalClassifier
from .gradcam import METHODS, VARIANTS, GradCAM, channel_weights, plus_plus_weights
from .targets import ClassScore, Proxy, Scalar, SegmentationScore, Similarity, Target, TripletMargin

__all__ = [
    "METHODS",
    "VARIANTS",
    "ClassMap",
    "ClassScore",
    "ConvolutionalClassifier",
    "GradCAM",
    "Proxy",
    "Scalar",
    "SegmentationScore",
    "Similarity",
    "Target",
    "TripletMargin",
    "channel_weights",
    "class_maps",
    "plus_plus_weights",
]
