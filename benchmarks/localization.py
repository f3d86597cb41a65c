"""Compare the localization of all methods of embedcam and two other libraries on a data set with masks.

    python benchmarks/localization.py --net b.safetensors --db b.h5 --data folder:butterflies --out runs/localization

Writes `localization.md`, `localization.json` and `localization.png`, the same images with the other libraries,
per-image Grad-CAM, and the default of embedcam. Unlike embedcam, the other libraries use the true class of each image,
as similarity to the mean embedding of its training images. They need `pip install grad-cam torchcam`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional
from torchcam.methods import GradCAM as TorchCAM

import embedcam
from embedcam.data import load, load_gallery
from embedcam.data.samples import Samples
from embedcam.database import WeightDatabase
from embedcam.evaluate.compare import Gallery, with_backprop
from embedcam.evaluate.method import Method, score_columns
from embedcam.evaluate.table import evaluate
from embedcam.explain import Explainer
from embedcam.explain.explanation import Explanation
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed
from embedcam.show.grid import grid, save_png
from embedcam.utils import progress
from embedcam.utils.files import write_text

GRAD_CAM, TORCHCAM = "grad-cam 1.5.7, class proxy", "torchcam, class proxy"
PICTURES = 8


class ByProxy(nn.Module):
    """An embedding network as a classifier: the score of a class is the similarity to its proxy."""

    def __init__(self, net: EmbeddingNet, gallery: Gallery) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("proxies", gallery.proxies())

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, classes)."""
        scores: Tensor = self.net(images) @ self.proxies.T
        return scores


def peers(net: EmbeddingNet, gallery: Gallery, labels: NDArray[np.int64]) -> list[Method]:
    """The methods grad-cam and torchcam, each with its own resize."""
    classifier = ByProxy(net, gallery).eval()
    grad_cam = PeerGradCAM(model=classifier, target_layers=[net.feature_layer])

    def by_grad_cam(images: Tensor, indices: NDArray[np.int64]) -> Explanation:
        maps = grad_cam(images.clone(), [ClassifierOutputTarget(int(labels[i])) for i in indices])
        return Explanation.of(np.asarray(maps, dtype=np.float32))

    def by_torchcam(images: Tensor, indices: NDArray[np.int64]) -> Explanation:
        # The context removes the hooks, which would slow down the other methods.
        with TorchCAM(classifier, net.feature_layer) as extractor, torch.enable_grad():
            (maps,) = extractor([int(labels[i]) for i in indices], classifier(images.clone()))
        resized = functional.interpolate(maps[:, None].detach(), images.shape[2:], mode="bilinear")[:, 0]
        return Explanation.of(resized.cpu().numpy())

    return [Method(GRAD_CAM, by_grad_cam, backprop=True), Method(TORCHCAM, by_torchcam, backprop=True)]


def table(result: dict[str, Any], args: argparse.Namespace) -> str:
    """Format the rows as Markdown, with 95 % intervals."""
    size, columns = result["explain_size"][0], score_columns()
    lines = [
        f"# Localization on {args.data}",
        "",
        f"{result['masks']} test images with masks, explained at {size} x {size} pixels (the paper's method at the "
        f"network's own size). Recall@1 {result['recall_at_1']:.3f}. 95 % intervals by bootstrap over images. "
        "Correlation: with per-image Grad-CAM from the triplets, the map that transfers imitate. "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}.",
        "",
        "| method | backprop | " + " | ".join(column.key for column in columns) + " | correlation | ms |",
        "|---|---|" + "---|" * (len(columns) + 2),
    ]
    for row in result["rows"]:
        texts = []
        for column in columns:
            interval = row["interval"][column.key]
            texts.append(column.text(row) + (f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else ""))
        name = f"**{row['method']}** (default)" if row["default"] else row["method"]
        correlation = "" if row["correlation"] is None else f"{row['correlation']:.2f}"
        backprop = "yes" if row["backprop"] else "no"
        lines.append(
            f"| {name} | {backprop} | " + " | ".join(texts) + f" | {correlation} | {row['ms_per_image']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def picture(net: EmbeddingNet, methods: list[Method], test: Samples, explainer: Explainer, path: Path) -> None:
    """Draw images evenly spread over the data set, with several methods."""
    indices = np.linspace(0, len(test) - 1, PICTURES + 2).round().astype(np.int64)[1:-1]
    images = torch.from_numpy(np.stack([explainer.preprocess(test.image(i)) for i in indices.tolist()])).to(net.device)
    pictures = list(explainer.preprocess.restore(images.cpu().numpy()))
    rows = [pictures, *(method.explain(images, indices).overlay(pictures) for method in methods)]
    save_png(grid(rows, row_titles=["picture", *(method.name for method in methods)], picture_size=140), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", required=True, help="network file")
    parser.add_argument("--db", required=True, help="its weight database")
    parser.add_argument("--data", required=True, help="SPEC with masks")
    parser.add_argument("--out", type=Path, default=Path("runs/localization"), help="output folder")
    parser.add_argument("--explain-size", type=int, help="side in pixels; the database's by default")
    parser.add_argument("--brief", action="store_true", help="only the rows of the README's table")
    args = parser.parse_args()
    progress.show()

    net, db = EmbeddingNet.load(args.net), WeightDatabase.load(args.db)
    test, training = load(args.data, "test"), load_gallery(args.data)
    assert training is not None
    assert test.labels is not None
    gallery = Gallery(training, embed(net, training, what="gallery"))
    others = peers(net, gallery, test.labels)
    per_image, *rest = with_backprop(net, db, gallery, test.labels)
    extra = [*others, *(method for method in rest if args.brief and method.name.endswith("two layers"))]
    options: dict[str, Any] = {"brief": args.brief, "explain_size": args.explain_size}
    result = evaluate(net, db, test, training, compare=True, extra=extra, **options)
    about = {"data": args.data, "embedcam": embedcam.__version__, "torch": torch.__version__, "cores": os.cpu_count()}
    write_text(args.out / "localization.json", json.dumps({**result, **about}, indent=2) + "\n")
    text = table(result, args)
    write_text(args.out / "localization.md", text)
    print(text)
    explainer = Explainer(net, db, explain_size=args.explain_size)
    default = Method("embedcam", lambda images, _: explainer(images))
    shown = [*others, per_image, default]
    picture(net, shown, test, explainer, args.out / "localization.png")


if __name__ == "__main__":
    main()
