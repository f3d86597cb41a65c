"""The whole pipeline on the built-in images: train, build, explain, score and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .builder.build import build_database
from .data import load
from .data.samples import Samples
from .database.weight_database import WeightDatabase
from .evaluate.method import columns
from .evaluate.table import evaluate
from .explain import Answer, Explainer
from .explain.explanation import Explanation
from .nets import EmbeddingNet
from .show.grid import grid, save_png
from .show.report import ClusterCard, ExampleCard, Report, Thumbnail, write_report
from .train import TrainOptions, train
from .utils.files import require_writable, write_text
from .utils.progress import say

_DATA, _IMAGE_SIZE = "digits", 96
_GALLERY_IMAGES, _REPORT_EXAMPLES, _THUMBNAILS = 20, 24, 6


def demo(out: str | Path, seed: int = 0) -> dict[str, Any]:
    """Run the whole pipeline on `digits`.

    Writes `net.safetensors` (with its training curve `net.png`), `weights.h5`, `gallery.png`, `report.html`,
    `scores.json`, and the test images of the gallery in `images/`.

    Args:
        out: Output folder.
        seed: Random seed.

    Returns:
        The result of `evaluate`.

    Raises:
        OutputError: If the folder cannot be written.
    """
    out = Path(out)
    require_writable(out / "report.html")
    training, test = load(f"{_DATA}@train"), load(f"{_DATA}@test")

    say("1/4  training `tiny` on coloured digits")
    torch.manual_seed(seed)
    net = EmbeddingNet("tiny", 64, image_size=_IMAGE_SIZE)
    # From random weights, proxy anchor learns shapes in a minute; triplets take far longer.
    options = TrainOptions("proxy-anchor", epochs=5, batch_size=20, lr=3e-3, head_lr=3e-3, augment=False, seed=seed)
    train(net, training, test, out / "net.safetensors", options)

    say("2/4  building the weight database")
    database = build_database(net, training, seed=seed)
    database.save(out / "weights.h5")

    say("3/4  explaining and scoring the test images")
    result = evaluate(net, database, test, training, compare=True, brief=True)
    result |= {"data": _DATA, "network_sha256": database.network.sha256}
    write_text(out / "scores.json", json.dumps(result, indent=2) + "\n")

    say("4/4  drawing")
    chosen = _sample(test, max(_GALLERY_IMAGES, _REPORT_EXAMPLES), seed)
    explainer = Explainer(net, database)
    images = np.stack([explainer.preprocess(chosen.image(i)) for i in range(len(chosen))])
    explanation = explainer(images)
    answer = explainer(images, versus=_rivals(explanation, database))
    examples = _example_cards(chosen, explanation, answer, database)
    save_png(_gallery(examples[:_GALLERY_IMAGES]), out / "gallery.png")
    for number, example in enumerate(examples[:_GALLERY_IMAGES]):
        save_png(example.image, out / "images" / f"{number:02d}_digit_{example.label}.png")
    report = Report(
        title="embedcam demo: digits",
        facts=[*database.facts(), ("Training", f"{options.objective}, {options.epochs} epochs")],
        clusters=_cluster_cards(database, training),
        examples=examples[:_REPORT_EXAMPLES],
        scores=result["rows"],
        columns=columns(),
        retrieval=result,
    )
    write_report(report, out / "report.html")
    return result


def _sample(samples: Samples, count: int, seed: int) -> Samples:
    generator = np.random.default_rng(seed)
    return samples.subset(np.sort(generator.choice(len(samples), min(count, len(samples)), replace=False)))


def _cluster_cards(db: WeightDatabase, training: Samples) -> list[ClusterCard]:
    rows = {name: row for row, name in enumerate(training.ids)}
    cards = []
    for cluster in range(db.clusters):
        thumbnails = []
        if db.exemplars is not None:
            members = np.flatnonzero(db.exemplars.cluster == cluster)
            distances = np.linalg.norm(db.exemplars.embeddings[members] - db.centroids[cluster], axis=1)
            for exemplar in members[np.argsort(distances, kind="stable")][:_THUMBNAILS]:
                name = db.exemplars.path[exemplar]
                if name in rows:
                    label = int(db.exemplars.label[exemplar])
                    caption = db.label_names[label] if db.label_names is not None and label >= 0 else name
                    thumbnails.append(Thumbnail(np.asarray(training.image(rows[name])), caption))
        channels = list(zip(db.top_channels[cluster].tolist(), db.top_weights[cluster].tolist(), strict=True))
        labels = db.labels_of(cluster, most=10)
        cards.append(ClusterCard(cluster, int(db.counts[cluster]), labels, thumbnails, channels[:10]))
    return cards


def _rivals(explanation: Explanation, db: WeightDatabase) -> NDArray[np.int64]:
    """Find the nearest cluster of another main label for each image."""
    assert explanation.clusters is not None
    assert explanation.embeddings is not None
    assert db.label_histogram is not None
    labels = db.label_histogram.argmax(axis=1)
    distances = np.linalg.norm(explanation.embeddings[:, None] - db.centroids, axis=2)
    same = labels == labels[explanation.clusters][:, None]
    nearest: NDArray[np.int64] = np.where(same, np.inf, distances).argmin(axis=1)
    return nearest


def _example_cards(samples: Samples, explanation: Explanation, answer: Answer, db: WeightDatabase) -> list[ExampleCard]:
    assert explanation.clusters is not None
    assert explanation.distances is not None
    assert explanation.typicality is not None
    pictures = [np.asarray(samples.image(i)) for i in range(len(samples))]
    overlays, evidence = explanation.overlay(pictures), answer.signed_overlay(pictures)
    assert answer.versus is not None
    cards = []
    for i, picture in enumerate(pictures):
        cluster = int(explanation.clusters[i])
        labels = db.labels_of(cluster, most=1)
        cards.append(
            ExampleCard(
                name=samples.ids[i],
                image=picture,
                overlay=overlays[i],
                cluster=cluster,
                distance=float(explanation.distances[i]),
                typicality=float(explanation.typicality[i]),
                mask=samples.mask(i),
                label=None if samples.labels is None else samples.names[samples.labels[i]],
                cluster_label=labels[0][0] if labels else None,
                notes=explanation.notes[i],
                evidence=evidence[i],
                versus=answer.versus[i],
            )
        )
    return cards


def _gallery(cards: list[ExampleCard]) -> Any:
    """Four images per row, each as picture, mask and heat map."""
    rows = [cards[start : start + 4] for start in range(0, len(cards), 4)]
    pictures = [[picture for card in row for picture in (card.image, card.mask, card.overlay)] for row in rows]
    captions = [
        [
            text
            for card in row
            for text in (f"digit {card.label}", "", f"cluster {card.cluster}: mostly {card.cluster_label}")
        ]
        for row in rows
    ]
    return grid(pictures, captions, picture_size=112)
