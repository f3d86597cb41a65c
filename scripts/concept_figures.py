"""Draw the figures of the documentation's page on concepts, from a network and its weight database.

    python scripts/concept_figures.py --net runs/demo/net.safetensors --db runs/demo/weights.h5 --data digits

OUT/pipeline.png follows test images from their channels to the heat map, OUT/clusters.png shows what clusters hold and
what they point at: the published transfer, one layer, placed. OUT/placing.png shows where cells belong, by classic
networks.
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

CELL = 132  # pixels of a picture on a sheet
ROWS, CHANNELS, MEMBERS = 3, 4, 4
# Networks whose layer has a cell every 32 pixels.
CLASSICS = {"mobilenet_v2": "features.18", "resnet18": "layer4", "vgg11": "features"}
SIZE = (224, 224)
OWN, RESIZED = (214, 51, 40), (40, 96, 200)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figures; 0 when done, 1 after an error, which is told in one line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", type=Path, required=True, help="made by `embedcam train` or `embedcam demo`")
    parser.add_argument("--db", type=Path, required=True, help="its weight database, with exemplars")
    parser.add_argument("--data", required=True, help="the data set they were made from")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder")
    given = parser.parse_args(arguments)
    try:
        net, database = EmbeddingNet.load(given.net), WeightDatabase.load(given.db)
        training, test = load(given.data, "train"), load(given.data, "test")
        some = test.subset(np.linspace(0, len(test) - 1, ROWS).astype(int))
        save_png(pipeline(net, database, some), given.out / "pipeline.png")
        save_png(clusters(net, database, training, test), given.out / "clusters.png")
        save_png(placing(), given.out / "placing.png")
    except EmbedcamError as error:
        print(f"concept_figures: {error}", file=sys.stderr)
        return 1
    progress.say(f"wrote pipeline.png, clusters.png and placing.png to {given.out}")
    return 0


def pipeline(net: EmbeddingNet, database: WeightDatabase, samples: Samples) -> Image.Image:
    """Follow pictures from the channels of their feature layer to the heat map.

    Args:
        net: The network.
        database: Made for it.
        samples: The pictures, a row each.

    Returns:
        The figure.
    """
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
        summed = combine(maps[row : row + 1], weights[None], channels[None])
        picture = np.asarray(samples.image(row))
        labels = ", ".join(f"{count} of {name}" for name, count in database.labels_of(int(cluster), 2))
        cells = [as_cells(cell / max(float(strongest.max()), 1e-12)) for cell in strongest]
        rows.append(
            [picture, *cells, as_cells(normalize(summed)[0]), overlay(picture, explanation.heatmaps[row], alpha=0.6)]
        )
        named = [
            f"channel {c}, weight {w / weights[0]:.2f}" for c, w in zip(channels[:CHANNELS], weights, strict=False)
        ]
        captions.append([f"cluster {cluster}: {labels}", *named, None, None])
    titles = ["picture", *[f"map {number}" for number in range(1, CHANNELS + 1)], f"sum of {len(channels)}", "placed"]
    return grid(rows, captions, titles, cell_size=CELL)


def clusters(net: EmbeddingNet, database: WeightDatabase, training: Samples, test: Samples) -> Image.Image:
    """Show the nearest training pictures of some clusters, and test pictures explained with their weights.

    Args:
        net: The network.
        database: Made for it, with exemplars.
        training: What it was made from.
        test: Other pictures.

    Returns:
        The figure, one cluster a row.

    Raises:
        EmbedcamError: If the database has no exemplars, or they are of other pictures.
    """
    exemplars = database.exemplars
    if exemplars is None:
        raise EmbedcamError("the weight database keeps no exemplars; build it without --no-exemplars")
    where = {name: index for index, name in enumerate(training.ids)}
    if unknown := [name for name in exemplars.path if name not in where]:
        raise EmbedcamError(f"{unknown[0]} is not among the training pictures; give the --data it was built from")
    explainer = Explainer(net, database, transfer="cluster")
    explanation = explainer(inputs(explainer, test.subset(range(min(200, len(test))))))
    assert explanation.clusters is not None
    rows, captions, sides = [], [], []
    largest = np.argsort(-np.bincount(explanation.clusters, minlength=database.clusters), kind="stable")[:ROWS]
    for cluster in largest.tolist():
        inside = np.flatnonzero(exemplars.cluster == cluster)
        away = np.linalg.norm(exemplars.embeddings[inside] - database.centroids[cluster], axis=1)
        near = inside[np.argsort(away, kind="stable")][:MEMBERS]
        first = int(np.flatnonzero(explanation.clusters == cluster)[0])
        picture = np.asarray(test.image(first))
        members = [np.asarray(training.image(where[exemplars.path[index]])) for index in near.tolist()]
        rows.append([*members, picture, overlay(picture, explanation.heatmaps[first])])
        captions.append([*[None] * len(near), explanation.typicality_in_words(first), None])
        labels = ", ".join(f"{count} of {name}" for name, count in database.labels_of(cluster, 2))
        sides.append(f"cluster {cluster}: {labels}")
    titles = [*["training picture"] * MEMBERS, "test picture", "its heat map"]
    return grid(rows, captions, titles, sides, cell_size=CELL)


def placing() -> Image.Image:
    """Show where the cells of some classic networks are centred, what one cell sees, and that cell resized and placed.

    Returns:
        The figure, one network a row.
    """
    rows = []
    for name, layer in CLASSICS.items():
        torch.manual_seed(0)
        model = backbones.create(name).eval()
        own, cells = geometry(model, layer, SIZE), SIZE[0] // 32
        lit = np.zeros((1, cells, cells), np.float32)
        lit[0, cells // 2, cells // 2] = 1
        seen = colorize(field_of(model, layer, cells // 2))
        stretched = Geometry.stretch((cells, cells), SIZE)
        maps = [colorize(place(lit, where, SIZE)[0]) for where in (stretched, own)]
        everywhere = np.full((*SIZE, 3), 238, np.uint8)
        middle = range(cells // 2, cells // 2 + 1)
        rows.append(
            [
                dotted(everywhere, own, stretched, range(cells)),
                *(dotted(picture, own, stretched, middle) for picture in (seen, *maps)),
            ]
        )
    titles = ["centres of all cells", "seen by the middle one", "lit, resized", "lit, placed"]
    return grid(rows, column_titles=titles, row_titles=list(CLASSICS), cell_size=190)


def field_of(model: torch.nn.Module, layer: str, cell: int) -> NDArray[np.float32]:
    """Find what a cell sees: how strongly it depends on each pixel, on average over random images.

    Args:
        model: A network, of random weights.
        layer: The cell's.
        cell: Its row and column.

    Returns:
        float32 (H, W) in [0, 1], smoothed a little.
    """
    images = torch.randn(16, 3, *SIZE, requires_grad=True)
    outputs: list[torch.Tensor] = []
    layers.resolve(model, layer).register_forward_hook(lambda module, given, output: outputs.append(output))
    model(images)
    (gradient,) = torch.autograd.grad(outputs[0][:, :, cell, cell].sum(), images)
    strength = gradient.abs().mean(dim=(0, 1))[None, None]
    field: NDArray[np.float32] = normalize(torch.nn.functional.avg_pool2d(strength, 9, 1, 4)[0].numpy())[0]
    return field


def dotted(picture: NDArray[np.uint8], own: Geometry, resized: Geometry, cells: range) -> NDArray[np.uint8]:
    """Mark the centres of cells: red where they are, blue where a resize puts them.

    Args:
        picture: uint8 RGB of the input's size.
        own: Where they are.
        resized: Where a resize puts them.
        cells: Rows and columns to mark.

    Returns:
        uint8 RGB, enlarged.
    """
    sheet = Image.fromarray(picture).resize((2 * SIZE[1], 2 * SIZE[0]), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(sheet)
    for where, colour in ((resized, RESIZED), (own, OWN)):
        for row, column in itertools.product(cells, cells):
            y = 2 * (where.first_cell_center[0] + row * where.cell_stride[0])
            x = 2 * (where.first_cell_center[1] + column * where.cell_stride[1])
            draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=colour, outline="white", width=2)
    return np.asarray(sheet)


def as_cells(cells: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw a map as it is, each cell a square.

    Args:
        cells: (h, w) in [0, 1].

    Returns:
        uint8 RGB.
    """
    side = 448 // max(cells.shape)
    return colorize(np.kron(np.clip(cells, 0, 1), np.ones((side, side), np.float32)))


def inputs(explainer: Explainer, samples: Samples) -> torch.Tensor:
    """Prepare pictures.

    Args:
        explainer: That will explain them.
        samples: The pictures.

    Returns:
        (B, 3, H, W).
    """
    return torch.from_numpy(np.stack([explainer.preprocess(samples.image(i)) for i in range(len(samples))]))


if __name__ == "__main__":
    sys.exit(main())
