"""Where a feature-map cell sits in the image."""

from .nets.geometry import Geometry
from .nets.receptive_field import geometry

__all__ = ["Geometry", "geometry"]
