"""Explainers as ONNX files: writing, quantising, and running them without torch."""

from .explainer import OnnxExplainer

__all__ = ["OnnxExplainer"]
