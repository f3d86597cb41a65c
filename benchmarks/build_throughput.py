"""Compare the throughput of `build` and `index` with plain embedding, and with one backward pass per triplet.

    python benchmarks/build_throughput.py [--weights mobilenet_v2.safetensors] [--images 1000] [--json FILE]
    python benchmarks/build_throughput.py --net net.safetensors --data folder:PATH ...
    python benchmarks/build_throughput.py --in-memory --images 10000 --image-size 64 --loop-images 0 --rounds 1

Synthetic pictures are JPEGs of 400 x 300 pixels in ten classes; with `--in-memory`, 16 x 16 pixels that are computed.
Embedding alone is `nets.inference.embed` at the network's own size: reading, decoding and the forward pass, and the
embeddings remain in memory. `build` and `index` are those of the command line and write their files. `Pillow` decodes
and resizes on one core, `reading` also normalises. The loops are Grad-CAM for triplets without the closed form: one
backward pass per image and pair from the triplet margin to the feature layer, of the head (`loop, head`) or, as general
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
from memory import Synthetic
from PIL import Image

import embedcam
from embedcam.builder import build_file
from embedcam.builder.triplets import Partners
from embedcam.data import load
from embedcam.data.samples import FileSamples, Samples
from embedcam.gallery.writer import index
from embedcam.nets import layers
from embedcam.nets.inference import embed

COLUMNS = {
    "work": "",
    "images/s": ".1f",
    "x embedding's throughput": ".2f",
    "x loop, head": ".1f",
    "x loop, network": ".0f",
}
LOOPS = {"loop, head": False, "loop, network": True}
SAMPLE = 200  # images that are read on one core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", type=Path, help="network file; a new network by default")
    parser.add_argument("--weights", type=Path, help="state dict of the backbone; random by default")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--data", help="SPEC of real images; synthetic ones by default")
    parser.add_argument("--images", type=int, default=1000, help="number of synthetic images")
    parser.add_argument("--in-memory", action="store_true", help="computed pictures of 16 x 16 pixels")
    parser.add_argument("--loop-images", type=int, default=10, help="images of the loops; 0 leaves them out")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--brief", action="store_true", help="64 images, one round: only to see that it works")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.brief:
        args.images, args.loop_images, args.pairs, args.rounds = 64, 1, 2, 1
    torch.manual_seed(0)
    if args.net is None:
        net = embedcam.EmbeddingNet(args.backbone, 128, weights=args.weights, image_size=args.image_size).eval()
    else:
        net = embedcam.EmbeddingNet.load(args.net)
    with images(args.data, args.images, in_memory=args.in_memory) as samples:
        rows = measure(net, samples, args.pairs, args.loop_images, args.rounds)
    made_with = about("torch", "faiss-cpu", "pillow") | {"images": len(samples), "pairs": args.pairs}
    report(COLUMNS, rows, made_with | {"input": net.preprocess.input_size}, args.json)


@contextmanager
def images(spec: str | None, count: int, *, in_memory: bool = False) -> Iterator[Samples]:
    """Load images, or synthesise them."""
    if spec is not None:
        loaded = load(spec, "train")
        yield loaded.subset(np.arange(len(loaded))[:count])
        return
    if in_memory:
        yield Synthetic.of(np.arange(count))
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
    some = range(min(len(samples), SAMPLE))
    calls: dict[str, Callable[[], object]] = {"embedding alone": lambda: embed(net, samples)}
    sizes = {"Pillow, one core": len(some), "reading, one core": len(some)}
    with tempfile.TemporaryDirectory() as folder:
        build = partial(build_file, net, samples, Path(folder) / "weights.h5")
        calls |= {
            "build": build,
            "build, Grad-CAM++": partial(build, method="gradcam++-exact"),
            "build, finer weights": partial(build, finer_weights=True),
            "build without embedding": partial(build, refinement=False, embedded=embedded),
            "index": lambda: index(net, samples, Path(folder) / "gallery.h5"),
            "reading, one core": lambda: [net.preprocess(samples.image(row)) for row in some],
        }
        if isinstance(samples, FileSamples):
            calls["Pillow, one core"] = lambda: [by_pillow(samples.files[row], net) for row in some]
        if loop_images:
            assert samples.labels is not None
            partners = Partners(samples.labels, samples.names, pairs)
            batch = torch.from_numpy(np.stack([net.preprocess(samples.image(row)) for row in range(loop_images)]))
            embeddings = torch.from_numpy(embedded.embeddings)
            for name, whole in LOOPS.items():
                calls[name] = partial(loop, net, batch, embeddings, partners, whole=whole)
                sizes[name] = loop_images
        seconds = interleaved(calls, rounds, warm_up=1 if rounds > 1 else 0)
    per_image = {name: [total / sizes.get(name, len(samples)) for total in totals] for name, totals in seconds.items()}
    return [
        {
            "work": name,
            "images/s": Median.of(1 / time for time in times),
            "x embedding's throughput": ratio(per_image["embedding alone"], times),
            **{f"x {each}": ratio(per_image[each], times) for each in LOOPS if each in per_image},
        }
        for name, times in per_image.items()
    ]


def by_pillow(file: Path, net: embedcam.EmbeddingNet) -> Image.Image:
    """Decode and resize a file by Pillow alone."""
    with Image.open(file) as image:
        return image.convert("RGB").resize(net.preprocess.input_size[::-1], Image.Resampling.BILINEAR)


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
