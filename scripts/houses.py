"""Learn the price of a house from its front, and show what in the picture raises and what lowers it.

    python scripts/houses.py --data data/houses --weights mobilenet_v2.safetensors --out runs/houses

The Houses Dataset (Ahmed and Moustafa 2016, arXiv 1609.08399): PATH/houses.csv and PATH/images/<house>_frontal.jpg.
An embedding network with a linear regression of the log price on its embedding is trained on four fifths of
the houses; only the layers after a cut are, on activations that are stored once. The rest is explained twice: by
the gradient of each picture, and by weight transfer, without a gradient, from the training houses' clusters.
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

# Chosen by cross-validation on the training houses of seed 0 alone.
DIM, HIDDEN = 32, 128  # without a hidden layer all houses would have the same channel weights
TRAIN_AFTER = "features.13"
BATCH = 32
BACKBONE_RATE, HEAD_RATE, DECAY = 3e-4, 1e-3, 0.05
CLUSTERS = 10  # as Faster-Grad-CAM
HELD_OUT = 0.2
SHOWN = 8  # houses in the figure


@dataclass(frozen=True)
class Houses:
    """Pictures of houses and what they cost.

    Attributes:
        samples: (N,) the pictures.
        prices: (N,) US dollars.
    """

    samples: FileSamples
    prices: Array

    def subset(self, indices: NDArray[np.int64]) -> Houses:
        """Keep only these houses, in this order."""
        return Houses(self.samples.subset(indices), self.prices[indices])


@dataclass(frozen=True)
class SignedWeights:
    """A weight database of C clusters, in which weights keep their sign.

    Attributes:
        centroids: (C, D).
        weights: (C, K), how much each channel raises (or, below 0, lowers) the log price.
    """

    centroids: Array
    weights: Array


@dataclass(frozen=True)
class SignedMaps:
    """What raises and what lowers the price of some houses, in the same unit.

    Attributes:
        raises: (B, H, W), not negative.
        lowers: (B, H, W), not negative.
    """

    raises: Array
    lowers: Array


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Learn house prices from pictures, and explain them in both directions."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with houses.csv and images")
    parser.add_argument("--weights", default="DEFAULT", help="ImageNet weights of MobileNetV2; DEFAULT downloads them")
    parser.add_argument("--out", type=Path, default=Path("runs/houses"), help="folder for houses.png and scores.json")
    parser.add_argument("--epochs", type=int, default=12, help="times that every training house is seen")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the training and the clusters")
    options = parser.parse_args(arguments)
    progress.show()
    try:
        run(options.data, options.weights, options.out, options.epochs, options.seed)
    except EmbedcamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def run(data: Path, weights: str | Path, out: Path, epochs: int, seed: int) -> dict[str, float]:
    """Do everything: train, score, explain, draw; returns the scores that are also written."""
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
    known = signed_weights(net, price, train.samples, seed)
    transfer, elsewhere = by_transfer(net, known, images), by_transfer(net, known, images, shift=1)
    scores |= {f"correlation_{side}": value for side, value in correlations(gradient, transfer).items()}
    scores |= {f"correlation_{side}_wrong_cluster": value for side, value in correlations(gradient, elsewhere).items()}
    for name, value in scores.items():
        print(f"{name:38} {value:,.3f}")

    by_price = np.argsort(test.prices, kind="stable")
    shown = by_price[np.linspace(0, len(test.prices) - 1, min(SHOWN, len(test.prices))).round().astype(int)]
    save_png(figure(test, predicted, gradient, transfer, shown), out / "houses.png")
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    print(f"{out / 'houses.png'}, {out / 'scores.json'}")
    return scores


def read(folder: Path) -> Houses:
    """Read the list of houses; every one must have its picture."""
    file = folder / "houses.csv"
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        pictures = [folder / "images" / f"{row['house']}_frontal.jpg" for row in rows]
        prices = np.array([float(row["price_usd"]) for row in rows], dtype=np.float32)
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}; give --data the folder of the Houses Dataset"
        ) from error
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{file} needs the columns house and price_usd, all filled: {error!r}; mend it") from error
    missing = [picture for picture in pictures if not picture.is_file()]
    if missing:
        raise DataError(f"{len(missing)} pictures are missing, first {missing[0]}; unpack the data set again")
    if len(rows) < 10 or not (prices > 0).all():
        raise DataError(f"{file} must list at least 10 houses with prices above 0, got {len(rows)}; mend it")
    return Houses(FileSamples(tuple(pictures), tuple(picture.name for picture in pictures)), prices)


def split(houses: Houses, seed: int) -> tuple[Houses, Houses]:
    """Hold a fifth of the houses out."""
    order = np.random.default_rng(seed).permutation(len(houses.prices))
    held_out = round(HELD_OUT * len(order))
    return houses.subset(order[held_out:]), houses.subset(order[:held_out])


def fit(net: EmbeddingNet, price: nn.Linear, houses: Houses, epochs: int, seed: int, after: str = TRAIN_AFTER) -> None:
    """Train the layers after a cut, the head and the regression on pictures and their mirror images."""
    first, second = cut(net.backbone, after)
    with torch.no_grad():
        batches = tensor_batches(net, houses.samples, BATCH, "caching", strict=True)
        maps = torch.cat([torch.stack([first(images), first(images.flip(3))], dim=1) for _, images in batches])
    log_price = torch.from_numpy(np.log(houses.prices))
    mean, std = log_price.mean(), log_price.std()
    wanted = (log_price - mean) / std
    groups = [
        {"params": list(second.parameters()), "lr": BACKBONE_RATE},
        {"params": [*net.head.parameters(), *price.parameters()], "lr": HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    steps = epochs * -(-len(maps) // BATCH)
    rates = [BACKBONE_RATE, HEAD_RATE]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(steps, 1), pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    net.eval()  # the backbone's batch norms keep their running statistics: batches are small
    for _ in progress.track(range(epochs), "training", epochs):
        for batch in torch.randperm(len(maps), generator=generator).split(BATCH):
            mirrored = torch.randint(0, 2, (len(batch),), generator=generator)
            guess = price(net.head_embed(second(maps[batch, mirrored])))[:, 0]
            optimizer.zero_grad()
            functional.mse_loss(guess, wanted[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():  # from now on the regression gives the log price itself
        price.weight *= std
        price.bias.copy_(price.bias * std + mean)


def predict(net: EmbeddingNet, price: nn.Linear, samples: FileSamples) -> Array:
    """Predict prices in US dollars."""
    embeddings = torch.from_numpy(embed(net, samples, strict=True, what="predicting").embeddings)
    with torch.inference_mode():
        prices: Array = price(embeddings)[:, 0].exp().numpy()
    return prices


def score(prices: Array, predicted: Array, known: Array) -> dict[str, float]:
    """Compare prices with predictions, and with always saying the median of the known prices."""

    def r2(true: Array, guess: Array) -> float:
        return float(1 - np.square(true - guess).sum() / np.square(true - true.mean()).sum())

    return {
        "houses_held_out": float(len(prices)),
        "r2_log_price": r2(np.log(prices), np.log(predicted)),
        "r2_price": r2(prices, predicted),
        "mae_usd": float(np.abs(prices - predicted).mean()),
        "mae_usd_of_median": float(np.abs(prices - np.median(known)).mean()),
    }


def by_gradient(net: EmbeddingNet, price: nn.Linear, images: Tensor) -> SignedMaps:
    """Explain each picture by its own gradient, for +price and for -price."""
    cam = GradCAM(net)
    raises = [cam(batch, Scalar(lambda z: price(z)[:, 0])).raw for batch in images.split(BATCH)]
    lowers = [cam(batch, Scalar(lambda z: -price(z)[:, 0])).raw for batch in images.split(BATCH)]
    return SignedMaps(np.concatenate(raises), np.concatenate(lowers))


def signed_weights(net: EmbeddingNet, price: nn.Linear, houses: FileSamples, seed: int) -> SignedWeights:
    """Make a small weight database: cluster the houses' embeddings, average the price's channel weights in each."""
    seen = embed(net, houses, strict=True, what="weighing")
    if seen.pooled is None:
        raise NetworkError("channel weights are made from pooled maps; use a backbone that ends in average pooling")
    cells = net.map_size[0] * net.map_size[1]
    pooled = torch.from_numpy(seen.pooled)
    # The price is linear in the embedding: its gradient there is the regression's own weight.
    directions = price.weight.detach().expand(len(pooled), 1, -1)
    weights = grad_weights(
        lambda maps: net.head_embed(maps[:, :, 0, 0]),
        pooled[:, :, None, None],
        directions,
        cells=cells,
    )
    centroids, cluster, _ = kmeans(seen.embeddings, CLUSTERS, net.metric, seed)
    moments = Moments(len(centroids), weights.shape[1])
    moments.add(cluster, weights.numpy())
    return SignedWeights(centroids, moments.result(np.bincount(cluster))[0])


@torch.no_grad()
def by_transfer(net: EmbeddingNet, known: SignedWeights, images: Tensor, shift: int = 0) -> SignedMaps:
    """Explain each picture by the channel weights of its cluster, without a gradient.

    What raises the price is the positive part of the weighted sum, what lowers it that of the negated one.
    With `shift`, the weights of another cluster are taken: a control.
    """
    neighbors = Neighbors(known.centroids, net.metric)
    size = (int(images.shape[2]), int(images.shape[3]))
    geometry = receptive_field.geometry(net.body, net.layer, size)
    parts: list[tuple[Tensor, Tensor]] = []
    with layers.evaluating(net):
        for batch in images.split(BATCH):
            maps, embeddings, *_ = net.activations(batch)
            nearest, _ = neighbors.nearest(embeddings.numpy())
            weights = torch.from_numpy(known.weights[(nearest + shift) % len(known.weights)])
            raises, lowers = (place(combine(maps, sign * weights), geometry, size) for sign in (1, -1))
            parts.append((raises, lowers))
    return SignedMaps(*(torch.cat(side).numpy() for side in zip(*parts, strict=True)))


def correlations(one: SignedMaps, other: SignedMaps) -> dict[str, float]:
    """Correlate maps house by house and average; flat maps, which correlate with nothing, do not count."""

    def mean(pairs: list[tuple[Array, Array]]) -> float:
        lively = [(a.ravel(), b.ravel()) for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in lively])) if lively else float("nan")

    return {
        "raises": mean(list(zip(one.raises, other.raises, strict=True))),
        "lowers": mean(list(zip(one.lowers, other.lowers, strict=True))),
    }


def figure(
    houses: Houses, predicted: Array, gradient: SignedMaps, transfer: SignedMaps, shown: NDArray[np.int64]
) -> Image.Image:
    """Draw the comparison, a house a row; what raises and what lowers the price shares one scale."""
    rows, captions = [], []
    for index in shown.tolist():
        picture = np.asarray(houses.samples.image(index))
        row = [picture]
        for maps in (gradient, transfer):
            strongest = max(maps.raises[index].max(), maps.lowers[index].max(), np.finfo(np.float32).tiny)
            row += [overlay(picture, side[index] / strongest) for side in (maps.raises, maps.lowers)]
        rows.append(row)
        captions.append([f"${houses.prices[index]:,.0f}\npredicted ${predicted[index]:,.0f}", "", "", "", ""])
    titles = ("house", "raises (gradient)", "lowers (gradient)", "raises (transfer)", "lowers (transfer)")
    return grid(rows, captions, titles, cell_size=240)


if __name__ == "__main__":
    sys.exit(main())
