"""Draw explanations: overlays, boxes, contact sheets, training curves and the HTML report."""

from .boxes import Box, draw_boxes, find_boxes
from .grid import grid
from .overlay import colorize, overlay

__all__ = ["Box", "colorize", "draw_boxes", "find_boxes", "grid", "overlay"]
