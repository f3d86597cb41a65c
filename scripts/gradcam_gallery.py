"""Draw Grad-CAM and Grad-CAM++ of five classifiers, at a deep and a shallow layer each.

    python scripts/gradcam_gallery.py dog.jpg --weights DEFAULT --out runs/gallery

Networks, layers and columns are those of the figure of pytorch-gradcam: alexnet, vgg16, resnet101, densenet161 and
squeezenet1_1 as rows; the picture, and map and overlay of each method as columns. The explained class is the most
likely one. Writes OUT/deep.png and OUT/shallow.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision import models

from embedcam.data.images import read_image
from embedcam.data.preprocess import Preprocess
from embedcam.errors import EmbedcamError, NetworkError
from embedcam.explain.explanation import Explanation
from embedcam.explain.maps import PLACEMENTS
from embedcam.gradient import WEIGHTINGS, ClassScore, GradCAM
from embedcam.nets.weights import load_into, read_state_dict
from embedcam.show.grid import grid, save_png
from embedcam.utils import progress
from embedcam.utils.files import require_writable

# Network -> deep and shallow layer, with the names of pytorch-gradcam.
NETWORKS = {
    "alexnet": ("features_11", "features_0"),
    "vgg16": ("features_29", "features_0"),
    "resnet101": ("layer4", "layer1"),
    "densenet161": ("features_norm5", "features_norm0"),
    "squeezenet1_1": ("features_12_expand3x3_activation", "features_3_expand3x3_activation"),
}
DEPTHS = ("deep", "shallow")
PICTURE_SIZE = 224


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("picture", nargs="?", type=Path, help="a photograph; scikit-learn's sample by default")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", default="DEFAULT", help="DEFAULT (downloaded), or a folder of state dicts")
    source.add_argument("--random", action="store_true", help="use random weights")
    parser.add_argument(
        "--method", choices=WEIGHTINGS.names(), default="gradcam++-elementwise", help="second method, besides gradcam"
    )
    parser.add_argument("--placement", choices=PLACEMENTS, default=PLACEMENTS[0], help="placement of the cells")
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"), help="output folder")
    args = parser.parse_args(arguments)
    progress.show()
    try:
        for depth in DEPTHS:
            require_writable(args.out / f"{depth}.png")
        picture = sample() if args.picture is None else read_image(args.picture)
        sheets = gallery(picture, None if args.random else args.weights, args.method, args.placement)
        for depth, sheet in sheets.items():
            save_png(sheet, args.out / f"{depth}.png")
            print(args.out / f"{depth}.png")
    except EmbedcamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def gallery(picture: Image.Image, weights: str | None, method: str, placement: str) -> dict[str, Image.Image]:
    """Explain a picture with all networks; return one sheet per depth."""
    methods = ("gradcam", method)
    rows: dict[str, list[list[NDArray[np.uint8]]]] = {depth: [] for depth in DEPTHS}
    captions: dict[str, list[list[str | None]]] = {depth: [] for depth in DEPTHS}
    images = torch.from_numpy(Preprocess()(picture))[None]
    picture.thumbnail((2 * PICTURE_SIZE, 2 * PICTURE_SIZE))
    pixels = np.asarray(picture)
    for name, layers in progress.track(NETWORKS.items(), "explaining", len(NETWORKS)):
        model = load(name, weights)
        with torch.inference_mode():
            probability, index = model.eval()(images).softmax(dim=1)[0].max(dim=0)
        label = "untrained" if weights is None else f"{class_name(name, int(index))} {float(probability):.0%}"
        by_method = [GradCAM(model, layers, method=each, placement=placement)(images, ClassScore()) for each in methods]
        for depth, layer in zip(DEPTHS, layers, strict=True):
            explained: list[Explanation] = [explanations[layer] for explanations in by_method]
            drawn = [each.overlay([pixels], alpha=alpha)[0] for alpha in (1.0, 0.5) for each in explained]
            rows[depth].append([pixels, *drawn])
            layer_captions = [f"{layer}, flat" if each.notes[0] else layer for each in explained]
            captions[depth].append([label, *layer_captions, None, None])
    return {
        depth: grid(
            rows[depth],
            captions[depth],
            column_titles=["picture", *methods, *(f"overlay, {each}" for each in methods)],
            row_titles=list(NETWORKS),
            picture_size=PICTURE_SIZE,
        )
        for depth in DEPTHS
    }


def load(name: str, weights: str | None) -> nn.Module:
    """Load a classifier: untrained (None), with torchvision's weights ("DEFAULT"), or with a file of a folder."""
    if weights == "DEFAULT":
        try:
            trained: nn.Module = models.get_model(name, weights="DEFAULT")
        except OSError as error:
            raise NetworkError(
                f"cannot download the weights of {name}: {error}; set --weights to a folder of state dicts"
            ) from error
        return trained
    torch.manual_seed(0)
    model: nn.Module = models.get_model(name, weights=None)
    if weights is not None:
        # torchvision's files are named like "vgg16-397923af.pth"; "vgg16_bn" is another network.
        files = sorted(file for file in Path(weights).glob(f"{name}[-.]*") if file.is_file())
        if not files:
            raise NetworkError(f"no weights of {name} in {weights}; put its state dict there as {name}.pth")
        load_into(model, read_state_dict(files[0]), files[0], f"backbone {name!r}")
    return model


def class_name(network: str, index: int) -> str:
    name: str = models.get_model_weights(network).DEFAULT.meta["categories"][index]
    return name


def sample() -> Image.Image:
    """A photograph of scikit-learn."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg"))


if __name__ == "__main__":
    sys.exit(main())
