"""Preprocessing of pictures, recorded in networks and databases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..utils.limits import LARGEST_INPUT
from . import transforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Preprocess:
    """Resize a picture to the input size, scale it to [0, 1] and normalise it.

    Attributes:
        input_size: (height, width) in pixels.
        mean: Mean of each RGB channel, in [0, 1].
        std: Standard deviation of each RGB channel.
        interpolation: "nearest", "bilinear" or "bicubic" (Pillow's, with antialiasing).
        crop_pct: Share of the resized picture's side that the input covers, in (0, 1], as in timm: the picture is
            resized, with its aspect, to cover `input_size / crop_pct`, and the centre of `input_size` is cropped. None
            resizes the whole picture to the input size.
        transform: Name of the callable that does all this instead, or "".
        function: That callable, from an RGB Pillow image to (3, H, W); None if it is not known, as in a file.
    """

    input_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_pct: float | None = None
    transform: str = ""
    function: Callable[[Image.Image], Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        height, width = self.input_size
        object.__setattr__(self, "input_size", (int(height), int(width)))
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if height < 1 or width < 1:
            raise ValueError(f"input_size must be positive, got {self.input_size}")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation must be one of {', '.join(_FILTERS)}, got {self.interpolation!r}")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must lie in (0, 1], got {self.crop_pct}")

    def __str__(self) -> str:
        size = f"{self.input_size[0]} x {self.input_size[1]} pixels"
        if self.transform:
            return f"{size}, by {self.transform}"
        return f"{size}, {self.interpolation}" + (
            "" if self.crop_pct is None else f", centre crop of {self.crop_pct:g}"
        )

    @classmethod
    def of(cls, value: Any) -> Preprocess:
        """Take a preprocessing as people have it.

        Args:
            value: A `Preprocess`, a torchvision or timm transform, a Hugging Face image processor, or any callable from
                an RGB Pillow image to (3, H, W).

        Returns:
            The preprocessing.

        Raises:
            DataError: If it is none of these.
        """
        if isinstance(value, Preprocess):
            return value
        return cls.from_hf(value) if hasattr(value, "image_mean") else cls.from_transforms(value)

    @classmethod
    def from_timm(cls, model: Any) -> Preprocess:
        """Read the preprocessing of a timm model from its `pretrained_cfg`.

        Args:
            model: The model.

        Returns:
            The preprocessing.
        """
        return cls(**transforms.of_timm(model))

    @classmethod
    def from_transforms(cls, transform: Callable[[Image.Image], Any]) -> Preprocess:
        """Read a transform of torchvision or timm.

        Args:
            transform: Resizing, centre crop, conversion and normalisation. Any other callable from an RGB Pillow image
                to (3, H, W) is called as it is; its heat maps are placed over the whole picture, with a warning.

        Returns:
            The preprocessing.

        Raises:
            DataError: If the callable does not return such arrays.
        """
        return cls(**transforms.of_transform(transform))

    @classmethod
    def from_hf(cls, processor: Any) -> Preprocess:
        """Read an image processor of Hugging Face's transformers.

        Args:
            processor: The processor. One with unknown steps is called as it is, as in `from_transforms`.

        Returns:
            The preprocessing.
        """
        return cls(**transforms.of_processor(processor))

    @classmethod
    def recorded(cls, fields: Mapping[str, Any]) -> Preprocess:
        """Read what `record` wrote, perhaps from an untrusted file.

        Args:
            fields: The fields.

        Returns:
            The preprocessing; without its function.

        Raises:
            KeyError, TypeError, ValueError: If a field is missing or not valid.
        """
        (height, width), mean, std = fields["input_size"], fields["mean"], fields["std"]
        crop_pct = fields.get("crop_pct")
        made = cls(
            (int(height), int(width)),
            tuple(map(float, mean)),  # type: ignore[arg-type]
            tuple(map(float, std)),  # type: ignore[arg-type]
            str(fields["interpolation"]),
            float(crop_pct) if crop_pct else None,
            str(fields.get("transform", "")),
        )
        return usable(made)

    def record(self) -> dict[str, Any]:
        """Return what files record.

        Returns:
            A dictionary that JSON can store.
        """
        fields = asdict(replace(self, function=None))
        del fields["function"]
        return fields

    def resized_to(self, input_size: tuple[int, int]) -> Preprocess:
        """Return the same preprocessing with another input size.

        Args:
            input_size: (height, width) in pixels.

        Returns:
            The preprocessing.

        Raises:
            DataError: If a callable determines the size.
        """
        if self.transform and input_size != self.input_size:
            raise DataError(
                f"{self.transform} makes inputs of {self.input_size[0]} x {self.input_size[1]} pixels, the size cannot "
                "be chosen; use a Preprocess"
            )
        return replace(self, input_size=input_size)

    def __call__(self, image: Image.Image | NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocess one picture.

        Args:
            image: An RGB picture of any size. A preprocessed image (3, H, W) is returned unchanged.

        Returns:
            float32 (3, H, W), normalised.
        """
        if isinstance(image, np.ndarray):
            return image
        if self.transform:
            return self._transformed(image)
        resized = self._resized((image.height, image.width))
        if (image.height, image.width) != resized:
            image = image.resize(resized[::-1], _FILTERS[self.interpolation])
        if self.crop_pct is not None:
            rows, columns = self._window(resized)
            image = image.crop((columns.start, rows.start, columns.stop, rows.stop))
        scale, shift = (values[:, None, None] for values in self.scale_and_shift)
        # Channels first, since numpy is slow along an axis of three.
        pixels = np.array(np.asarray(image).transpose(2, 0, 1), np.float32, order="C")
        pixels *= scale
        pixels -= shift
        return pixels

    def _transformed(self, image: Image.Image) -> NDArray[np.float32]:
        if self.function is None:
            raise DataError(f"pictures are prepared by {self.transform}, which no file holds; prepare them with it")
        prepared = np.asarray(self.function(image), dtype=np.float32)
        if prepared.shape != (3, *self.input_size):
            raise DataError(
                f"{self.transform} made an input of shape {prepared.shape} from a picture of {image.height} x "
                f"{image.width} pixels, expected {(3, *self.input_size)}; resize all pictures to one size in it"
            )
        return prepared

    def batch(self, images: Any) -> Any:
        """Prepare pictures; images that are prepared already are left as they are.

        Args:
            images: Pictures of any size: Pillow images or uint8 arrays (H, W, 3), in a sequence or an array; or
                prepared images (B, 3, H, W), an array or a tensor.

        Returns:
            float32 (B, 3, H, W), normalised; what was prepared as it was given.

        Raises:
            DataError: If an image is none of these.
        """
        if isinstance(images, Image.Image):
            images = [images]
        is_array = isinstance(images, np.ndarray)
        if hasattr(images, "is_floating_point") or (is_array and images.dtype != np.uint8):
            return images
        prepared = [self(_picture(image).convert("RGB")) for image in images]
        return np.stack(prepared) if prepared else np.empty((0, 3, *self.input_size), np.float32)

    @property
    def scale_and_shift(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and shift, float32 (3,) each, that normalise 8-bit pixels: pixel * scale - shift."""
        scale = (1.0 / (255.0 * np.asarray(self.std))).astype(np.float32)
        return scale, (np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Resize a mask by nearest neighbour, and crop it like its picture.

        Args:
            mask: (H', W') bool at the picture's size.

        Returns:
            (H, W) bool at the input size.
        """
        height, width = self._resized(mask.shape)
        resized = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        rows, columns = self._window((height, width))
        return np.asarray(resized)[rows, columns].astype(bool)

    def seen(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Find the part of a picture that becomes the input.

        Args:
            size: (height, width) of the picture.

        Returns:
            (left, top, right, bottom) in pixels of the picture, as Pillow's `crop` takes it.
        """
        resized = self._resized(size)
        (top, bottom), (left, right) = (
            (round(part.start * side / whole), round(part.stop * side / whole))
            for part, side, whole in zip(self._window(resized), size, resized, strict=True)
        )
        return left, top, right, bottom

    def on_picture(self, heatmap: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Put a heat map of an input back to its place in the picture.

        Args:
            heatmap: (H, W) at the input size.
            size: (height, width) of the picture.

        Returns:
            A map of the whole picture at the size to which it was resized, zero outside of the crop; the heat map
            itself if nothing was cropped.
        """
        if self.crop_pct is None:
            return heatmap
        own = replace(self, input_size=heatmap.shape)
        whole = np.zeros(own._resized(size), heatmap.dtype)
        whole[own._window(whole.shape)] = heatmap
        return whole

    def _resized(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Return the size to which a picture is resized before it is cropped, as torchvision's Resize rounds it."""
        if self.crop_pct is None:
            return self.input_size
        # A quotient such as 224 / (224 / 232) may be a bit less than the integer that is meant.
        sides = [math.floor(side / self.crop_pct + 1e-6) for side in self.input_size]
        across = 0 if sides[0] * size[1] >= sides[1] * size[0] else 1  # the axis that the picture just covers
        sides[1 - across] = max(size[1 - across] * sides[across] // size[across], sides[1 - across])
        return sides[0], sides[1]

    def _window(self, resized: tuple[int, ...]) -> tuple[slice, slice]:
        """Return the rows and columns of the resized picture that are the input."""
        rows, columns = (
            slice(first := round((whole - side) / 2), first + side)
            for whole, side in zip(resized, self.input_size, strict=True)
        )
        return rows, columns

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


def _picture(image: Any) -> Image.Image:
    try:
        return image if isinstance(image, Image.Image) else Image.fromarray(image)
    except (AttributeError, TypeError, ValueError) as error:
        kind = f"{type(image).__name__} {getattr(image, 'shape', '')}".strip()
        raise DataError(f"expected a Pillow image or uint8 (H, W, 3), got {kind}; open files with Pillow") from error
