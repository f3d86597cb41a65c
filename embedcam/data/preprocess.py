"""Preprocessing of pictures, recorded in networks and databases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..utils.limits import LARGEST_INPUT

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Preprocess:
    """Resize a picture to the input size without cropping, scale it to [0, 1] and normalise it.

    Attributes:
        input_size: (height, width) in pixels.
        mean: Mean of each RGB channel, in [0, 1].
        std: Standard deviation of each RGB channel.
        interpolation: "nearest", "bilinear" or "bicubic" (Pillow's, with antialiasing).
    """

    input_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        height, width = self.input_size
        object.__setattr__(self, "input_size", (int(height), int(width)))
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if height < 1 or width < 1:
            raise ValueError(f"input_size must be positive, got {self.input_size}")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation must be one of {', '.join(_FILTERS)}, got {self.interpolation!r}")

    def __call__(self, image: Image.Image | NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocess one picture.

        Args:
            image: An RGB picture of any size. A preprocessed image (3, H, W) is returned unchanged.

        Returns:
            float32 (3, H, W), normalised.
        """
        if isinstance(image, np.ndarray):
            return image
        height, width = self.input_size
        if image.size != (width, height):
            image = image.resize((width, height), _FILTERS[self.interpolation])
        scale, shift = self.scale_and_shift
        pixels = np.asarray(image, dtype=np.float32) * scale - shift
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def batch(self, images: Any) -> Any:
        """Prepare pictures; images that are prepared already are left as they are.

        Args:
            images: Pictures of any size: Pillow images or uint8 arrays (H, W, 3), in a sequence or an array; or
                prepared images (B, 3, H, W), an array or a tensor.

        Returns:
            float32 (B, 3, H, W), normalised; what was prepared as it was given.
        """
        if isinstance(images, Image.Image):
            images = [images]
        is_array = isinstance(images, np.ndarray)
        if hasattr(images, "is_floating_point") or (is_array and images.dtype != np.uint8):
            return images
        pictures = [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
        prepared = [self(picture.convert("RGB")) for picture in pictures]
        return np.stack(prepared) if prepared else np.empty((0, 3, *self.input_size), np.float32)

    @property
    def scale_and_shift(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and shift, float32 (3,) each, that normalise 8-bit pixels: pixel * scale - shift."""
        scale = (1.0 / (255.0 * np.asarray(self.std))).astype(np.float32)
        return scale, (np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Resize a mask to the input size by nearest neighbour.

        Args:
            mask: (H', W') bool at the picture's size.

        Returns:
            (H, W) bool at the input size.
        """
        height, width = self.input_size
        resized = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(resized).astype(bool)

    def restore(self, images: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Undo the normalisation, for drawing.

        Args:
            images: float32 (B, 3, H, W), normalised.

        Returns:
            uint8 (B, H, W, 3) RGB; NaN becomes 0.
        """
        mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (self.mean, self.std))
        with np.errstate(over="ignore", invalid="ignore"):
            pixels = np.nan_to_num((images * std + mean) * 255.0, nan=0)
        rounded: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return rounded.transpose(0, 2, 3, 1)


def usable(preprocess: Preprocess) -> Preprocess:
    """Check a preprocessing that was read from a file.

    Args:
        preprocess: The preprocessing.

    Returns:
        The same.

    Raises:
        ValueError: If its images exceed `LARGEST_INPUT`, or `mean` or `std` is invalid.
    """
    height, width = preprocess.input_size
    if height * width > LARGEST_INPUT:
        raise ValueError(f"an input of {height} x {width} has more than {LARGEST_INPUT:,} pixels")
    if not len(preprocess.mean) == len(preprocess.std) == 3:
        raise ValueError(f"mean {preprocess.mean} and std {preprocess.std} must have three numbers each")
    if not all(map(math.isfinite, (*preprocess.mean, *preprocess.std))) or not min(preprocess.std) > 0:
        raise ValueError(f"mean {preprocess.mean} and std {preprocess.std} must be finite, and std positive")
    return preprocess
