"""Made pictures whose network sees colours: either of the object, or of a stamp in the border."""

import numpy as np
import torch
from PIL import Image
from torch import nn

import embedcam
from embedcam.data.preprocess import Preprocess

COLOURS = {"blue": (0, 0, 1), "green": (0, 1, 0), "red": (1, 0, 0)}


def colour_net():
    """Embed a picture as its mean colour, from cells of 4 x 4 pixels."""
    module = nn.Sequential(nn.Conv2d(3, 3, 4, stride=4, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
    plain = Preprocess((32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    return embedcam.wrap(module.eval(), layer="0", preprocess=plain)


def write_pictures(root, *, stamped, masks=True, count=6):
    """Write grey objects with a stamp in the colour of their class above them, or objects in that colour.

    The first blue picture has almost the colour of the red ones.
    """
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(count):
            shown = (1, 0.2, 0) if (name, number) == ("blue", 0) else colour
            pixels = np.zeros((32, 32, 3))
            pixels[4:28, 4:28] = 0.01 if stamped else np.multiply(shown, 0.9)
            if stamped:
                pixels[:4, 8:24] = shown
            pixels = (255 * (pixels + rng.uniform(0, 0.005, pixels.shape))).clip(0, 255).astype(np.uint8)
            mask = np.zeros((32, 32), np.uint8)
            mask[4:28, 4:28] = 255
            for kind, array in (("images", pixels), ("masks", mask))[: 1 + masks]:
                (root / kind / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / kind / name / f"{number}.png")
    return f"folder:{root}@all"
