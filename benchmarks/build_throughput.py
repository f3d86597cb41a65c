"""Time a database build beside embedding alone, and its weights beside one backward pass a triplet.

    python benchmarks/build_throughput.py [--weights mobilenet_v2.safetensors] [--images 1000] [--json FILE]
    python benchmarks/build_throughput.py --data folder:PATH ...

The made pictures are JPEGs of 400 x 300 pixels, in ten classes. Embedding alone is `nets.inference.embed`: reading,
decoding, the forward pass. The loop is what Grad-CAM for triplets does without a closed form: for every image and every
pair one backward pass from the triplet margin to the feature layer, of the head alone (`loop, head`) or, as general
Grad-CAM tools do, of the whole network with a forward pass each (`loop, network`). Loops are timed on a few images.
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
    parser.add_argument("--weights", type=Path, help="state dict of the backbone; random if left out")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--data", help="SPEC of real images; made ones if left out")
    parser.add_argument("--images", type=int, default=1000, help="made images")
    parser.add_argument("--loop-images", type=int, default=10, help="images that the loops take")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    net = embedcam.EmbeddingNet(given.backbone, 128, weights=given.weights, image_size=given.image_size).eval()
    with images(given.data, given.images) as samples:
        rows = measure(net, samples, given.pairs, given.loop_images, given.rounds)
    report(COLUMNS, rows, about("torch", "faiss-cpu") | {"images": len(samples), "pairs": given.pairs}, given.json)


@contextmanager
def images(spec: str | None, count: int) -> Iterator[Samples]:
    """Give real images, or make some."""
    if spec is not None:
        yield load(spec, "train")
        return
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / "images" / f"class{number % 10}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Smooth enough to compress as photographs do.
            rough = Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8))
            rough.resize((400, 300), Image.Resampling.BICUBIC).save(path, quality=90)
        yield load(f"folder:{folder}@all", "all")


def measure(
    net: embedcam.EmbeddingNet, samples: Samples, pairs: int, loop_images: int, rounds: int
) -> list[dict[str, Any]]:
    """Time all of it, each once a round."""
    seen = embed(net, samples)
    assert samples.labels is not None
    partners = Partners(samples.labels, samples.names, pairs)
    few = torch.from_numpy(np.stack([net.preprocess(samples.image(row)) for row in range(loop_images)]))
    known = torch.from_numpy(seen.embeddings)
    build = partial(embedcam.build_database, net, samples, pairs=pairs)
    works: dict[str, Callable[[], object]] = {
        "embedding alone": lambda: embed(net, samples),
        "build": partial(build, refinement=False),
        "build, Grad-CAM++": partial(build, refinement=False, method="gradcam++-exact"),
        "build, with the refinement": build,
        "weights, closed form": partial(build, refinement=False, embedded=seen),
        "loop, head": lambda: loop(net, few, known, partners, whole=False),
        "loop, network": lambda: loop(net, few, known, partners, whole=True),
    }
    sizes = {name: loop_images if name.startswith("loop") else len(samples) for name in works}
    seconds = interleaved(works, rounds, warm_up=1)
    each = {name: [taken / sizes[name] for taken in times] for name, times in seconds.items()}
    rows = []
    for name, times in each.items():
        rows.append(
            {
                "work": name,
                "images/s": Median.of(1 / taken for taken in times),
                "x embedding's throughput": ratio(each["embedding alone"], times),
                **{f"x {slow}": ratio(each[slow], times) for slow in ("loop, head", "loop, network")},
            }
        )
    return rows


def loop(
    net: embedcam.EmbeddingNet, images: torch.Tensor, known: torch.Tensor, partners: Partners, *, whole: bool
) -> torch.Tensor:
    """Average Grad-CAM weights over triplets by one backward pass a triplet."""
    weights = []
    wanted = {net.layer: net.feature_layer}
    for row, image in enumerate(images):
        total = torch.zeros(net.channels)
        positives, negatives = partners.draw(row)
        graph: tuple[torch.Tensor, torch.Tensor] | None = None
        for positive, negative in zip(positives.tolist(), negatives.tolist(), strict=True):
            if whole or graph is None:
                with torch.set_grad_enabled(whole), layers.capture(wanted, differentiable=True) as grabbed:
                    embedding = net(image[None])
                graph = embedding[0], grabbed[net.layer]
            (gradient,) = torch.autograd.grad(
                graph[0] @ (known[positive] - known[negative]), graph[1], retain_graph=True
            )
            total += gradient.mean(dim=(2, 3))[0]
        weights.append(total / len(positives))
    return torch.stack(weights)


if __name__ == "__main__":
    main()
