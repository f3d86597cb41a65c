"""Reproduce the demo of Faster-Grad-CAM: fist (gu) and open hand (pa), with heat maps, boxes and unknown hands.

    python scripts/faster_gradcam.py --data data/janken --weights mobilenet_v2.safetensors --out runs/janken

The data set is janken_dataset (github.com/karaage0703/janken_dataset), as PATH/images/<class>/*.jpg. The method is that
of Faster-Grad-CAM (github.com/shinmura0/Faster-Grad-CAM): MobileNetV2 at 96 x 96 pixels is trained with ArcFace;
k-means finds 10 clusters; the heat map is the weighted sum of the 50 strongest channels of the last block's expansion,
resized bilinearly; the box mode draws one box around all pixels above 0.8 of the maximum; the score of a picture is its
cosine to the nearest stored embedding.

Differences: the network has width 1.0 instead of 0.5, for which torchvision has no weights; only its last blocks are
trained, with a margin of 0.5 instead of 0.05; the embeddings of both classes are clustered, not only those of gu; and
the channel weights are those of triplets, as in the paper (arXiv 2001.06538), instead of gu's ArcFace score.

Classes that are not trained on, here scissors (choki), are unknown hands. Their distance, 1 - cosine to the nearest
training picture, should be larger. Writes net.safetensors, weights.h5, hands.png and scores.json to OUT.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from embedcam.builder.build import build_database
from embedcam.data.samples import FileSamples
from embedcam.data.sets.folder import folder
from embedcam.database.neighbors import Neighbors
from embedcam.database.record import Exemplars
from embedcam.database.weight_database import WeightDatabase
from embedcam.errors import DataError, EmbedcamError
from embedcam.explain import Explainer
from embedcam.explain.explanation import Explanation
from embedcam.gradient import GradCAM, TripletMargin
from embedcam.nets import EmbeddingNet, layers
from embedcam.nets.inference import embed
from embedcam.show.boxes import Box, draw_boxes, mask_box
from embedcam.show.grid import grid, save_png
from embedcam.show.overlay import overlay
from embedcam.train import TrainOptions, train
from embedcam.utils import progress
from embedcam.utils.files import require_writable, write_text

Array = NDArray[np.float32]

# The settings of Faster-Grad-CAM. They are also the best: 0.46 of the heat lies on hands (which cover 0.31 of the
# pictures, by skin colour), but 0.41 at 224 pixels, and 0.34 with features.18; means of three trainings.
IMAGE_SIZE = 96
LAYER = "features.17.conv.0"  # block_16_expand_relu in Keras
CLUSTERS, TOP_K = 10, 50
BOX_ABOVE = 0.8

DIM = 128
TRAIN_AFTER = "features.13"
BATCH = 32
PER_CLASS, PER_ROW = 4, 2  # pictures on the sheet
COLUMNS = ("picture", "Faster-Grad-CAM", "box mode", "Grad-CAM")
ROUNDS, WARM_UP = 100, 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Reproduce the demo of Faster-Grad-CAM.")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/<class>/*.jpg")
    parser.add_argument("--weights", default="DEFAULT", help="ImageNet weights of MobileNetV2; DEFAULT downloads them")
    parser.add_argument("--out", type=Path, default=Path("runs/janken"), help="output folder")
    parser.add_argument(
        "--classes", nargs="+", default=["gu", "pa"], help="classes to train on; the others are unknown"
    )
    parser.add_argument("--epochs", type=int, default=10, help="training epochs")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    options = parser.parse_args(arguments)
    progress.show()
    try:
        run(options.data, options.weights, options.out, options.classes, options.epochs, options.seed)
    except EmbedcamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def run(
    data: Path, weights: str | Path, out: Path, classes: Sequence[str], epochs: int, seed: int
) -> dict[str, float | None]:
    """Train, build, score, time and draw; return the scores that are written."""
    require_writable(out / "hands.png")
    training, test = (only(folder(data, split), classes) for split in ("train", "test"))
    everything = folder(data, "all")
    unknown = only(everything, [name for name in everything.names if name not in classes])

    torch.manual_seed(seed)
    net = EmbeddingNet("mobilenet_v2", DIM, weights=weights, image_size=IMAGE_SIZE, layer=LAYER)
    untrained = unknown_scores(net, training, test, unknown)
    options = TrainOptions("arcface", epochs, BATCH, train_from=TRAIN_AFTER, freeze_norm=True, seed=seed)
    history = train(net, training, test, out / "net.safetensors", options, strict=True)
    database = build_database(net, training, clusters=CLUSTERS, top_k=TOP_K, refinement=False, seed=seed, strict=True)
    database.save(out / "weights.h5")

    scores: dict[str, float | None] = {
        "training_pictures": len(training),
        "test_pictures": len(test),
        "unknown_pictures": len(unknown),
        "recall_at_1": history[-1]["recall_at_1"],
        **unknown_scores(net, training, test, unknown),
        "auc_unknown_untrained": untrained["auc_unknown"],
        **times(net, database, images_of(net, test.subset([0]))),
    }
    for name, value in scores.items():
        print(f"{name:24} {'-' if value is None else f'{value:.3f}'}")
    save_png(figure(net, database, test, unknown), out / "hands.png")
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    print(f"wrote {out / 'hands.png'} and {out / 'scores.json'}")
    return scores


def only(samples: FileSamples, classes: Sequence[str]) -> FileSamples:
    """Select classes; labels follow the order of `classes`."""
    missing = sorted(set(classes) - set(samples.names))
    if missing or samples.labels is None:
        available = ", ".join(samples.names) or "none"
        raise DataError(f"no class {', '.join(missing)}; available: {available}; change --data or --classes")
    old_labels = [samples.names.index(name) for name in classes]
    selected = samples.subset(np.flatnonzero(np.isin(samples.labels, old_labels)))
    assert selected.labels is not None
    labels = np.array([old_labels.index(label) for label in selected.labels.tolist()], dtype=np.int64)
    return replace(selected, labels=labels, names=tuple(classes))


def unknown_scores(
    net: EmbeddingNet, training: FileSamples, test: FileSamples, unknown: FileSamples
) -> dict[str, float | None]:
    """Evaluate the distance to the training pictures as a detector of unknown hands."""
    if not len(unknown):
        return dict.fromkeys(("distance_test", "distance_unknown", "auc_unknown"))
    embeddings = [embed(net, samples, strict=True).embeddings for samples in (training, test, unknown)]
    near, far = (distance(embeddings[0], of_split) for of_split in embeddings[1:])
    truth = np.repeat([0, 1], [len(near), len(far)])
    return {
        "distance_test": float(np.median(near)),
        "distance_unknown": float(np.median(far)),
        "auc_unknown": float(roc_auc_score(truth, np.concatenate([near, far]))),
    }


def distance(training: Array, pictures: Array) -> Array:
    """1 - cosine of each embedding to the nearest training picture's, (B,)."""
    return Neighbors(training, "cosine").nearest(pictures)[1]


def exemplars_of(database: WeightDatabase) -> Exemplars:
    assert database.exemplars is not None
    return database.exemplars


def transfer(net: EmbeddingNet, database: WeightDatabase) -> Explainer:
    """The explainer with the settings of Faster-Grad-CAM."""
    return Explainer(net, database, transfer="cluster", placement="stretch")


def heat(explanation: Explanation) -> Array:
    """Divide maps (B, H, W) by their maximum, as Faster-Grad-CAM does; the minimum may stay above 0."""
    maximum = explanation.raw.max(axis=(1, 2), keepdims=True)
    return (explanation.raw / np.where(maximum > 0, maximum, 1)).astype(np.float32)


def box_mode(heatmap: Array) -> Box | None:
    """The box around all pixels above 0.8 of a map (H, W) with maximum 1; None for an all-zero map."""
    return mask_box(heatmap > BOX_ABOVE)


def margin(database: WeightDatabase, explanation: Explanation) -> TripletMargin:
    """Triplet target: mean embedding of the class of the nearest training picture, against those of the others."""
    exemplars = exemplars_of(database)
    classes = np.unique(exemplars.label)
    means = np.stack([exemplars.embeddings[exemplars.label == label].mean(axis=0) for label in classes])
    others = (means.sum(axis=0) - means) / (len(means) - 1)
    assert explanation.neighbors is not None
    own = exemplars.label[explanation.neighbors]
    return TripletMargin(torch.from_numpy(means[own]), torch.from_numpy(others[own]))


def times(net: EmbeddingNet, database: WeightDatabase, image: Tensor) -> dict[str, float]:
    """Time the forward pass, the transfer and Grad-CAM of one picture, interleaved."""
    explain, cam = transfer(net, database), GradCAM(net, placement="stretch")
    target = margin(database, explain(image))
    calls = (lambda: plain(net, image), lambda: explain(image), lambda: cam(image, target))
    seconds = np.array([[clock(call) for call in calls] for _ in range(WARM_UP + ROUNDS)])[WARM_UP:]
    forward, transferred, gradcam = 1000 * np.median(seconds, axis=0)
    _, transfer_ratio, gradcam_ratio = np.median(seconds / seconds[:, :1], axis=0)
    return {
        "forward_ms": forward,
        "transfer_ms": transferred,
        "gradcam_ms": gradcam,
        "transfer_by_forward": transfer_ratio,
        "gradcam_by_forward": gradcam_ratio,
    }


@torch.inference_mode()
def plain(net: EmbeddingNet, image: Tensor) -> Array:
    """Embed without an explanation."""
    with layers.evaluating(net):
        embeddings: Array = net(image).numpy()
    return embeddings


def clock(call: Callable[[], object]) -> float:
    """Time a call, in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def images_of(net: EmbeddingNet, samples: FileSamples) -> Tensor:
    """Read pictures as an image batch (B, 3, H, W)."""
    return torch.from_numpy(np.stack([net.preprocess(samples.image(index)) for index in range(len(samples))]))


def figure(net: EmbeddingNet, database: WeightDatabase, test: FileSamples, unknown: FileSamples) -> Image.Image:
    """Draw test pictures of each class and unknown hands, each in four columns."""
    rows, captions, titles = [], [], []
    for samples, suffix in ((test, ""), (unknown, "\n(unknown)")):
        for label, name in enumerate(samples.names):
            members = np.flatnonzero(samples.labels == label)
            shown = members[np.linspace(0, len(members) - 1, min(PER_CLASS, len(members))).round().astype(int)]
            for start in range(0, len(shown), PER_ROW):
                row = columns(net, database, samples.subset(shown[start : start + PER_ROW]))
                rows.append([picture for picture, _ in row])
                captions.append([caption for _, caption in row])
                titles.append(name + suffix)
    return grid(rows, captions, COLUMNS * (max(map(len, rows)) // len(COLUMNS)), titles)


def columns(net: EmbeddingNet, database: WeightDatabase, samples: FileSamples) -> list[tuple[NDArray[np.uint8], str]]:
    """Draw the four columns of each picture, with captions."""
    images, exemplars = images_of(net, samples), exemplars_of(database)
    explanation = transfer(net, database)(images)
    gradient = GradCAM(net, placement="stretch")(images, margin(database, explanation))
    assert explanation.embeddings is not None and explanation.clusters is not None and database.label_names is not None
    nearest = [database.label_names[label] for label in exemplars.label[explanation.neighbors].tolist()]
    distances = distance(exemplars.embeddings, explanation.embeddings)
    drawn = []
    for index, (transferred, gradcam) in enumerate(zip(heat(explanation), heat(gradient), strict=True)):
        picture = np.asarray(samples.image(index))
        size = (picture.shape[1], picture.shape[0])
        box = box_mode(np.asarray(Image.fromarray(transferred).resize(size, Image.Resampling.BILINEAR)))
        boxed = draw_boxes(picture, [] if box is None else [box], color="lime")
        drawn += [
            (picture, f"nearest: {nearest[index]}"),
            (overlay(picture, transferred), f"cluster {explanation.clusters[index]}"),
            (boxed, f"distance {distances[index]:.2f}"),
            (overlay(picture, gradcam), "" if gradcam.any() else "flat"),
        ]
    return drawn


if __name__ == "__main__":
    sys.exit(main())
