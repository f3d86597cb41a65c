"""Repeat Faster-Grad-CAM's demo: a fist (gu) against an open hand (pa), with heat maps, boxes and unknown hands.

    python scripts/faster_gradcam.py --data data/janken --weights mobilenet_v2.safetensors --out runs/janken

The pictures are those of janken_dataset (github.com/karaage0703/janken_dataset), as PATH/images/<class>/*.jpg.
As in Faster-Grad-CAM (github.com/shinmura0/Faster-Grad-CAM): MobileNetV2 at 96 x 96 pixels is trained with ArcFace;
k-means finds 10 clusters; the 50 strongest channels of the last block's expansion make the heat map, which is resized
plainly; in the box mode, one box is put around all that is hotter than 0.8 of the maximum; a picture's score is its
cosine to the nearest stored embedding.

What differs: the network has the full width 1.0 instead of 0.5, for which torchvision has no weights; only its last
blocks are trained, with ArcFace's usual margin of 0.5 instead of 0.05; embeddings of both classes are clustered, not of
gu alone; and the channel weights are those of triplets, as in the paper behind it (arXiv 2001.06538), instead of gu's
ArcFace score.

Classes of the folder that are not trained on, here scissors (choki), are unknown hands: their distance, 1 - the cosine
to the nearest training picture, should be larger. OUT gets net.safetensors, weights.h5, hands.png and scores.json.
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

# Faster-Grad-CAM's numbers, and not for parity alone: of the heat, 0.46 lies on hands (0.31 of the pictures, by the
# skin's colour) at 96 pixels, 0.41 at 224 in twice the time, means of three trainings; and 0.34 with features.18.
IMAGE_SIZE = 96
LAYER = "features.17.conv.0"  # which Keras calls block_16_expand_relu
CLUSTERS, TOP_K = 10, 50
BOX_ABOVE = 0.8

DIM = 128
TRAIN_AFTER = "features.13"
BATCH = 32
SHOWN, ACROSS = 4, 2  # pictures of each class on the sheet, and in each of its rows
COLUMNS = ("picture", "Faster-Grad-CAM", "box mode", "Grad-CAM")
ROUNDS, WARM_UP = 100, 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Repeat Faster-Grad-CAM's demo of hands.")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/<class>/*.jpg")
    parser.add_argument("--weights", default="DEFAULT", help="ImageNet weights of MobileNetV2; DEFAULT downloads them")
    parser.add_argument("--out", type=Path, default=Path("runs/janken"), help="folder to write to")
    parser.add_argument("--classes", nargs="+", default=["gu", "pa"], help="what is trained on; the rest is unknown")
    parser.add_argument("--epochs", type=int, default=10, help="times that every training picture is seen")
    parser.add_argument("--seed", type=int, default=0, help="of the training and the clusters")
    options = parser.parse_args(arguments)
    progress.show()
    try:
        run(options.data, options.weights, options.out, options.classes, options.epochs, options.seed)
    except EmbedcamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def run(
    data: Path, weights: str | Path, out: Path, classes: Sequence[str], epochs: int, seed: int
) -> dict[str, float | None]:
    """Do everything: train, build, score, time, draw; returns the scores that are also written."""
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
    print(f"{out / 'hands.png'}, {out / 'scores.json'}")
    return scores


def only(samples: FileSamples, classes: Sequence[str]) -> FileSamples:
    """Keep the pictures of some classes, labelled in the order in which these are named."""
    missing = sorted(set(classes) - set(samples.names))
    if missing or samples.labels is None:
        known = ", ".join(samples.names) or "none"
        raise DataError(
            f"there is no class {', '.join(missing)}, only {known}; give --data another folder or --classes"
        )
    wanted = [samples.names.index(name) for name in classes]
    kept = samples.subset(np.flatnonzero(np.isin(samples.labels, wanted)))
    assert kept.labels is not None  # as the whole has them
    labels = np.array([wanted.index(label) for label in kept.labels.tolist()], dtype=np.int64)
    return replace(kept, labels=labels, names=tuple(classes))


def unknown_scores(
    net: EmbeddingNet, training: FileSamples, test: FileSamples, unknown: FileSamples
) -> dict[str, float | None]:
    """Tell how well the distance to the training pictures parts unknown hands from the test pictures."""
    if not len(unknown):
        return dict.fromkeys(("distance_test", "distance_unknown", "auc_unknown"))
    learnt, known, strange = (embed(net, samples, strict=True).embeddings for samples in (training, test, unknown))
    near, far = distance(learnt, known), distance(learnt, strange)
    truth = np.repeat([0, 1], [len(near), len(far)])
    return {
        "distance_test": float(np.median(near)),
        "distance_unknown": float(np.median(far)),
        "auc_unknown": float(roc_auc_score(truth, np.concatenate([near, far]))),
    }


def distance(training: Array, pictures: Array) -> Array:
    """Give 1 - the cosine of each picture's embedding to the nearest training picture's, (B,)."""
    return Neighbors(training, "cosine").nearest(pictures)[1]


def stored(database: WeightDatabase) -> Exemplars:
    """Give the training pictures' embeddings and labels."""
    assert database.exemplars is not None  # `build_database` keeps them
    return database.exemplars


def transfer(net: EmbeddingNet, database: WeightDatabase) -> Explainer:
    """Make the explainer that does as Faster-Grad-CAM does."""
    return Explainer(net, database, transfer="cluster", placement="stretch")


def heat(explanation: Explanation) -> Array:
    """Divide maps by their maximum, as Faster-Grad-CAM does, (B, H, W); their minimum stays above 0."""
    highest = explanation.raw.max(axis=(1, 2), keepdims=True)
    return (explanation.raw / np.where(highest > 0, highest, 1)).astype(np.float32)


def box_mode(hot: Array) -> Box | None:
    """Put one box around all that is hotter than 0.8 of a map (H, W) with maximum 1; None for an all-zero map."""
    return mask_box(hot > BOX_ABOVE)


def margin(database: WeightDatabase, explanation: Explanation) -> TripletMargin:
    """Make a target of the mean embeddings of each picture's class (of the nearest training picture) and the others."""
    known = stored(database)
    means = np.stack([known.embeddings[known.label == label].mean(axis=0) for label in np.unique(known.label)])
    others = (means.sum(axis=0) - means) / (len(means) - 1)
    assert explanation.neighbors is not None
    own = known.label[explanation.neighbors]
    return TripletMargin(torch.from_numpy(means[own]), torch.from_numpy(others[own]))


def times(net: EmbeddingNet, database: WeightDatabase, image: Tensor) -> dict[str, float]:
    """Time the plain embedding, the transfer and Grad-CAM of one picture; all run once a round."""
    explain, cam = transfer(net, database), GradCAM(net, placement="stretch")
    target = margin(database, explain(image))
    works = (lambda: plain(net, image), lambda: explain(image), lambda: cam(image, target))
    taken = np.array([[clock(work) for work in works] for _ in range(WARM_UP + ROUNDS)])[WARM_UP:]
    forward, transferred, gradcam = 1000 * np.median(taken, axis=0)
    _, transfer_ratio, gradcam_ratio = np.median(taken / taken[:, :1], axis=0)
    return {
        "forward_ms": forward,
        "transfer_ms": transferred,
        "gradcam_ms": gradcam,
        "transfer_by_forward": transfer_ratio,
        "gradcam_by_forward": gradcam_ratio,
    }


@torch.inference_mode()
def plain(net: EmbeddingNet, image: Tensor) -> Array:
    """Embed without explaining."""
    with layers.evaluating(net):
        embeddings: Array = net(image).numpy()
    return embeddings


def clock(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def images_of(net: EmbeddingNet, samples: FileSamples) -> Tensor:
    """Read pictures as the network wants them, (B, 3, H, W)."""
    return torch.from_numpy(np.stack([net.preprocess(samples.image(index)) for index in range(len(samples))]))


def figure(net: EmbeddingNet, database: WeightDatabase, test: FileSamples, unknown: FileSamples) -> Image.Image:
    """Draw some test pictures of each class and some unknown hands, each in four columns."""
    rows, captions, titles = [], [], []
    for samples, said in ((test, ""), (unknown, "\n(unknown)")):
        for label, name in enumerate(samples.names):
            members = np.flatnonzero(samples.labels == label)
            shown = members[np.linspace(0, len(members) - 1, min(SHOWN, len(members))).round().astype(int)]
            for start in range(0, len(shown), ACROSS):
                row = cells(net, database, samples.subset(shown[start : start + ACROSS]))
                rows.append([picture for picture, _ in row])
                captions.append([caption for _, caption in row])
                titles.append(name + said)
    return grid(rows, captions, COLUMNS * (max(map(len, rows)) // len(COLUMNS)), titles)


def cells(net: EmbeddingNet, database: WeightDatabase, samples: FileSamples) -> list[tuple[NDArray[np.uint8], str]]:
    """Draw the four columns of each picture, each with what stands below it."""
    images, known = images_of(net, samples), stored(database)
    explanation = transfer(net, database)(images)
    gradient = GradCAM(net, placement="stretch")(images, margin(database, explanation))
    assert explanation.embeddings is not None and explanation.clusters is not None and database.label_names is not None
    most_like = [database.label_names[label] for label in known.label[explanation.neighbors].tolist()]
    far = distance(known.embeddings, explanation.embeddings)
    drawn = []
    for index, (hot, by_gradient) in enumerate(zip(heat(explanation), heat(gradient), strict=True)):
        picture = np.asarray(samples.image(index))
        size = (picture.shape[1], picture.shape[0])
        box = box_mode(np.asarray(Image.fromarray(hot).resize(size, Image.Resampling.BILINEAR)))
        boxed = draw_boxes(picture, [] if box is None else [box], color="lime")
        drawn += [
            (picture, f"most like {most_like[index]}"),
            (overlay(picture, hot), f"cluster {explanation.clusters[index]}"),
            (boxed, f"distance {far[index]:.2f}"),
            (overlay(picture, by_gradient), "" if by_gradient.any() else "flat"),
        ]
    return drawn


if __name__ == "__main__":
    sys.exit(main())
