"""Time explained matches from a gallery index, and compare them with grad-cam.

    pip install "embedcam[test]"
    python benchmarks/match.py [--images 50000] [--json match.json]

The index holds random embeddings and cell embeddings; each round explains a query with ten other images of it, after
the query's forward pass. grad-cam explains the same ten pairs on both sides, with the similarity as its target: it runs
the network on the query and on the hits. The ratio is a median over the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytorch_grad_cam
import torch
from measure import Median, about, interleaved, ratio, report
from numpy.typing import NDArray

import embedcam
from embedcam.database.record import NetworkRecord
from embedcam.gallery import Gallery, format
from embedcam.gallery.format import GalleryRecord
from embedcam.gallery.items import Item
from embedcam.gallery.matches import Match
from embedcam.nets import receptive_field
from embedcam.utils.clock import now

DIM, TOP, BLOCK = 128, 10, 4096
COLUMNS = {"work": "", "ms": ".2f", "grad-cam / this": ".0f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=50_000, help="images of the index")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls per method")
    parser.add_argument("--json", type=Path, help="JSON file for the table")
    args = parser.parse_args()
    torch.manual_seed(0)
    net = embedcam.EmbeddingNet(args.backbone, DIM, image_size=args.image_size).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery.h5"
        fill(path, net, args.images)
        with Gallery.open(path, net) as gallery:
            seconds = interleaved(calls(gallery, net), args.rounds, warm_up=1)
    rows = [
        {
            "work": name,
            "ms": Median.of(1000 * each for each in own),
            "grad-cam / this": ratio(seconds["grad-cam, the same ten pairs"], own),
        }
        for name, own in seconds.items()
    ]
    made_with = about("torch", "grad-cam") | {"threads": torch.get_num_threads(), "images": args.images}
    report(COLUMNS, rows, made_with, args.json)


def fill(path: Path, net: embedcam.EmbeddingNet, images: int) -> None:
    """Write an index of random images."""
    rng = np.random.default_rng(0)
    geometry = receptive_field.geometry(net.body, net.layer, net.preprocess.input_size)
    record = GalleryRecord(NetworkRecord.of(net), geometry, net.map_size, now())
    with h5py.File(path, "w", libver="earliest") as file:
        format.create(file, record, ["random"], path.parent)
        for start in range(0, images, BLOCK):
            count = min(BLOCK, images - start)
            embeddings = rng.standard_normal((count, DIM), dtype=np.float32)
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
            texts = {key: [f"{key}/{start + number:09d}.jpg" for number in range(count)] for key in format.TEXTS}
            cells = rng.integers(-127, 128, (count, *net.map_size, DIM), dtype=np.int8)
            scales, labels = np.full(count, 0.01, np.float32), np.zeros(count, np.int64)
            arrays: dict[str, NDArray[Any]] = {
                "embeddings": embeddings,
                "cells": cells,
                "scales": scales,
                "labels": labels,
            }
            format.append(file, texts, arrays)


def calls(gallery: Gallery, net: embedcam.EmbeddingNet) -> dict[str, Callable[[], object]]:
    """What is timed. Every call takes other hits."""
    rng, size = np.random.default_rng(1), net.preprocess.input_size
    pictures = rng.integers(0, 256, (1 + TOP, *size, 3), dtype=np.uint8)
    (query,) = gallery.see(pictures[:1])
    batch = torch.from_numpy(net.preprocess.batch(pictures[[0] * TOP + list(range(1, 1 + TOP))]))
    grad_cam = pytorch_grad_cam.GradCAM(net, [net.feature_layer])

    def hits() -> list[Item]:
        return gallery.items(rng.integers(len(gallery), size=TOP))

    def cells() -> list[object]:
        matches = explained(gallery, query, hits())
        return [
            (match.contributions("query"), match.contributions("hit"), match.correspondences()) for match in matches
        ]

    def drawn() -> list[NDArray[np.uint8]]:
        matches = explained(gallery, query, hits())
        sides = ((side, match, number) for number, match in enumerate(matches, 1) for side in range(2))
        return [match.shared[side].overlay(pictures[[side * number]])[0] for side, match, number in sides]

    def backprop() -> object:
        others = torch.from_numpy(np.stack([item.embedding for item in hits()]))
        partners = torch.cat([others, torch.from_numpy(query.embedding).expand(TOP, -1)])
        return grad_cam(batch, [lambda embedding, other=other: embedding @ other for other in partners])

    return {
        "forward pass of the query": lambda: gallery.see(pictures[:1]),
        "search": lambda: gallery.nearest(query.embedding[None], TOP),
        "ten hits explained: contributions of both sides, correspondences": cells,
        "ten hits explained and drawn": drawn,
        "grad-cam, the same ten pairs": backprop,
    }


def explained(gallery: Gallery, query: Item, hits: list[Item]) -> list[Match]:
    return [gallery.explain_match(query, hit) for hit in hits]


if __name__ == "__main__":
    main()
