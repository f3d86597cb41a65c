"""Write the golden files: `python tests/golden/make.py`. Run once for each format; a released file never changes.

Every number is a formula, exact in float32, so that the test knows it without the code that wrote the file.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from embedcam import Explainer
from embedcam.database import Exemplars, Fusion, NetworkRecord, Refinement, WeightDatabase
from embedcam.database.neighbors import Partitions
from embedcam.nets import EmbeddingNet
from embedcam.nets.geometry import Geometry
from embedcam.nets.source import NetworkSource
from embedcam.onnx.export import export

C, K, D, T, N, FINE = 3, 128, 8, 10, 12, 64
CREATED = "2026-01-02T03:04:05+00:00"


def weights(rows: int, channels: int) -> np.ndarray:
    """Every row is a permutation of the same squares: 37 and the number of channels have no factor in common."""
    row, channel = np.indices((rows, channels))
    return ((((37 * channel + 11 * row) % channels) ** 2 - 50) / 2.0**24).astype(np.float32)


def points(rows: int, dim: int) -> np.ndarray:
    row, place = np.indices((rows, dim))
    return (((5 * row + 3 * place) % 16 - 7) / 32).astype(np.float32)


def network() -> EmbeddingNet:
    net = EmbeddingNet("tiny", D, image_size=32, layer="features.14").eval()
    state = {}
    for number, (name, value) in enumerate(net.state_dict().items()):
        size = value.numel()
        numbers = ((37 * np.arange(size) + 13 * number) % 101 - 50) / 128
        if name.endswith("running_var"):
            numbers = 1 + np.abs(numbers)
        elif name.endswith("num_batches_tracked"):
            numbers = np.zeros(size)
        state[name] = torch.from_numpy(numbers.reshape(value.shape)).to(value.dtype)
    net.load_state_dict(state)
    return net


def database(net: EmbeddingNet, source: NetworkSource) -> WeightDatabase:
    mean = weights(C, K)
    top = np.argsort(-mean, axis=1)[:, :T].astype(np.int32)
    cluster = np.arange(N) % C
    own = weights(N, K)
    own_top = np.argsort(-own, axis=1)[:, :T].astype(np.int32)
    return WeightDatabase(
        network=replace(NetworkRecord.of(net), source=source),
        geometry=Geometry((4.0, 4.0), (1.0, 1.0)),
        method="gradcam",
        target="triplet_margin",
        pairs=0,
        seed=7,
        created=CREATED,
        centroids=points(C, D),
        counts=np.bincount(cluster),
        weights_mean=mean,
        weights_std=np.abs(mean) / 2,
        top_channels=top,
        top_weights=np.take_along_axis(mean, top.astype(np.int64), axis=1),
        distance_quantiles=(np.arange(C)[:, None] + np.array([1, 2, 3, 4, 5])).astype(np.float32) / 8,
        label_names=("Ünïcode", "東京", "<b>bold</b>"),
        label_histogram=np.array([[4, 0, 0], [0, 3, 1], [0, 0, 3]]),
        exemplars=Exemplars(
            points(N, D),
            own_top,
            np.take_along_axis(own, own_top.astype(np.int64), axis=1),
            cluster,
            np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2, -1]),
            tuple(f"class/{number}.jpg" for number in range(N)),
            Partitions(points(2, D), np.arange(N, dtype=np.int32) % 2, 1),
        ),
        refinement=Refinement((64, 64), 1.5, Fusion("features.8", Geometry((4.0, 4.0), (1.0, 1.0)), weights(C, FINE))),
        embedcam_version="0.1.0",
    )


def main(folder: Path) -> None:
    net = network()
    net.save(folder / "net-1.safetensors")
    sha256 = hashlib.sha256((folder / "net-1.safetensors").read_bytes()).hexdigest()
    db = database(net, NetworkSource(str(folder / "net-1.safetensors"), file_sha256=sha256))
    db.save(folder / "weights-1.0.0.h5")
    export(Explainer(net, db), folder / "explainer-1.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
