"""Items of data sets as people have them: pairs, dictionaries, Pillow images, arrays, tensors, bytes and paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .images import read_image, to_rgb

IMAGE_KEYS = ("image", "img", "pixel_values", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")
"""Keys of an image in a dictionary; `PATH_KEYS` come after them."""
PATH_KEYS = ("path", "file", "filepath", "file_path", "file_name", "filename", "image_path")
LABEL_KEYS = ("label", "labels", "target", "fine_label", "class", "category", "identity", "cls")


def item_parts(item: Any, name: str) -> tuple[Any, Any]:
    """Split an item into image and label.

    Args:
        item: A pair, a dictionary, or an image alone.
        name: Of the item, for messages.

    Returns:
        (image, label); the label is None if there is none.

    Raises:
        DataError: If no key of a dictionary is known to be an image.
    """
    if isinstance(item, Mapping):
        image, label = (
            next((key for key in keys if item.get(key) is not None), None)
            for keys in ((*IMAGE_KEYS, *PATH_KEYS), LABEL_KEYS)
        )
        if image is None and not any(key in item for key in (*IMAGE_KEYS, *PATH_KEYS)):
            raise DataError(
                f"{name} has the keys {', '.join(map(str, item))}, none of which is an image; "
                "name them 'image' and 'label'"
            )
        return None if image is None else item[image], None if label is None else item[label]
    if isinstance(item, tuple | list):
        return (item[0] if item else None), (item[1] if len(item) > 1 else None)
    return item, None


def as_image(image: Any, name: str, channels: int = 3) -> NDArray[np.float32] | Image.Image:
    """Read an image of any form.

    Args:
        image: A path; the content of a file, alone or in a dictionary with "bytes" or "path"; a Pillow image; uint8
            pixels (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4; or floats (channels, H, W), normalised. Floats
            (1, H, W) are repeated.
        name: Of the item, for messages.
        channels: Number of channels that the network takes.

    Returns:
        An RGB picture, or normalised floats (channels, H, W).

    Raises:
        DataError: If there is no image, it cannot be decoded, or it is of another kind.
    """
    if isinstance(image, Mapping):  # Hugging Face's images without decoding
        content, path = image.get("bytes"), image.get("path")
        image = content if content is not None else path
        name = str(path or name)
    if image is None:
        raise DataError(f"{name} has no image; remove it")
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return read_image(name, bytes(image))
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except Exception as error:  # pictures are decoded only now; Pillow's decoders raise a dozen types
            raise DataError(f"cannot read {name}: {error or type(error).__name__}; repair or remove it") from error
    if is_tensor := hasattr(image, "detach"):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image
    array = np.asarray(image)
    if array.dtype == np.uint8 and (pixels := _pixels(array, channels_first=is_tensor)) is not None:
        return to_rgb(Image.fromarray(pixels))
    if np.issubdtype(array.dtype, np.floating) and array.ndim == 3 and array.shape[0] in (1, channels) and array.size:
        return np.broadcast_to(array, (channels, *array.shape[1:])).astype(np.float32, copy=False)
    raise DataError(
        f"{name} has shape {array.shape} of {array.dtype}, expected an image ({channels}, H, W) of normalised floats, "
        "uint8 pixels, a Pillow image, a path or the content of a file; convert it"
    )


def resized(image: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    """Resize a normalised image bilinearly, with antialiasing.

    Args:
        image: float32 (3, H, W).
        size: (height, width) in pixels.

    Returns:
        float32 (3, height, width).
    """
    height, width = size
    bands = (Image.fromarray(np.ascontiguousarray(band)) for band in image)
    return np.stack([np.asarray(band.resize((width, height), Image.Resampling.BILINEAR)) for band in bands])


def _pixels(array: NDArray[np.uint8], *, channels_first: bool) -> NDArray[np.uint8] | None:
    """Bring pixels to (H, W) or (H, W, 3 or 4); None if they are of another shape."""
    if array.ndim == 3:
        channels = (1, 3, 4)
        first, last = array.shape[0] in channels, array.shape[-1] in channels
        if not (first or last):
            return None
        array = array.transpose(1, 2, 0) if first and (channels_first or not last) else array
        array = array[..., 0] if array.shape[-1] == 1 else array
    return np.ascontiguousarray(array) if array.ndim in (2, 3) and array.size else None
