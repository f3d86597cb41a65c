"""Random crops and flips of training pictures."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional

# As torchvision's RandomResizedCrop, but with at least half of the picture, which holds more of the object.
_AREA, _RATIO, _TRIES = (0.5, 1.0), 4 / 3, 10


def augment(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Crop a picture at random, and flip every second one.

    torchvision's random transforms draw from the generator that all threads share; here each picture has its own.

    Args:
        picture: Of any size.
        random: Generator of this picture.

    Returns:
        A crop of half of the picture's area or more, at 3 : 4 to 4 : 3; the whole picture if no such crop fits.
    """
    for _ in range(_TRIES):
        area = picture.width * picture.height * random.uniform(*_AREA)
        ratio = _RATIO ** random.uniform(-1, 1)
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= picture.width and 0 < height <= picture.height:
            left, top = random.integers(picture.width - width + 1), random.integers(picture.height - height + 1)
            picture = functional.crop(picture, int(top), int(left), height, width)
            break
    return functional.horizontal_flip(picture) if random.random() < 0.5 else picture
