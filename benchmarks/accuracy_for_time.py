"""Draw how good heat maps are against the time that they take, for every method and input size.

    python benchmarks/accuracy_for_time.py --run b.safetensors b.h5 folder:butterflies \
        --run c.safetensors c.h5 cub-pseudo:cub10 --out docs/images/accuracy-for-time.png

Times are medians of the CPU time of the whole call for one image, all methods interleaved on one thread. The grid test
composes pictures of the size at which a method explains.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from embedcam.data import load
from embedcam.database import WeightDatabase
from embedcam.evaluate.asking import of_explainer, of_similarity, unasked
from embedcam.evaluate.checks import evenly_spread
from embedcam.evaluate.grid import Ask, Composites, grid_test
from embedcam.evaluate.localization import Localization
from embedcam.evaluate.rivals import first_component, of_maps
from embedcam.explain import Explainer
from embedcam.explain.explanation import Explanation
from embedcam.nets import DenseNet, EmbeddingNet
from embedcam.utils import progress
from embedcam.utils.files import write_bytes, write_text

SIZES = (224, 320, 384, 448, 512)
MARKERS = "osD^vP"
SHOWN = {"mean_ratio": "mean ratio", "grid_share": "grid share"}


def methods(net: EmbeddingNet, db: WeightDatabase) -> dict[str, tuple[Callable[[Tensor], Explanation], Ask]]:
    """Explain images, and answer what the grid test asks, by name."""

    def explained(explainer: Explainer) -> tuple[Callable[[Tensor], Explanation], Ask]:
        return explainer, of_explainer(explainer)

    def explain_own(images: Tensor) -> Explanation:
        with torch.inference_mode():
            nearest = (net(images) @ centroids.T).argmax(dim=1, keepdim=True)
        return Explanation.of(ask_gradient(images, nearest)[:, 0])

    def ask_gradient(images: Tensor, clusters: Tensor) -> Any:
        return by_gradient(images, centroids[clusters])

    centroids, by_gradient = torch.from_numpy(db.centroids), of_similarity(net, db.network.layer)
    eigen = of_maps(net, db, first_component, fused=True)
    return {
        "embedcam": explained(Explainer(net, db)),
        "embedcam, one layer": explained(Explainer(net, db, fused=False)),
        "embedcam, stride undone": explained(Explainer(DenseNet(net), db)),
        "published method": explained(Explainer(net, db, preset="paper")),
        "EigenCAM, two layers": (eigen, unasked(eigen)),
        "Grad-CAM (backward pass)": (explain_own, ask_gradient),
    }


def placed(mask: NDArray[np.bool_] | None, net: EmbeddingNet) -> NDArray[np.bool_] | None:
    """Bring a mask (1, H, W) to the network's input size."""
    return None if mask is None else net.preprocess.mask(mask)[None]


def measure(run: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Score and time all methods at all sizes on one data set."""
    net_file, db_file, spec = run
    db, net = WeightDatabase.load(db_file), EmbeddingNet.load(net_file)
    net.layer = db.network.layer
    samples = load(spec, args.split)
    masked = samples.subset(np.array([i for i in range(len(samples)) if samples.mask(i) is not None]))
    some = evenly_spread(masked, args.images)
    rows, calls = [], {}
    for size in args.sizes:
        sized = copy.copy(net)
        sized.preprocess = net.preprocess.resized_to((size, size))
        images = [torch.from_numpy(sized.preprocess(some.image(i)))[None] for i in range(len(some))]
        masks = [(placed(some.mask(i), sized), placed(some.ignore(i), sized)) for i in range(len(some))]
        composites = Composites.draw(sized, masked, args.grid)
        asked = composites.clusters(db)
        for name, (explain, ask) in methods(net, db).items():
            scores = Localization()
            for image, (mask, ignore) in zip(images, masks, strict=True):
                assert mask is not None
                scores.add(explain(image).heatmaps, mask, ignore)
            (grid,) = grid_test({name: ask}, composites, asked, batch_size=1).values()
            rows.append(
                {"data": spec, "method": name, "size": size, **scores.result(), "grid_share": grid["grid_share"]}
            )
            calls[name, size] = partial(explain, images[0])
            print(rows[-1], flush=True)
    seconds: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(args.rounds):
        for key, call in calls.items():
            start = time.process_time()
            call()
            seconds[key].append(time.process_time() - start)
    for row in rows:
        row["ms"] = 1000 * statistics.median(seconds[row["method"], row["size"]])
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one row of charts per data set: mean ratio and grid share against milliseconds."""
    specs, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("data", "method"))
    figure = Figure(figsize=(10, 3.8 * len(specs)), layout="constrained")
    axes = figure.subplots(len(specs), 2, squeeze=False)
    for spec, pair in zip(specs, axes, strict=True):
        for axis, (key, label) in zip(pair, SHOWN.items(), strict=True):
            for marker, name in zip(MARKERS, names, strict=True):
                own = [row for row in rows if row["data"] == spec and row["method"] == name]
                axis.plot([r["ms"] for r in own], [r[key] for r in own], marker=marker, markersize=5, label=name)
                for row in own if name == names[0] else ():
                    place = row["ms"], row[key]
                    axis.annotate(row["size"], place, xytext=(0, 6), textcoords="offset points", fontsize=8)
            axis.set(xlabel="CPU ms per image", ylabel=label, title=Path(spec.partition(":")[2]).name)
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    write_bytes(path, drawn.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=3, action="append", required=True, metavar=("NET", "DB", "SPEC"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--split", default="test", choices=("train", "test"))
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--grid", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy-for-time.png"))
    args = parser.parse_args()
    progress.show()
    torch.set_num_threads(1)
    rows = [row for run in args.run for row in measure(run, args)]
    write_text(args.out.with_suffix(".json"), json.dumps(rows, indent=2) + "\n")
    draw(rows, args.out)


if __name__ == "__main__":
    main()
