"""Compare the maps of embedcam, rivals, controls and two other libraries on one or more data sets.

    python benchmarks/localization.py --run b.safetensors b.h5 folder:butterflies \
        --run c.safetensors c.h5 cub-pseudo:cub10 --run p.safetensors p.h5 pets:pets --grid 100 --out runs/localization

Writes `localization.md`, one table of all data sets, `localization.json`, and `localization.png`, images of the first
data set with the other libraries, per-image Grad-CAM, and the default of embedcam. Data sets without masks have the
grid test alone. The other libraries explain the similarity to the mean embedding of the true class's training images,
or to what the grid test asks for; with two layers, grad-cam averages their maps. They need
`pip install grad-cam torchcam`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_grad_cam as grad_cam
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget
from torch import Tensor, nn
from torch.nn import functional
from torchcam.methods import GradCAM as TorchCAM

import embedcam
from embedcam.data import load, load_gallery
from embedcam.data.samples import Samples
from embedcam.database import WeightDatabase
from embedcam.evaluate.checks import evenly_spread
from embedcam.evaluate.compare import Gallery, of_explainer, with_backprop
from embedcam.evaluate.grid import BY, Ask
from embedcam.evaluate.method import Method, columns
from embedcam.evaluate.rivals import rivals, untrained_head, with_partner
from embedcam.evaluate.table import evaluate
from embedcam.explain import Explainer
from embedcam.explain.explanation import Explanation
from embedcam.nets import EmbeddingNet, layers
from embedcam.nets.inference import embed
from embedcam.show.grid import grid, save_png
from embedcam.utils import progress
from embedcam.utils.files import write_text

GRAD_CAM = {
    "GradCAM": grad_cam.GradCAM,
    "LayerCAM": grad_cam.LayerCAM,
    "HiResCAM": grad_cam.HiResCAM,
    "FinerCAM": grad_cam.FinerCAM,
    "EigenCAM": grad_cam.EigenCAM,
    "KPCA-CAM": grad_cam.KPCA_CAM,
}
NO_GRADIENT = ("EigenCAM", "KPCA-CAM")
# FinerCAM contrasts a class with the three classes most like it.
SIMILAR = 3
PICTURES, DRAWN = 8, ("grad-cam 1.5.7 GradCAM", "torchcam GradCAM")


class Similarities(nn.Module):
    """An embedding network as a classifier: the scores of an image are its similarities to embeddings of its own."""

    def __init__(self, net: EmbeddingNet, embeddings: Tensor) -> None:
        super().__init__()
        self.net, self.embeddings = net, embeddings

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, S) by the similarity to `embeddings` (B, S, D)."""
        return torch.einsum("bd,bsd->bs", self.net(images), self.embeddings)


Peer = Callable[[Similarities, Tensor], NDArray[np.float32]]


def by_grad_cam(name: str, target_layers: list[nn.Module]) -> Peer:
    """A method of grad-cam, with its own resize."""
    finer = name == "FinerCAM"
    target = FinerWeightedTarget(0, [*range(1, SIMILAR + 1)], 1.0) if finer else ClassifierOutputTarget(0)

    def explain(model: Similarities, images: Tensor) -> NDArray[np.float32]:
        # The context removes the hooks, which would slow down the other methods.
        with GRAD_CAM[name](model, target_layers) as cam:
            return np.asarray(cam(images.clone(), [target] * len(images)), dtype=np.float32)

    return explain


def by_torchcam(model: Similarities, images: Tensor) -> NDArray[np.float32]:
    """Grad-CAM of torchcam, resized bilinearly."""
    with TorchCAM(model, model.net.feature_layer) as extractor, torch.enable_grad():
        (maps,) = extractor([0] * len(images), model(images.clone()))
    resized: NDArray[np.float32] = functional.interpolate(maps[:, None].detach(), images.shape[2:], mode="bilinear")[
        :, 0
    ].numpy(force=True)
    return resized


def peers(net: EmbeddingNet, db: WeightDatabase, gallery: Gallery, labels: NDArray[np.int64]) -> list[Method]:
    """The methods of grad-cam and torchcam, with one layer and, where the database has a finer one, with two."""
    proxies, centroids = gallery.proxies().to(net.device), torch.from_numpy(db.centroids).to(net.device)
    classes = np.searchsorted(np.unique(gallery.labels), labels)

    def method(name: str, peer: Peer) -> Method:
        def explain_towards(images: Tensor, towards: Tensor) -> NDArray[np.float32]:
            # Of the classes, the most similar is that of the embedding itself.
            similar = (towards @ proxies.T).topk(SIMILAR + 1, dim=1).indices[:, 1:]
            model = Similarities(net, torch.cat([towards[:, None], proxies[similar]], dim=1)).eval()
            return peer(model, images)

        def explain(images: Tensor, indices: NDArray[np.int64]) -> Explanation:
            return Explanation.of(explain_towards(images, proxies[classes[indices]]))

        def ask(images: Tensor, questions: Tensor) -> NDArray[np.float32]:
            towards = questions if questions.is_floating_point() else centroids[questions]
            return np.stack([explain_towards(images, each) for each in towards.unbind(dim=1)], axis=1)

        asks: dict[str, Ask] = dict.fromkeys(BY, ask)
        backprop = not any(free in name for free in NO_GRADIENT)
        return Method(name, explain, backprop=backprop, asks=asks)

    modules = {"": [net.feature_layer]}
    if db.fusion is not None:
        modules[", two layers"] = [net.feature_layer, layers.resolve(net.body, db.fusion.layer)]
    methods = [
        method(f"grad-cam 1.5.7 {name}{layers_used}", by_grad_cam(name, target_layers))
        for layers_used, target_layers in modules.items()
        for name in GRAD_CAM
    ]
    return [*methods, method("torchcam GradCAM", by_torchcam)]


def table(results: list[dict[str, Any]]) -> str:
    """Format the rows of all data sets as Markdown, with 95 % intervals."""
    rows = [row for result in results for row in result["rows"]]
    shown = [column for column in columns() if any(row[column.key] is not None for row in rows)]
    lines = [
        "# Heat maps side by side",
        "",
        "95 % intervals by bootstrap over images, or over composites. Correlation: with per-image Grad-CAM from the "
        f"triplets, the map that transfers imitate. {platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}.",
        "",
        *(about(result) for result in results),
        "",
        "| data | method | backprop | input | " + " | ".join(column.key for column in shown) + " |",
        "|---|---|---|---|" + "---|" * len(shown),
    ]
    for result in results:
        for row in result["rows"]:
            texts = []
            for column in shown:
                interval = row["interval"].get(column.key)
                texts.append(column.text(row) + (f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else ""))
            name = f"**{row['method']}** (default)" if row["default"] else row["method"]
            backprop = "yes" if row["backprop"] else "no"
            size = " x ".join(map(str, row["input_size"]))
            lines.append(f"| {result['data']} | {name} | {backprop} | {size} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def about(result: dict[str, Any]) -> str:
    """One line on a data set."""
    size = " x ".join(map(str, result["explain_size"]))
    return (
        f"- {result['data']}: {result['images']} test images, {result['masks']} with a {result['mask_kind']}, "
        f"explained at {size} pixels (the paper's method at the network's own size); {result['composites']} "
        f"composites; Recall@1 {result['recall_at_1']:.3f}."
    )


def picture(net: EmbeddingNet, methods: list[Method], test: Samples, explainer: Explainer, path: Path) -> None:
    """Draw images evenly spread over the data set, with several methods."""
    indices = np.linspace(0, len(test) - 1, PICTURES + 2).round().astype(np.int64)[1:-1]
    images = torch.from_numpy(np.stack([explainer.preprocess(test.image(i)) for i in indices.tolist()])).to(net.device)
    pictures = list(explainer.preprocess.restore(images.cpu().numpy()))
    rows = [pictures, *(method.explain(images, indices).overlay(pictures) for method in methods)]
    save_png(grid(rows, row_titles=["picture", *(method.name for method in methods)], picture_size=140), path)


def run(net_file: str, db_file: str, spec: str, args: argparse.Namespace, drawn: Path | None) -> dict[str, Any]:
    """Score all methods on one data set."""
    db = WeightDatabase.load(db_file)
    explainer = Explainer(EmbeddingNet.load(net_file), db, explain_size=args.explain_size)
    net = explainer.net
    assert isinstance(net, EmbeddingNet)
    test, training = load(spec, "test"), load_gallery(spec)
    assert training is not None
    if args.images is not None and args.images < len(test):
        test = evenly_spread(test, args.images)
    assert test.labels is not None
    gallery = Gallery(training, embed(net, training, what="gallery"))
    others, (per_image, *rest) = peers(net, db, gallery, test.labels), with_backprop(net, db, gallery, test.labels)
    extra = others
    if args.brief:
        two_layers = [method for method in rest if method.name.endswith("two layers")]
        controls = [*rivals(net, db), untrained_head(net, db, gallery)]
        extra = [*others, *controls, *with_partner(net, db, gallery, test.labels), *two_layers]
    if args.methods:
        extra = [method for method in extra if method.name in args.methods]
    options: dict[str, Any] = {"brief": args.brief, "explain_size": args.explain_size, "grid": args.grid}
    result = evaluate(net, db, test, training, compare=True, extra=extra, **options)
    if drawn is not None:
        both = [method for method in others if method.name in DRAWN]
        shown = [*both, per_image, of_explainer("embedcam", explainer)]
        picture(net, shown, test, explainer, drawn)
    return {**result, "data": spec}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run",
        nargs=3,
        action="append",
        required=True,
        metavar=("NET", "DB", "SPEC"),
        help="a network file, its weight database and a data set; may be repeated",
    )
    parser.add_argument("--grid", type=int, default=0, help="composites of the grid test; none by default")
    parser.add_argument("--images", type=int, help="at most this many test images, evenly spread; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/localization"), help="output folder")
    parser.add_argument("--explain-size", type=int, help="side in pixels; the database's by default")
    parser.add_argument("--methods", nargs="+", help="of the other libraries, rivals and controls, only these")
    parser.add_argument("--brief", action="store_true", help="without the other transfers and weightings")
    args = parser.parse_args()
    progress.show()

    results = [
        run(net, db, spec, args, args.out / "localization.png" if number == 0 else None)
        for number, (net, db, spec) in enumerate(args.run)
    ]
    machine = {"embedcam": embedcam.__version__, "torch": torch.__version__, "cores": os.cpu_count()}
    write_text(args.out / "localization.json", json.dumps({"schema": 2, "data": results, **machine}, indent=2) + "\n")
    text = table(results)
    write_text(args.out / "localization.md", text)
    print(text)


if __name__ == "__main__":
    main()
