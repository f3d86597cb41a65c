"""Class activation maps by backpropagation: the yardstick for the gradient-free ones."""

from .classmap.classmap import ClassMap, class_maps
from .classmap.convolutional import ConvolutionalClassifier
from .explain.gradcam import METHODS, VARIANTS, GradCAM, channel_weights, plus_plus_weights
from .explain.targets import ClassScore, Proxy, Scalar, SegmentationScore, Similarity, Target, TripletMargin

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
