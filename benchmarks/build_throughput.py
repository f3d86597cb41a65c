"""Compare the throughput of a database build with plain embedding, and with one backward pass per triplet.

    python benchmarks/build_throughput.py [--weights mobilenet_v2.safetensors] [--images 1000] [--json FILE]
    python benchmarks/build_throughput.py --data folder:PATH ...

Synthetic pictures are JPEGs of 400 x 300 pixels in ten classes. Embedding alone is `nets.inference.embed`: reading,
decoding and the forward pass. The loops are Grad-CAM for triplets without the closed form: one backward pass per image
and pair from the triplet margin to the feature layer, of the head (`loop, head`) or, as general Grad-CAM tools do, of
the whole network with a forward pass each (`loop, network`). Loops are timed on a few images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Median, about, interleaved, ratio, report
from PIL import Image

import embedcam
from embedcam.builder.triplets import Partners
from embedcam.data import load
from embedcam.data.samples import Samples
from embedcam.nets import layers
from embedcam.nets.inference import embed

COLUMNS = {
    "work": "",
    "images/s": ".1f",
    "x embedding's throughput": ".2f",
    "x loop, head": ".1f",
    "x loop, network": ".0f",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="state dict of the backbone; random by default")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--data", help="SPEC of real images; synthetic ones by default")
    parser.add_argument("--images", type=int, default=1000, help="number of synthetic images")
    parser.add_argument("--loop-images", type=int, default=10, help="images of the loops")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    net = embedcam.EmbeddingNet(args.backbone, 128, weights=args.weights, image_size=args.image_size).eval()
    with images(args.data, args.images) as samples:
        rows = measure(net, samples, args.pairs, args.loop_images, args.rounds)
    report(COLUMNS, rows, about("torch", "faiss-cpu") | {"images": len(samples), "pairs": args.pairs}, args.json)


@contextmanager
def images(spec: str | None, count: int) -> Iterator[Samples]:
    """Load images, or synthesise them."""
    if spec is not None:
        yield load(spec, "train")
        return
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / "images" / f"class{number % 10}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Smooth, to compress like photographs.
            coarse = Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8))
            coarse.resize((400, 300), Image.Resampling.BICUBIC).save(path, quality=90)
        yield load(f"folder:{folder}@all", "all")


def measure(
    net: embedcam.EmbeddingNet, samples: Samples, pairs: int, loop_images: int, rounds: int
) -> list[dict[str, Any]]:
    embedded = embed(net, samples)
    assert samples.labels is not None
    partners = Partners(samples.labels, samples.names, pairs)
    batch = torch.from_numpy(np.stack([net.preprocess(samples.image(row)) for row in range(loop_images)]))
    embeddings = torch.from_numpy(embedded.embeddings)
    build = partial(embedcam.build_database, net, samples, pairs=pairs)
    calls: dict[str, Callable[[], object]] = {
        "embedding alone": lambda: embed(net, samples),
        "build": partial(build, refinement=False),
        "build, Grad-CAM++": partial(build, refinement=False, method="gradcam++-exact"),
        "build, with the refinement": build,
        "weights, closed form": partial(build, refinement=False, embedded=embedded),
        "loop, head": lambda: loop(net, batch, embeddings, partners, whole=False),
        "loop, network": lambda: loop(net, batch, embeddings, partners, whole=True),
    }
    sizes = {name: loop_images if name.startswith("loop") else len(samples) for name in calls}
    seconds = interleaved(calls, rounds, warm_up=1)
    per_image = {name: [total / sizes[name] for total in totals] for name, totals in seconds.items()}
    return [
        {
            "work": name,
            "images/s": Median.of(1 / time for time in times),
            "x embedding's throughput": ratio(per_image["embedding alone"], times),
            **{f"x {loop}": ratio(per_image[loop], times) for loop in ("loop, head", "loop, network")},
        }
        for name, times in per_image.items()
    ]


def loop(
    net: embedcam.EmbeddingNet, images: torch.Tensor, embeddings: torch.Tensor, partners: Partners, *, whole: bool
) -> torch.Tensor:
    """Average Grad-CAM weights over triplets by one backward pass per triplet."""
    weights = []
    modules = {net.layer: net.feature_layer}
    for row, image in enumerate(images):
        total = torch.zeros(net.channels)
        positives, negatives = partners.draw(row)
        graph: tuple[torch.Tensor, torch.Tensor] | None = None
        for positive, negative in zip(positives.tolist(), negatives.tolist(), strict=True):
            if whole or graph is None:
                with torch.set_grad_enabled(whole), layers.capture(modules, differentiable=True) as outputs:
                    embedding = net(image[None])
                graph = embedding[0], outputs[net.layer]
            (gradient,) = torch.autograd.grad(
                graph[0] @ (embeddings[positive] - embeddings[negative]), graph[1], retain_graph=True
            )
            total += gradient.mean(dim=(2, 3))[0]
        weights.append(total / len(positives))
    return torch.stack(weights)


if __name__ == "__main__":
    main()
