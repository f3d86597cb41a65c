"""The online half: explain images with one forward pass and a weight database."""

from .explainer import Explainer

__all__ = ["Explainer"]
