"""Reading one picture or one mask from a file, whatever its format, mode and orientation."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import DataError

MAX_PIXELS = 89_478_485
"""Larger pictures are refused before they are decoded: Pillow's own limit against decompression bombs."""

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THEIR_SIDE = (5, 6, 7, 8)

# Pixels of a strip, where a picture is worked on in strips.
_STRIP = 2**20

# Whites in use for pictures of more than 8 bits (and floats), whose files rarely say which one is meant.
_WHITES = (1, 255, 1023, 4095, 16383, 65535)


def read_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Read a picture of any mode, upright, as RGB.

    Transparency is laid on white. More than 8 bits are scaled, not clipped: black is 0 (or the smallest
    value, if that is negative), white the first of 1, 255, 1023, 4095, 16383, 65535 that holds the picture's
    largest value. Of an animation the first frame is read; colour profiles are ignored.

    Args:
        path: The file.
        content: Its bytes, where it is no file of its own but part of an archive; `path` then only names it.

    Returns:
        An RGB picture that no longer depends on the file.

    Raises:
        DataError: If the file is missing, empty, damaged, not an image, or larger than `MAX_PIXELS`.
    """
    with _opened(path, content) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        picture = _to_rgb(image)
        return picture.transpose(turn) if turn is not None else picture


def image_size(path: str | Path) -> tuple[int, int]:
    """Tell the size that `read_image` would give, in most formats without decoding the picture.

    Args:
        path: The file.

    Returns:
        (width, height) in pixels, upright.

    Raises:
        DataError: If the file is missing, empty, damaged, not an image, or larger than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        if image.format == "TIFF":  # turns itself when it is decoded, after which its size is sure
            image.load()
        width, height = image.size
        return (height, width) if _orientation(image) in _ON_THEIR_SIDE else (width, height)


def read_mask(
    path: str | Path,
    size: tuple[int, int],
    *,
    threshold: int | None = None,
    value: int | None = None,
    empty_ok: bool = False,
) -> NDArray[np.bool_]:
    """Read a mask; by default every non-zero pixel (or palette index) is the object.

    Args:
        path: The file.
        size: (width, height) of its picture.
        threshold: The object is where the grey value, 0 to 255, is above this.
        value: The object is where the pixel (or palette index) is exactly this.
        empty_ok: Accept a mask without any object pixel.

    Returns:
        (H, W) bool, True on the object.

    Raises:
        DataError: If the file cannot be read, has another size than its picture, or is empty of object.
    """
    with _opened(path) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        if threshold is not None:
            mask = np.asarray(image.convert("L")) > threshold
        elif value is not None:
            if len(image.getbands()) > 1:
                raise ValueError(f"a mask of classes has one number a pixel, this has {'+'.join(image.getbands())}")
            mask = np.asarray(image) == value
        else:
            mask = _non_zero(image)
        if turn is not None:
            mask = np.asarray(Image.fromarray(mask).transpose(turn))
    height, width = mask.shape
    if (width, height) != tuple(size):
        raise DataError(
            f"mask {path} is {width} x {height} pixels but its picture is {size[0]} x {size[1]}; "
            "make the mask again at the picture's size, or remove it"
        )
    if not empty_ok and not mask.any():
        raise DataError(f"mask {path} marks no pixel as object; mark the object, or remove the mask")
    return mask


def list_images(folder: str | Path) -> list[Path]:
    """List the image files that lie directly in a folder, by their extension; hidden files are skipped.

    Args:
        folder: The folder.

    Returns:
        The files, sorted by name.

    Raises:
        DataError: If the folder is missing or cannot be read.
    """
    return [Path(entry) for entry in _list(folder) if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()]


def list_folders(folder: str | Path) -> list[Path]:
    """List the folders that lie directly in a folder; hidden ones are skipped.

    Args:
        folder: The folder.

    Returns:
        The folders, sorted by name.

    Raises:
        DataError: If the folder is missing or cannot be read.
    """
    return [Path(entry) for entry in _list(folder) if entry.is_dir()]


def _list(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or error}; name a folder that can be read") from error
    return sorted(visible, key=lambda entry: entry.name)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this Pillow was built with; it fails on a name that it does not know."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong here or while it is decoded becomes one DataError."""
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} is larger than {MAX_PIXELS:,} pixels; shrink it") from error
    except UnidentifiedImageError as error:
        size = Path(path).stat().st_size if content is None else len(content)
        found = "is no image in a known format" if size else "is empty (0 bytes)"
        raise DataError(f"{path} {found}; replace it by a JPEG or PNG, or remove it") from error
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}; check the path") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        reason = (error.strerror if isinstance(error, OSError) else None) or error or type(error).__name__
        raise DataError(f"cannot read {path}: {reason}; replace it or remove it") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data does not make a picture unreadable
        return 1


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Cut a picture into strips, so that working on it takes little more memory than it does: the first row of each."""
    height = max(1, _STRIP // image.width)
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        convert = _to_8_bit(image)
    elif image.has_transparency_data:
        convert = _on_white
    else:
        return image.convert("RGB")
    picture = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        picture.paste(convert(strip), (0, top))
    return picture


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _to_8_bit(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Find black and white of a picture of more than 8 bits: what turns its strips into 8."""
    ends = [0.0]
    for _, strip in _strips(image):
        values = np.asarray(strip)
        values = values[np.isfinite(values)]
        ends += [float(values.min()), float(values.max())] if values.size else []
    black, largest = min(ends), max(ends)
    white = next((white for white in _WHITES if largest <= white), largest)

    def convert(strip: Image.Image) -> Image.Image:
        values = np.nan_to_num(np.asarray(strip).astype(np.float64), nan=black, posinf=white, neginf=black)
        return Image.fromarray(np.rint((values - black) * (255.0 / (white - black))).astype(np.uint8))

    return convert


def _non_zero(image: Image.Image) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_]
    if len(image.getbands()) == 1:
        mask = np.asarray(image) != 0
        return mask
    mask = np.empty((image.height, image.width), dtype=bool)
    for top, strip in _strips(image):
        pixels = np.asarray(strip.convert("RGBA"))
        mask[top : top + len(pixels)] = pixels[..., :3].any(axis=-1) & (pixels[..., 3] > 0)
    return mask
