"""Grid test through a gallery index: does the map of a composite and a hit mark the picture of the class of the hit?

    pip install embedcam
    python benchmarks/match_grid.py --net net.safetensors --data folder:butterflies [--json grid.json]

The training images are indexed. Queries are composites of four test images of different classes, each at the network's
input size; hits are images of their classes from the index. A row has the share of the map's heat in the quarter that
has the hit's class, and the share of maps with more than half there; chance is .25. Intervals are over composites.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import Median, about, report
from numpy.typing import NDArray
from torch import Tensor

import embedcam
from embedcam.data import load
from embedcam.evaluate.grid import COLUMNS as SCORES
from embedcam.evaluate.grid import LOCALISED, SHARE, Ask, Composites, grid_test
from embedcam.explain.maps import place
from embedcam.gallery import Gallery, index
from embedcam.gallery.items import Item
from embedcam.gallery.matches import Match
from embedcam.nets import layers

COLUMNS = {"map": "", SHARE.key: ".3f", LOCALISED.key: ".3f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", required=True, help="network, as for `embedcam index`")
    parser.add_argument("--data", required=True, help="labelled images with a training and a test split")
    parser.add_argument("--composites", type=int, default=50)
    parser.add_argument("--json", type=Path, help="JSON file for the table")
    args = parser.parse_args()
    net = embedcam.load_network(args.net).eval()
    stored, test = load(args.data, "train"), load(args.data, "test")
    assert stored.labels is not None
    composites = Composites.draw(net, test, args.composites)
    with tempfile.TemporaryDirectory() as folder:
        index(net, stored, Path(folder) / "gallery.h5", strict=True)
        with Gallery.open(Path(folder) / "gallery.h5", net) as gallery:
            asks = {
                "shared": asked(gallery, lambda match: match.evidence()),
                "positive contributions": asked(gallery, lambda match: match.contributions().clip(min=0)),
            }
            scores = grid_test(asks, composites, composites.partners(stored.labels))
    rows = [{"map": name, **with_intervals(row)} for name, row in scores.items()]
    report(COLUMNS, rows, about("torch") | {"composites": args.composites}, args.json)


def with_intervals(row: dict[str, object]) -> dict[str, Median]:
    interval = row["interval"]
    assert isinstance(interval, dict)
    return {key: Median(float(str(row[key])), *interval[key]) for key in (score.key for score in SCORES) if key in row}


def asked(gallery: Gallery, cells_of: Callable[[Match], NDArray[np.float32]]) -> Ask:
    """Make a method whose questions are rows of the gallery."""

    def ask(images: Tensor, rows: Tensor) -> NDArray[np.float32]:
        size = (images.shape[2], images.shape[3])
        queries = composite_items(gallery, images)
        cells = [
            cells_of(gallery.explain_match(query, row))
            for query, own in zip(queries, rows.tolist(), strict=True)
            for row in own
        ]
        maps: NDArray[np.float32] = place(np.stack(cells), gallery.record.geometry, size)
        return maps.reshape(*rows.shape, *size)

    return ask


def composite_items(gallery: Gallery, images: Tensor) -> list[Item]:
    """What `Gallery.see` gives of images of the index's size."""
    net, record = gallery.net, gallery.record
    with layers.evaluating(net), torch.inference_mode():
        seen = net.activations(images)
        cells = net.cells(seen).embeddings.permute(0, 2, 3, 1).numpy()
    preprocess = gallery.preprocess.resized_to((images.shape[2], images.shape[3]))
    return [
        Item("", "", None, embedding, own, record.geometry, preprocess)
        for embedding, own in zip(seen.embeddings.numpy(), cells, strict=True)
    ]


if __name__ == "__main__":
    main()
