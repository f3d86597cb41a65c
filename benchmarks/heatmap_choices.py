"""Choose the settings of the explainer by cross-validation on the training images.

Example: python benchmarks/heatmap_choices.py --net b.safetensors --data folder:butterflies --sizes 224 320 384 448

Each fold of the training images is explained with a database of the other folds. Test images are not used.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import embedcam
from embedcam.data import load
from embedcam.data.loading import batches
from embedcam.data.preprocess import Preprocess
from embedcam.data.samples import Samples
from embedcam.database import WeightDatabase
from embedcam.errors import DataError
from embedcam.evaluate.localization import Localization
from embedcam.explain import Explainer
from embedcam.explain.transfer import TRANSFERS
from embedcam.utils import progress
from embedcam.utils.files import write_text

SCORES = ("mean_ratio", "pointing", "best_iou", "best_threshold", "iou_50")


def settings(db: WeightDatabase) -> dict[str, dict[str, Any]]:
    """Settings to compare, by name."""
    options: dict[str, dict[str, Any]] = {"paper": {"preset": "paper"}}
    for transfer in TRANSFERS.names():
        options[transfer] = {"transfer": transfer}
        if db.fusion is not None:
            options[f"{transfer}, fused"] = {"transfer": transfer, "fused": True}
    return options


def score(
    net: embedcam.EmbeddingNet, db: WeightDatabase, held: Samples, size: int, into: dict[str, Localization]
) -> None:
    """Add the scores of one fold, at one size, of every explainer."""
    explainers = {name: Explainer(net, db, **options) for name, options in settings(db).items()}
    preprocess = replace(net.preprocess, input_size=(size, size))
    for indices, images in batches(held, preprocess, 16):
        masks = np.stack([_mask(held, i, preprocess) for i in indices.tolist()])
        for name, explainer in explainers.items():
            into.setdefault(name, Localization()).add(explainer(torch.from_numpy(images)).heatmaps, masks)


def _mask(held: Samples, index: int, preprocess: Preprocess) -> NDArray[np.bool_]:
    mask = held.mask(index)
    if mask is None:
        raise DataError(f"{held.ids[index]} has no mask; use a data set with a mask for every training image")
    return preprocess.mask(mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", required=True, help="network file")
    parser.add_argument("--data", required=True, help="SPEC of training images with masks")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384], help="sizes to explain at, in pixels")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file for the scores")
    args = parser.parse_args()
    progress.show()

    net = embedcam.EmbeddingNet.load(args.net)
    training = load(args.data, "train")
    folds = np.array_split(np.random.default_rng(0).permutation(len(training)), args.folds)
    scores: dict[int, dict[str, Localization]] = {size: {} for size in args.sizes}
    for held in folds:
        rest = np.setdiff1d(np.arange(len(training)), held)
        db = embedcam.build_database(net, training.subset(rest))
        for size in args.sizes:
            score(net, db, training.subset(held), size, scores[size])
    rows = []
    print("| size | transfer | " + " | ".join(SCORES) + " |\n|---|---|" + "---|" * len(SCORES))
    for size, by_name in scores.items():
        for name, localization in by_name.items():
            result = localization.result()
            rows.append({"size": size, "method": name, **result})
            print(f"| {size} | {name} | " + " | ".join(f"{result[key]:.3f}" for key in SCORES) + " |")
    if args.json is not None:
        write_text(args.json, json.dumps({"data": args.data, "folds": args.folds, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
