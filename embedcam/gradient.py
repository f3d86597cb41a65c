"""Class activation maps by backpropagation: the yardstick for the gradient-free ones."""

from .classmap.classmap import ClassMap, class_maps
from .classmap.convolutional import ConvolutionalClassifier
from .explain.gradcam import GradCAM
from .explain.targets import ClassScore, Proxy, Scalar, SegmentationScore, Similarity, Target, TripletMargin
from .explain.weighting import WEIGHTINGS, Weighting

__all__ = [
    "WEIGHTINGS",
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
    "Weighting",
    "class_maps",
]
