"""Positions of feature-map cells in the image."""

from .nets.geometry import Geometry
from .nets.receptive_field import geometry

__all__ = ["Geometry", "geometry"]
