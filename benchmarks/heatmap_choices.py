"""Choose the settings of the default map on held-out training images of several data sets.

    python benchmarks/heatmap_choices.py --data b.safetensors=folder:butterflies --data c.safetensors=folder:cub10

A fifth of the training images of each data set is explained with a database of the others, without test images.
Every line changes one setting of the default. `random` is the rank correlation of the maps with those of a network
whose last stage is random, with a database of its own; `between` is that of different images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import embedcam
from embedcam.data import load
from embedcam.data.samples import Samples
from embedcam.database import WeightDatabase
from embedcam.evaluate.asking import of_explainer
from embedcam.evaluate.grid import Composites, grid_test
from embedcam.evaluate.localization import Localization
from embedcam.evaluate.randomisation import randomisation
from embedcam.evaluate.rivals import first_component
from embedcam.explain import Explainer, belonging, maps, module
from embedcam.explain.explanation import Explanation
from embedcam.nets.dense import DenseNet
from embedcam.nets.network import Network
from embedcam.utils import progress

SCORES = ("mean_ratio", "pointing", "best_iou", "pixel_ap")
Explain = Callable[[Tensor], Explanation]


def uncentred(database: WeightDatabase) -> NDArray[np.float32]:
    """No common embedding."""
    return np.zeros_like(database.centroids[0])


def component(heat: Tensor, features: Tensor, rounds: int) -> Tensor:
    """The finer layer by its own first component, whatever the heat."""
    return first_component(features)


# Name -> module, constant and value; "net" and "options" are those of the explainer.
SETTINGS: dict[str, Mapping[str, Any]] = {
    "default": {},
    "training size": {"options": {"explain_size": 224}},
    "one layer": {"options": {"transfer": "cells", "explain_size": 384}},
    "one layer, stride undone": {"options": {"transfer": "cells", "explain_size": 384}, "undo": 1},
    "stride undone": {"undo": 1},
    "common embedding kept": {"patch": (belonging, "common_embedding", uncentred)},
    "temperature 0.05": {"patch": (belonging, "TEMPERATURE", 0.05)},
    "temperature 0.1": {"patch": (belonging, "TEMPERATURE", 0.1)},
    "temperature 0.2": {"patch": (belonging, "TEMPERATURE", 0.2)},
    "rivals below 0.3": {"patch": (belonging, "SIMILAR", 0.3)},
    "rivals below 0.8": {"patch": (belonging, "SIMILAR", 0.8)},
    "single cells": {"patch": (belonging, "NEIGHBORHOOD", 1)},
    "5 x 5 cells": {"patch": (belonging, "NEIGHBORHOOD", 5)},
    "power 1": {"patch": (module, "_POWER", 1.0)},
    "1 round": {"patch": (module, "ROUNDS", 1)},
    "3 rounds": {"patch": (module, "ROUNDS", 3)},
    "6 rounds": {"patch": (module, "ROUNDS", 6)},
    "clipped at 0.5 %": {"patch": (maps, "CLIPPED", 5)},
    "clipped at 3 %": {"patch": (maps, "CLIPPED", 30)},
    "finer layer by its first component": {"patch": (module, "spread", component)},
    "soft-contrast, two layers": {"options": {"transfer": "soft-contrast", "fused": True, "explain_size": 384}},
    "paper": {"options": {"preset": "paper"}},
}


def measure(
    name: str, net: Network, build: Callable[[Network], WeightDatabase], held: Samples, stage: str
) -> dict[str, float]:
    """Score one setting on held-out images."""
    setting = SETTINGS[name]
    options = dict(setting.get("options", {}))
    with ExitStack() as stack:
        if "patch" in setting:
            stack.enter_context(patch.object(*setting["patch"]))

        def explainer(net: Network) -> Explainer:
            db = build(net)
            return Explainer(DenseNet(net, setting["undo"]) if "undo" in setting else net, db, **options)

        own = explainer(net)
        scores, batches = Localization(), []
        for index in range(len(held)):
            image = torch.from_numpy(own.preprocess(held.image(index)))[None]
            mask, ignore = held.mask(index), held.ignore(index)
            if mask is not None:
                ignored = None if ignore is None else own.preprocess.mask(ignore)[None]
                scores.add(own(image).heatmaps, own.preprocess.mask(mask)[None], ignored)
            batches.append((np.array([index]), image))
        result = {key: value for key, value in (scores.result() if scores.images else {}).items() if key in SCORES}
        composites = Composites.draw(net, held, 15)
        grid = grid_test({name: of_explainer(own)}, composites, composites.clusters(own.database))
        explain: Callable[[Network], Mapping[str, Explain]] = lambda net: {name: explainer(net)}  # noqa: E731
        (row,) = randomisation(net, explain, batches[:20], stages=[stage])["rows"]
        return {
            **result,
            "grid_share": grid[name]["grid_share"],
            "random": row["stages"][-1]["spearman"],
            "between": row["between_images"]["spearman"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="network file = SPEC of its training images")
    parser.add_argument("--images", type=int, default=60, help="held-out images per data set")
    parser.add_argument("--stage", default="backbone.features.17", help="random from here on")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args()
    progress.show()
    for pair in args.data:
        path, _, spec = pair.partition("=")
        net, training = embedcam.EmbeddingNet.load(path), load(spec, "train")
        order = np.random.default_rng(0).permutation(len(training))
        masked = [i for i in order if training.mask(int(i)) is not None] or list(order)
        held = training.subset(np.sort(masked[: args.images]))
        rest = training.subset(np.sort(np.setdiff1d(order, masked[: args.images])))
        built: dict[str, WeightDatabase] = {}

        def build(net: Network, rest: Samples = rest, built: dict[str, WeightDatabase] = built) -> WeightDatabase:
            key = net.sha256()
            if key not in built:
                built[key] = embedcam.build_database(net, rest, exemplars=False)
            return built[key]

        print(f"\n{spec}\n")
        for name in args.settings:
            result = measure(name, net, build, held, args.stage)
            print(f"| {name} | " + " | ".join(f"{key} {value:.3f}" for key, value in result.items()) + " |", flush=True)


if __name__ == "__main__":
    main()
