"""Measure keypoint transfer: does the matched place of the hit show the part that the query shows?

    pip install embedcam
    python benchmarks/keypoints.py --net net.safetensors --data cub:CUB_200_2011 [--json keypoints.json]

The test images are indexed. For pairs of images of the same class, each part that is visible in both is transferred
from the query to the hit. PCK is the share of parts whose place is found within a tenth (a fifth) of the longer side of
the hit's box; its 95 % interval is over query images. Nothing is trained on parts. The controls: cell embeddings alone;
the network with the weights of each layer shuffled; the place found in another image, of another class, taken as a
place of the hit's box; the same place of the box, and of the picture.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Median, about, report
from numpy.typing import NDArray

import embedcam
from embedcam.data import load
from embedcam.data.samples import FileSamples, Samples
from embedcam.evaluate.parts import keypoints_of
from embedcam.gallery import Gallery, index
from embedcam.nets.network import Network

WITHIN = (0.1, 0.2)
COLUMNS = {"method": "", **{f"PCK@{share}": ".3f" for share in WITHIN}, "parts": "", "pairs": ""}
Places = NDArray[Any]
Transfer = Callable[[int, int, Places], Places]
"""From rows of the query and of the hit, and places (n, 2), y and x as shares of the query, to those of the hit."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", required=True, help="network, as for `embedcam index`")
    parser.add_argument("--data", required=True, help="data set with parts and boxes; its test images are used")
    parser.add_argument("--split", default="test")
    parser.add_argument("--input-size", type=int, default=384, help="side of the images, in pixels")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="JSON file for the table")
    args = parser.parse_args()
    samples, net = load(args.data, args.split), at_size(embedcam.load_network(args.net), args.input_size)
    truth = Truth(samples)
    pairs = truth.pairs(args.pairs)
    with tempfile.TemporaryDirectory() as folder:
        with indexed(net, samples, Path(folder) / "gallery.h5") as gallery:
            methods: dict[str, Transfer] = {
                "descriptors": transfer(gallery),
                "cell embeddings": transfer(gallery, cells=True),
                "another image": truth.through_another(transfer(gallery)),
                "same place of the box": lambda query, hit, places: truth.in_picture(hit, truth.in_box(query, places)),
                "same place of the picture": lambda query, hit, places: places,
            }
            rows = [truth.measure(name, method, pairs) for name, method in methods.items()]
        with indexed(randomised(net), samples, Path(folder) / "random.h5") as gallery:
            rows.insert(2, truth.measure("shuffled weights", transfer(gallery), pairs))
    report(COLUMNS, rows, about("torch") | {"input size": args.input_size}, args.json)


def at_size(net: Network, side: int) -> Network:
    net.preprocess = net.preprocess.resized_to((side, side))
    net.layer = net.layer  # its cells are measured again
    return net.eval()


def randomised(net: Network) -> Network:
    """Shuffle the weights within each layer."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel())].view_as(weight))
    return net


def indexed(net: Network, samples: Samples, path: Path) -> Gallery:
    index(net, samples, path, strict=True)
    return Gallery.open(path, net)


def transfer(gallery: Gallery, *, cells: bool = False) -> Transfer:
    items = gallery.items(range(len(gallery)))
    if cells:
        items = [replace(item, descriptors=None) for item in items]
    return lambda query, hit, places: gallery.explain_match(items[query], items[hit]).transfer(places)


class Truth:
    """The parts and boxes of a data set, as shares of the pictures."""

    def __init__(self, samples: Samples) -> None:
        assert isinstance(samples, FileSamples)
        assert samples.labels is not None
        assert samples.boxes is not None
        self.labels = samples.labels
        self.sizes = np.array([samples.image(number).size[::-1] for number in range(len(samples))], float)
        self.parts = keypoints_of(samples).places[:, :, ::-1] / self.sizes[:, None]
        self.corners = samples.boxes[:, 1::-1] / self.sizes
        self.sides = samples.boxes[:, :1:-1] / self.sizes

    def pairs(self, count: int) -> list[tuple[int, int]]:
        """Draw pairs of images of one class with a part that both show."""
        rng, found = np.random.default_rng(0), list[tuple[int, int]]()
        while len(found) < count:
            query = int(rng.integers(len(self.labels)))
            hit = int(rng.choice(np.flatnonzero(self.labels == self.labels[query])))
            if query != hit and self.visible(query, hit).any():
                found.append((query, hit))
        return found

    def visible(self, query: int, hit: int) -> NDArray[np.bool_]:
        """Tell which parts (P,) both show."""
        both: NDArray[np.bool_] = ~np.isnan(self.parts[[query, hit]]).any(axis=(0, 2))
        return both

    def in_box(self, row: int, places: Places) -> Places:
        """Convert shares of a picture to those of its box."""
        of_box: Places = (places - self.corners[row]) / self.sides[row]
        return of_box

    def in_picture(self, row: int, places: Places) -> Places:
        """Convert shares of a box to those of its picture."""
        of_picture: Places = self.corners[row] + places * self.sides[row]
        return of_picture

    def through_another(self, transfer: Transfer) -> Transfer:
        """Transfer to an image of another class, and from its box to that of the hit."""

        def method(query: int, hit: int, places: Places) -> Places:
            others = np.flatnonzero(self.labels != self.labels[hit])
            other = int(others[(query + hit) % len(others)])
            return self.in_picture(hit, self.in_box(other, transfer(query, other, places)))

        return method

    def measure(self, name: str, transfer: Transfer, pairs: list[tuple[int, int]]) -> dict[str, object]:
        """Measure PCK."""
        queries, errors = [], []
        for query, hit in pairs:
            visible = self.visible(query, hit)
            away = (transfer(query, hit, self.parts[query, visible]) - self.parts[hit, visible]) * self.sizes[hit]
            errors.append(np.linalg.norm(away, axis=1) / (self.sides[hit] * self.sizes[hit]).max())
            queries.append(np.full(len(away), query))
        of, error = np.concatenate(queries), np.concatenate(errors)
        shares = {f"PCK@{within}": mean(error <= within, of) for within in WITHIN}
        return {"method": name, **shares, "parts": len(error), "pairs": len(pairs)}


def mean(right: NDArray[np.bool_], of: NDArray[np.int64]) -> Median:
    """Mean with its 95 % interval, resampling query images with all their parts."""
    hits, counts = np.bincount(of, right), np.bincount(of)
    hits, counts = hits[counts > 0], counts[counts > 0]
    drawn = np.random.default_rng(0).integers(len(counts), size=(1000, len(counts)))
    low, high = np.quantile(hits[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (0.025, 0.975))
    return Median(float(right.mean()), float(low), float(high))


if __name__ == "__main__":
    main()
