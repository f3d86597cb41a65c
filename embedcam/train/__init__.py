"""Training an embedding network; the offline half needs the extra `train`."""

from .trainer import TrainOptions, train

__all__ = ["TrainOptions", "train"]
