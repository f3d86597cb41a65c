"""Compare the time of the scores of a training epoch with the time of the epoch.

    python benchmarks/train_scores.py [--labels 1000 11000] [--per-label 5] [--json FILE]

Embeddings of 128 dimensions lie around a random direction per label. `Recall@1, MAP@R` are computed after every epoch,
`NMI` after the last. The time of an epoch is estimated from `--steps` steps of whole training on random pixels, without
reading, times the number of images; `share %` is the time of the score relative to it. The pass that embeds the images
for the scores is a forward pass over them, and its share is in the last row.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import about, report
from numpy.typing import NDArray

import embedcam
from embedcam.evaluate.retrieval import retrieval
from embedcam.train.objectives import Objective

COLUMNS = {"labels": ",", "images": ",", "score": "", "value": ".3f", "seconds": ".1f", "share %": ".2f"}
DIM, BATCH = 128, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--labels", type=int, nargs="+", default=[1000, 11_000], help="numbers of labels")
    parser.add_argument("--per-label", type=int, default=5, help="images per label")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of training")
    parser.add_argument("--brief", action="store_true", help="100 labels, a small network: only to see that it works")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.brief:
        args.labels, args.backbone, args.image_size, args.steps = [100], "tiny", 32, 1
    train, embed = per_image(args.backbone, args.image_size, args.steps)
    rows: list[dict[str, Any]] = []
    for count in args.labels:
        embeddings, labels = around(count, args.per_label)
        base = {"labels": count, "images": len(labels)}

        def timed(name: str, value: float, seconds: float, base: dict[str, Any] = base) -> dict[str, Any]:
            share = 100 * seconds / (train * base["images"])
            return {**base, "score": name, "value": value, "seconds": seconds, "share %": share}

        start = time.perf_counter()
        ranked = retrieval(embeddings, labels, nmi=False)
        middle = time.perf_counter()
        clustered = retrieval(embeddings, labels)
        end = time.perf_counter()
        rows.append(timed("Recall@1, MAP@R", ranked["map_at_r"], middle - start))
        rows.append(timed("NMI", clustered["nmi"], max(end - middle - (middle - start), 0.0)))
        rows.append({**base, "score": "embedding", "seconds": embed * len(labels), "share %": 100 * embed / train})
    made_with = about("torch", "faiss-cpu", "scikit-learn") | {"threads": torch.get_num_threads()}
    report(COLUMNS, rows, made_with | {"ms per trained image": round(1000 * train, 2)}, args.json)


def around(labels: int, per_label: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw embeddings of length 1 around a direction per label."""
    random = np.random.default_rng(0)
    label = random.permutation(np.repeat(np.arange(labels), per_label))
    embeddings = random.standard_normal((labels, DIM))[label] + random.standard_normal((len(label), DIM))
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32), label


def per_image(backbone: str, image_size: int, steps: int) -> tuple[float, float]:
    """Time a step of training and a forward pass, in seconds per image."""
    torch.manual_seed(0)
    net = embedcam.EmbeddingNet(backbone, DIM, image_size=image_size).train()
    objective = Objective("triplet", DIM, 8)
    optimizer = torch.optim.AdamW(net.parameters())
    images, labels = torch.rand(BATCH, 3, image_size, image_size), torch.arange(BATCH) % 8

    def step() -> None:
        loss = objective(net(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def forward() -> None:
        with torch.inference_mode():
            net(images)

    times = []
    for call in (step, forward):
        call()
        start = time.perf_counter()
        for _ in range(steps):
            call()
        times.append((time.perf_counter() - start) / steps / BATCH)
        net.eval()
    return times[0], times[1]


if __name__ == "__main__":
    main()
