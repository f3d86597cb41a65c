"""Predict house prices from frontal pictures, and show what raises and what lowers the price.

    python scripts/houses.py --data data/houses --weights mobilenet_v2.safetensors --out runs/houses

The data set is the Houses Dataset (Ahmed and Moustafa 2016, arXiv 1609.08399): PATH/houses.csv and
PATH/images/<house>_frontal.jpg. An embedding network with a linear regression of the log price is trained on four
fifths of the houses; only the last layers are trained, on activations that are computed once. The other houses are
explained twice: by the gradient of each picture, and by weight transfer from the clusters of the training houses.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from embedcam import receptive_field
from embedcam.builder.clusters import Moments, kmeans
from embedcam.data.samples import FileSamples
from embedcam.database.neighbors import Neighbors
from embedcam.errors import DataError, EmbedcamError, NetworkError
from embedcam.explain.grad_weights import grad_weights
from embedcam.explain.maps import combine, place
from embedcam.gradient import GradCAM, Scalar
from embedcam.nets import EmbeddingNet, layers
from embedcam.nets.inference import embed, tensor_batches
from embedcam.show.grid import grid, save_png
from embedcam.show.overlay import overlay
from embedcam.train.cut import cut
from embedcam.utils import progress
from embedcam.utils.files import require_writable, write_text

Array = NDArray[np.float32]

# Chosen by cross-validation on the training houses of seed 0.
DIM, HIDDEN = 32, 128  # without a hidden layer, all houses have the same channel weights
TRAIN_AFTER = "features.13"
BATCH = 32
BACKBONE_RATE, HEAD_RATE, DECAY = 3e-4, 1e-3, 0.05
CLUSTERS = 10  # as in Faster-Grad-CAM
HELD_OUT = 0.2
SHOWN = 8  # houses in the figure


@dataclass(frozen=True)
class Houses:
    """Pictures of houses and their prices.

    Attributes:
        samples: N pictures.
        prices: (N,) in US dollars.
    """

    samples: FileSamples
    prices: Array

    def subset(self, indices: NDArray[np.int64]) -> Houses:
        """Select houses."""
        return Houses(self.samples.subset(indices), self.prices[indices])


@dataclass(frozen=True)
class SignedWeights:
    """A weight database of C clusters with signed weights.

    Attributes:
        centroids: (C, D).
        weights: (C, K), mean gradient of the log price with respect to each channel.
    """

    centroids: Array
    weights: Array


@dataclass(frozen=True)
class SignedMaps:
    """Heat maps of what raises and what lowers the price, on the same scale.

    Attributes:
        raises: (B, H, W), not negative.
        lowers: (B, H, W), not negative.
    """

    raises: Array
    lowers: Array


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Predict house prices from pictures, and explain them in both directions."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with houses.csv and images")
    parser.add_argument("--weights", default="DEFAULT", help="ImageNet weights of MobileNetV2; DEFAULT downloads them")
    parser.add_argument("--out", type=Path, default=Path("runs/houses"), help="output folder")
    parser.add_argument("--epochs", type=int, default=12, help="training epochs")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    options = parser.parse_args(arguments)
    progress.show()
    try:
        run(options.data, options.weights, options.out, options.epochs, options.seed)
    except EmbedcamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def run(data: Path, weights: str | Path, out: Path, epochs: int, seed: int) -> dict[str, float]:
    """Train, score, explain and draw; return the scores that are written."""
    require_writable(out / "houses.png")
    train, test = split(read(data), seed)
    torch.manual_seed(seed)
    net = EmbeddingNet("mobilenet_v2", DIM, weights=weights, hidden=HIDDEN, metric="euclidean")
    price = nn.Linear(DIM, 1)
    fit(net, price, train, epochs, seed)

    predicted = predict(net, price, test.samples)
    scores = score(test.prices, predicted, train.prices)
    images = torch.cat([batch for _, batch in tensor_batches(net, test.samples, BATCH, "reading", strict=True)])
    gradient = by_gradient(net, price, images)
    database = signed_weights(net, price, train.samples, seed)
    transfer, control = by_transfer(net, database, images), by_transfer(net, database, images, shift=1)
    scores |= {f"correlation_{side}": value for side, value in correlations(gradient, transfer).items()}
    scores |= {f"correlation_{side}_wrong_cluster": value for side, value in correlations(gradient, control).items()}
    for name, value in scores.items():
        print(f"{name:38} {value:,.3f}")

    by_price = np.argsort(test.prices, kind="stable")
    shown = by_price[np.linspace(0, len(test.prices) - 1, min(SHOWN, len(test.prices))).round().astype(int)]
    save_png(figure(test, predicted, gradient, transfer, shown), out / "houses.png")
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    print(f"wrote {out / 'houses.png'} and {out / 'scores.json'}")
    return scores


def read(folder: Path) -> Houses:
    """Read the data set; every house must have a picture."""
    file = folder / "houses.csv"
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        pictures = [folder / "images" / f"{row['house']}_frontal.jpg" for row in rows]
        prices = np.array([float(row["price_usd"]) for row in rows], dtype=np.float32)
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}; set --data to the folder of the Houses Dataset"
        ) from error
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{file} must have the columns house and price_usd without gaps: {error!r}; fix it") from error
    missing = [picture for picture in pictures if not picture.is_file()]
    if missing:
        raise DataError(f"{len(missing)} pictures are missing, first {missing[0]}; unpack the data set again")
    if len(rows) < 10 or not (prices > 0).all():
        raise DataError(f"{file} must list at least 10 houses with prices above 0, got {len(rows)}; fix it")
    return Houses(FileSamples(tuple(pictures), tuple(picture.name for picture in pictures)), prices)


def split(houses: Houses, seed: int) -> tuple[Houses, Houses]:
    """Split into training and held-out houses."""
    order = np.random.default_rng(seed).permutation(len(houses.prices))
    held_out = round(HELD_OUT * len(order))
    return houses.subset(order[held_out:]), houses.subset(order[:held_out])


def fit(net: EmbeddingNet, price: nn.Linear, houses: Houses, epochs: int, seed: int, after: str = TRAIN_AFTER) -> None:
    """Train the layers after `after`, the head and the regression on pictures and their mirror images."""
    first, second = cut(net.backbone, after)
    with torch.no_grad():
        batches = tensor_batches(net, houses.samples, BATCH, "caching", strict=True)
        maps = torch.cat([torch.stack([first(images), first(images.flip(3))], dim=1) for _, images in batches])
    log_price = torch.from_numpy(np.log(houses.prices))
    mean, std = log_price.mean(), log_price.std()
    targets = (log_price - mean) / std
    groups = [
        {"params": list(second.parameters()), "lr": BACKBONE_RATE},
        {"params": [*net.head.parameters(), *price.parameters()], "lr": HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    steps = epochs * -(-len(maps) // BATCH)
    rates = [BACKBONE_RATE, HEAD_RATE]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(steps, 1), pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    net.eval()  # batches are too small for batch statistics
    for _ in progress.track(range(epochs), "training", epochs):
        for batch in torch.randperm(len(maps), generator=generator).split(BATCH):
            mirrored = torch.randint(0, 2, (len(batch),), generator=generator)
            outputs = price(net.head_embed(second(maps[batch, mirrored])))[:, 0]
            optimizer.zero_grad()
            functional.mse_loss(outputs, targets[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():  # undo the standardisation of the log price
        price.weight *= std
        price.bias.copy_(price.bias * std + mean)


def predict(net: EmbeddingNet, price: nn.Linear, samples: FileSamples) -> Array:
    """Predict prices in US dollars."""
    embeddings = torch.from_numpy(embed(net, samples, strict=True, what="predicting").embeddings)
    with torch.inference_mode():
        prices: Array = price(embeddings)[:, 0].exp().numpy()
    return prices


def score(prices: Array, predicted: Array, training_prices: Array) -> dict[str, float]:
    """Score the predictions, and the median of the training prices as a baseline."""

    def r2(true: Array, predicted: Array) -> float:
        return float(1 - np.square(true - predicted).sum() / np.square(true - true.mean()).sum())

    return {
        "houses_held_out": float(len(prices)),
        "r2_log_price": r2(np.log(prices), np.log(predicted)),
        "r2_price": r2(prices, predicted),
        "mae_usd": float(np.abs(prices - predicted).mean()),
        "mae_usd_of_median": float(np.abs(prices - np.median(training_prices)).mean()),
    }


def by_gradient(net: EmbeddingNet, price: nn.Linear, images: Tensor) -> SignedMaps:
    """Explain each picture by the gradient of its price, with either sign."""
    cam = GradCAM(net)
    raises = [cam(batch, Scalar(lambda z: price(z)[:, 0])).raw for batch in images.split(BATCH)]
    lowers = [cam(batch, Scalar(lambda z: -price(z)[:, 0])).raw for batch in images.split(BATCH)]
    return SignedMaps(np.concatenate(raises), np.concatenate(lowers))


def signed_weights(net: EmbeddingNet, price: nn.Linear, houses: FileSamples, seed: int) -> SignedWeights:
    """Build a weight database: cluster the embeddings and average the channel weights of the price per cluster."""
    embedded = embed(net, houses, strict=True, what="weighing")
    if embedded.pooled is None:
        raise NetworkError("channel weights need pooled maps; use a backbone that ends in average pooling")
    cells = net.map_size[0] * net.map_size[1]
    pooled = torch.from_numpy(embedded.pooled)
    # The log price is linear in the embedding, so its gradient is the weight of the regression.
    directions = price.weight.detach().expand(len(pooled), 1, -1)
    weights = grad_weights(
        lambda maps: net.head_embed(maps[:, :, 0, 0]),
        pooled[:, :, None, None],
        directions,
        cells=cells,
    )
    centroids, cluster, _ = kmeans(embedded.embeddings, CLUSTERS, net.metric, seed)
    moments = Moments(len(centroids), weights.shape[1])
    moments.add(cluster, weights.numpy())
    return SignedWeights(centroids, moments.result(np.bincount(cluster))[0])


@torch.no_grad()
def by_transfer(net: EmbeddingNet, database: SignedWeights, images: Tensor, shift: int = 0) -> SignedMaps:
    """Explain each picture by the channel weights of its cluster, without a gradient.

    `raises` is the positive part of the weighted sum, `lowers` the negative part. A non-zero `shift` uses the weights
    of another cluster, as a control.
    """
    neighbors = Neighbors(database.centroids, net.metric)
    size = (int(images.shape[2]), int(images.shape[3]))
    geometry = receptive_field.geometry(net.body, net.layer, size)
    parts: list[tuple[Tensor, Tensor]] = []
    with layers.evaluating(net):
        for batch in images.split(BATCH):
            maps, embeddings, *_ = net.activations(batch)
            nearest, _ = neighbors.nearest(embeddings.numpy())
            weights = torch.from_numpy(database.weights[(nearest + shift) % len(database.weights)])
            raises, lowers = (place(combine(maps, sign * weights), geometry, size) for sign in (1, -1))
            parts.append((raises, lowers))
    return SignedMaps(*(torch.cat(side).numpy() for side in zip(*parts, strict=True)))


def correlations(one: SignedMaps, other: SignedMaps) -> dict[str, float]:
    """Mean correlation of the maps of each house, without constant maps."""

    def mean(pairs: list[tuple[Array, Array]]) -> float:
        varying = [(a.ravel(), b.ravel()) for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in varying])) if varying else float("nan")

    return {
        "raises": mean(list(zip(one.raises, other.raises, strict=True))),
        "lowers": mean(list(zip(one.lowers, other.lowers, strict=True))),
    }


def figure(
    houses: Houses, predicted: Array, gradient: SignedMaps, transfer: SignedMaps, shown: NDArray[np.int64]
) -> Image.Image:
    """Draw one house per row; maps of what raises and what lowers its price share a scale."""
    rows, captions = [], []
    for index in shown.tolist():
        picture = np.asarray(houses.samples.image(index))
        row = [picture]
        for maps in (gradient, transfer):
            maximum = max(maps.raises[index].max(), maps.lowers[index].max(), np.finfo(np.float32).tiny)
            row += [overlay(picture, side[index] / maximum) for side in (maps.raises, maps.lowers)]
        rows.append(row)
        captions.append([f"${houses.prices[index]:,.0f}\npredicted ${predicted[index]:,.0f}", "", "", "", ""])
    titles = ("house", "raises (gradient)", "lowers (gradient)", "raises (transfer)", "lowers (transfer)")
    return grid(rows, captions, titles, picture_size=240)


if __name__ == "__main__":
    sys.exit(main())
