"""Read pictures and masks from image files of any format, mode and orientation."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE

from ..errors import DataError

logger = logging.getLogger("embedcam")

STDIN = Path("-")
"""Names standard input, as a path."""

MAX_PIXELS = 89_478_485
"""Larger pictures are refused before they are decoded: Pillow's limit against decompression bombs."""

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

MASK_THRESHOLD = 127
"""Default of `read_mask`: the object is brighter than this, half of the way from black to white."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO")

# `ImageOps.exif_transpose` also rewrites the EXIF data, which fails if any other tag is damaged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)  # width and height are swapped

# Pixels of a strip of a picture that is processed in strips.
_STRIP = 2**20


def read_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Read a picture of any mode as RGB, with its EXIF orientation applied.

    Transparent pixels are blended with white. More than 8 bits are scaled by the depth that the file declares, not by
    the picture's own maximum: black is 0, white 65535 for 16 bits, 4095 for a TIFF of 12 bits, and 1 for floats. Of an
    animation the first frame is read; colour profiles are ignored.

    Args:
        path: The file; `STDIN` reads standard input.
        content: Content of a picture that is part of an archive; `path` then only names it in messages.

    Returns:
        An RGB picture, independent of the file.

    Raises:
        DataError: If the file is missing, empty, damaged, not an image, or larger than `MAX_PIXELS`.
    """
    with _opened(path, content) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        picture = to_rgb(image)
        return picture.transpose(turn) if turn is not None else picture


def image_size(path: str | Path, content: bytes | None = None) -> tuple[int, int]:
    """Read the size of a picture as `read_image` returns it; most formats are not decoded.

    Args:
        path: The file.
        content: Its bytes, as for `read_image`.

    Returns:
        (width, height) in pixels, with the EXIF orientation applied.

    Raises:
        DataError: If the file is missing, empty, damaged, not an image, or larger than `MAX_PIXELS`.
    """
    with _opened(path, content) as image:
        if image.format == "TIFF":  # Pillow applies its orientation while decoding
            image.load()
        width, height = image.size
        return (height, width) if _orientation(image) in _SWAPPED else (width, height)


def read_mask(
    path: str | Path,
    size: tuple[int, int],
    *,
    threshold: int = MASK_THRESHOLD,
    value: int | None = None,
    empty_ok: bool = False,
    content: bytes | None = None,
    warn: Callable[[str], None] = logger.warning,
) -> NDArray[np.bool_]:
    """Read a mask by what is seen: pixels brighter than a threshold belong to the object.

    The brightness of a pixel is the largest of red, green and blue, with a palette those of its colour; transparent
    pixels are black. In a mask that has no other values than 0 and 1, 1 is the object.

    Args:
        path: The file.
        size: (width, height) of its picture.
        threshold: Brightness, 0 to 254; the object is above it.
        value: For an image of class indices: pixels (or palette indices) equal to this belong to the object instead.
        empty_ok: Accept a mask without object pixels.
        content: The bytes of the file, as for `read_image`.
        warn: Called with a message if the mask has more than two levels of brightness.

    Returns:
        (H, W) bool, True on the object.

    Raises:
        DataError: If the file cannot be read, its size differs from the picture's, or it has no object pixel.
    """
    with _opened(path, content) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        if value is None:
            brightness = _brightness(image)
            levels = np.flatnonzero(Image.fromarray(brightness).histogram())
            mask = brightness > (threshold if levels[-1] > 1 else 0)
        else:
            if len(image.getbands()) > 1:
                raise ValueError(f"a mask of classes has one value per pixel, this has {'+'.join(image.getbands())}")
            mask = np.asarray(image) == value
        if turn is not None:
            mask = np.asarray(Image.fromarray(mask).transpose(turn))
    height, width = mask.shape
    if (width, height) != tuple(size):
        raise DataError(
            f"mask {path} is {width} x {height} pixels but its picture is {size[0]} x {size[1]}; "
            "create the mask at the picture's size, or remove it"
        )
    if value is None and len(levels) > 2:
        warn(
            f"mask {path} has {len(levels)} levels of brightness; the object is where it is above {threshold} of 255 "
            "(--mask-threshold)"
        )
    if not empty_ok and not mask.any():
        fix = "mark the object"
        if value is None:
            fix += f" brighter than {threshold} of 255 (the brightest pixel has {levels[-1]}), change --mask-threshold"
        raise DataError(f"mask {path} marks no pixel as object; {fix}, or remove the mask")
    return mask


def list_images(folder: str | Path) -> list[Path]:
    """List the image files of a folder by extension, without subfolders and hidden files.

    Args:
        folder: The folder.

    Returns:
        The files, sorted by name.

    Raises:
        DataError: If the folder is missing or cannot be read.
    """
    return [Path(entry) for entry in _list(folder) if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()]


def _list(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or error}; pass a readable folder") from error
    return sorted(visible, key=lambda entry: entry.name)


@functools.cache
def _formats() -> tuple[str, ...]:
    # Pillow fails on the name of a format that it was built without.
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    # Whatever goes wrong here or while the picture is decoded becomes a DataError.
    if path == STDIN and content is None:
        path, content = "standard input", sys.stdin.buffer.read() if sys.stdin else b""
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} is larger than {MAX_PIXELS:,} pixels; shrink it") from error
    except UnidentifiedImageError as error:
        size = Path(path).stat().st_size if content is None else len(content)
        problem = "is not an image in a supported format" if size else "is empty (0 bytes)"
        raise DataError(f"{path} {problem}; replace it by a JPEG or PNG, or remove it") from error
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}; check the path") from error
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        reason = (error.strerror if isinstance(error, OSError) else None) or error or type(error).__name__
        raise DataError(f"cannot read {path}: {reason}; replace it or remove it") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a picture with damaged EXIF data is still readable
        return 1


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    # Yields the first row of each strip with it. Strips bound the memory that temporary arrays take.
    height = max(1, _STRIP // image.width)
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode as `read_image` does, without turning it.

    Args:
        image: The picture.

    Returns:
        RGB, of the same size.
    """
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
    # Black is 0 and white follows from the type alone, so that all pictures of a set are scaled alike.
    if image.mode == "F":
        white, kind = 1, "floats"
    else:
        bits = getattr(image, "tag_v2", {}).get(BITSPERSAMPLE, (16,))[0]
        white, kind = 2 ** min(bits, 16) - 1, "integers of more than 8 bits"
    for _, strip in _strips(image):
        values = np.asarray(strip)
        values = values[np.isfinite(values)]
        if values.size and not 0 <= values.min() <= values.max() <= white:
            raise ValueError(f"{kind} must be in 0 to {white}, found {values.min():g} to {values.max():g}")

    def convert(strip: Image.Image) -> Image.Image:
        values = np.nan_to_num(np.asarray(strip).astype(np.float64), nan=0, posinf=white, neginf=0)
        return Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))

    return convert


def _brightness(image: Image.Image) -> NDArray[np.uint8]:
    """Compute max(R, G, B) times the opacity, uint8 (H, W)."""
    deep = image.mode == "F" or image.mode.startswith("I")
    convert = _to_8_bit(image) if deep else lambda strip: strip.convert("RGBA")
    brightness = np.empty((image.height, image.width), dtype=np.uint8)
    for top, strip in _strips(image):
        values = np.asarray(convert(strip))
        if not deep:
            values = values[..., :3].max(axis=-1).astype(np.uint16) * values[..., 3] // 255
        brightness[top : top + len(values)] = values
    return brightness
