"""Draw the figures of the concepts page of the documentation.

    python scripts/concept_figures.py --net runs/demo/net.safetensors --db runs/demo/weights.h5 --data digits

OUT/pipeline.png shows the steps from channels to the heat map, OUT/clusters.png images of clusters and their heat maps
(both with the published transfer and one layer), OUT/placing.png the cell centers of common networks.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from embedcam.data import Samples, load
from embedcam.database import WeightDatabase
from embedcam.errors import EmbedcamError
from embedcam.explain import Explainer
from embedcam.explain.maps import combine, normalize, place
from embedcam.nets import EmbeddingNet, backbones, layers
from embedcam.nets.geometry import Geometry
from embedcam.nets.receptive_field import geometry
from embedcam.show import colorize, grid, overlay
from embedcam.show.grid import save_png
from embedcam.utils import progress

PICTURE_SIZE = 132
ROWS, CHANNELS, MEMBERS = 3, 4, 4
# Networks whose feature layer has stride 32.
NETWORKS = {"mobilenet_v2": "features.18", "resnet18": "layer4", "vgg11": "features"}
SIZE = (224, 224)
PLACED_COLOR, RESIZED_COLOR = (214, 51, 40), (40, 96, 200)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", type=Path, required=True, help="network file")
    parser.add_argument("--db", type=Path, required=True, help="its weight database, with exemplars")
    parser.add_argument("--data", required=True, help="SPEC of their data set")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="output folder")
    args = parser.parse_args(arguments)
    try:
        net, database = EmbeddingNet.load(args.net), WeightDatabase.load(args.db)
        training, test = load(args.data, "train"), load(args.data, "test")
        examples = test.subset(np.linspace(0, len(test) - 1, ROWS).astype(int))
        save_png(pipeline(net, database, examples), args.out / "pipeline.png")
        save_png(clusters(net, database, training, test), args.out / "clusters.png")
        save_png(placing(), args.out / "placing.png")
    except EmbedcamError as error:
        print(f"concept_figures: {error}", file=sys.stderr)
        return 1
    progress.say(f"wrote pipeline.png, clusters.png and placing.png to {args.out}")
    return 0


def pipeline(net: EmbeddingNet, database: WeightDatabase, samples: Samples) -> Image.Image:
    """Draw the steps from the channels of the feature layer to the heat map, one picture per row."""
    explainer = Explainer(net, database, transfer="cluster")
    images = inputs(explainer, samples)
    explanation = explainer(images)
    assert explanation.clusters is not None
    with torch.inference_mode():
        maps = explainer.net.activations(images).maps.numpy()
    rows, captions = [], []
    for row, cluster in enumerate(explanation.clusters):
        channels, weights = database.top_channels[cluster], database.top_weights[cluster]
        strongest = maps[row, channels[:CHANNELS]]
        summed = normalize(combine(maps[row : row + 1, channels], weights[None]))[0]
        picture = np.asarray(samples.image(row))
        labels = ", ".join(f"{count} of {name}" for name, count in database.labels_of(int(cluster), 2))
        drawn = [squares(channel / max(float(strongest.max()), 1e-12)) for channel in strongest]
        rows.append([picture, *drawn, squares(summed), overlay(picture, explanation.heatmaps[row], alpha=0.6)])
        names = [
            f"channel {c}, weight {w / weights[0]:.2f}" for c, w in zip(channels[:CHANNELS], weights, strict=False)
        ]
        captions.append([f"cluster {cluster}: {labels}", *names, None, None])
    titles = ["picture", *[f"map {number}" for number in range(1, CHANNELS + 1)], f"sum of {len(channels)}", "placed"]
    return grid(rows, captions, titles, picture_size=PICTURE_SIZE)


def clusters(net: EmbeddingNet, database: WeightDatabase, training: Samples, test: Samples) -> Image.Image:
    """Draw the nearest training pictures of clusters and an explained test picture, one cluster per row."""
    exemplars = database.exemplars
    if exemplars is None:
        raise EmbedcamError("the weight database has no exemplars; build it without --no-exemplars")
    row_of = {name: row for row, name in enumerate(training.ids)}
    if missing := [name for name in exemplars.path if name not in row_of]:
        raise EmbedcamError(f"{missing[0]} is not in the training data; set --data to the data it was built from")
    explainer = Explainer(net, database, transfer="cluster")
    explanation = explainer(inputs(explainer, test.subset(range(min(200, len(test))))))
    assert explanation.clusters is not None
    rows, captions, sides = [], [], []
    largest = np.argsort(-np.bincount(explanation.clusters, minlength=database.clusters), kind="stable")[:ROWS]
    for cluster in largest.tolist():
        members = np.flatnonzero(exemplars.cluster == cluster)
        distances = np.linalg.norm(exemplars.embeddings[members] - database.centroids[cluster], axis=1)
        nearest = members[np.argsort(distances, kind="stable")][:MEMBERS]
        first = int(np.flatnonzero(explanation.clusters == cluster)[0])
        picture = np.asarray(test.image(first))
        pictures = [np.asarray(training.image(row_of[exemplars.path[index]])) for index in nearest.tolist()]
        rows.append([*pictures, picture, overlay(picture, explanation.heatmaps[first])])
        captions.append([*[None] * len(nearest), explanation.typicality_in_words(first), None])
        labels = ", ".join(f"{count} of {name}" for name, count in database.labels_of(cluster, 2))
        sides.append(f"cluster {cluster}: {labels}")
    titles = [*["training picture"] * MEMBERS, "test picture", "its heat map"]
    return grid(rows, captions, titles, sides, picture_size=PICTURE_SIZE)


def placing() -> Image.Image:
    """Draw cell centers, the effective receptive field of a cell, and that cell resized and placed, per network."""
    rows = []
    for name, layer in NETWORKS.items():
        torch.manual_seed(0)
        model = backbones.create(name).eval()
        placed, cells = geometry(model, layer, SIZE), SIZE[0] // 32
        resized = Geometry.stretch((cells, cells), SIZE)
        middle = cells // 2
        one_hot = np.zeros((1, cells, cells), np.float32)
        one_hot[0, middle, middle] = 1
        maps = [place(one_hot, each, SIZE)[0] for each in (resized, placed)]
        pictures = [colorize(heatmap) for heatmap in (receptive_field(model, layer, middle), *maps)]
        blank = np.full((*SIZE, 3), 238, np.uint8)
        one_cell = range(middle, middle + 1)
        rows.append(
            [
                with_centers(blank, placed, resized, range(cells)),
                *(with_centers(picture, placed, resized, one_cell) for picture in pictures),
            ]
        )
    titles = ["cell centers", "receptive field", "resized", "placed"]
    return grid(rows, column_titles=titles, row_titles=list(NETWORKS), picture_size=190)


def receptive_field(model: torch.nn.Module, layer: str, cell: int) -> NDArray[np.float32]:
    """Effective receptive field of cell (cell, cell): smoothed mean gradient over random images, (H, W) in [0, 1]."""
    images = torch.randn(16, 3, *SIZE, requires_grad=True)
    outputs: list[torch.Tensor] = []
    layers.resolve(model, layer).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(images)
    (gradient,) = torch.autograd.grad(outputs[0][:, :, cell, cell].sum(), images)
    strength = gradient.abs().mean(dim=(0, 1))[None, None]
    field: NDArray[np.float32] = normalize(torch.nn.functional.avg_pool2d(strength, 9, 1, 4)[0].numpy())[0]
    return field


def with_centers(picture: NDArray[np.uint8], placed: Geometry, resized: Geometry, cells: range) -> NDArray[np.uint8]:
    """Enlarge a picture and mark cell centers: red for the true position, blue for that of a plain resize."""
    sheet = Image.fromarray(picture).resize((2 * SIZE[1], 2 * SIZE[0]), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(sheet)
    for positions, color in ((resized, RESIZED_COLOR), (placed, PLACED_COLOR)):
        for row, column in itertools.product(cells, cells):
            y = 2 * (positions.first_cell_center[0] + row * positions.cell_stride[0])
            x = 2 * (positions.first_cell_center[1] + column * positions.cell_stride[1])
            draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=color, outline="white", width=2)
    return np.asarray(sheet)


def squares(cells: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw a map (h, w) in [0, 1] without interpolation, each cell as a square."""
    side = 448 // max(cells.shape)
    return colorize(np.kron(np.clip(cells, 0, 1), np.ones((side, side), np.float32)))


def inputs(explainer: Explainer, samples: Samples) -> torch.Tensor:
    return torch.from_numpy(np.stack([explainer.preprocess(samples.image(i)) for i in range(len(samples))]))


if __name__ == "__main__":
    sys.exit(main())
