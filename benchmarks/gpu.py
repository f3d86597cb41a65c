"""Measure embedcam on a GPU: explanations by batch size, precision and mode, and the throughput of the other commands.

    make bench-gpu
    python benchmarks/gpu.py [--backbone mobilenet_v2] [--image-size 224] [--json FILE]
    python benchmarks/gpu.py --device cpu --quick

Under 6 minutes on a GPU. Networks have random weights. `forward` is the network alone, on images that lie on the GPU;
`explain` also copies the explanation to the host. `compiled` is `embedcam explain --compile`; `CUDA graph` replays the
explanation as one recorded graph. `syncs` counts the operations of a call that make the host wait for the GPU, beside
the one wait for the result; 0 is the aim. `embed`, `build` and `index` start from JPEG files of 400 x 300 pixels, which
`--workers` threads decode; `Pillow, one core` is the decoding alone, and `match` searches and explains ten hits.
Without a GPU, `--device cpu` runs the same code, without graphs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from build_throughput import by_pillow, images
from measure import Median, about, report
from torch import Tensor

import embedcam
from embedcam.builder import build_file
from embedcam.data.samples import FileSamples, Samples
from embedcam.database import WeightDatabase
from embedcam.errors import NetworkError
from embedcam.explain.compiled import CompiledExplainer
from embedcam.gallery import Gallery
from embedcam.gallery.writer import index
from embedcam.nets import layers
from embedcam.nets.inference import embed

COLUMNS = {
    "work": "",
    "precision": "",
    "mode": "",
    "batch": "",
    "images/s": ",.0f",
    "ms": ".2f",
    "x forward": ".2f",
    "syncs": ".0f",
}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
DIM, CLUSTERS = 128, 20

Work = Callable[[Tensor], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="a GPU, or cpu to see that the code works")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 256], help="batch sizes")
    parser.add_argument("--images", type=int, default=2048, help="files of build and index")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="threads that decode")
    parser.add_argument("--seconds", type=float, default=0.5, help="time per row")
    parser.add_argument("--quick", action="store_true", help="a small network, few images: only to see that it works")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("bench-gpu: torch finds no CUDA GPU here, nothing was measured; --device cpu runs the same code")
    if args.quick:
        args.backbone, args.image_size, args.batches, args.images, args.seconds = "tiny", 32, [1, 4], 90, 0.02
    torch.manual_seed(0)
    net = embedcam.EmbeddingNet(args.backbone, DIM, image_size=args.image_size).eval().to(device)
    with images(None, args.images) as samples, tempfile.TemporaryDirectory() as folder:
        rows = list(of_files(net, samples, Path(folder), args.workers))
        db = WeightDatabase.load(Path(folder) / "weights.h5")
        rows += of_matches(net, samples, Path(folder) / "gallery.h5", args.seconds)
        for precision, autocast in PRECISIONS.items():
            rows += of_batches(net, db, precision, autocast, args)
    made_with = about("torch") | {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    made_with |= {"network": args.backbone, "input": args.image_size, "images": args.images, "workers": args.workers}
    report(COLUMNS, rows, made_with, args.json)


def of_files(net: embedcam.EmbeddingNet, samples: Samples, folder: Path, workers: int) -> Iterator[dict[str, Any]]:
    """Time what starts from files, and leave a database and a gallery in the folder."""
    assert isinstance(samples, FileSamples)
    count = len(samples)
    options: dict[str, Any] = {"batch_size": min(256, count), "workers": workers}
    embed(net, samples.subset(range(min(count, 256))), **options)
    some = samples.files[:200]
    works: dict[str, tuple[int, Callable[[], object]]] = {
        "Pillow, one core": (len(some), lambda: [by_pillow(file, net) for file in some]),
        "embed": (count, lambda: embed(net, samples, **options)),
        "build": (count, lambda: build_file(net, samples, folder / "weights.h5", clusters=CLUSTERS, **options)),
        "index": (count, lambda: index(net, samples, folder / "gallery.h5", **options)),
    }
    for name, (images_read, work) in works.items():
        start = time.perf_counter()
        work()
        yield {"work": name, "images/s": images_read / (time.perf_counter() - start)}


def of_matches(
    net: embedcam.EmbeddingNet, samples: Samples, gallery_file: Path, seconds: float
) -> Iterator[dict[str, Any]]:
    """Time searches whose hits are explained."""
    query = torch.from_numpy(net.preprocess(samples.image(0)))[None]
    with Gallery.open(gallery_file, net) as gallery:
        yield row("match", query, lambda images: gallery.search(images, top=10), seconds)


def of_batches(
    net: embedcam.EmbeddingNet,
    db: WeightDatabase,
    precision: str,
    autocast: torch.dtype | None,
    args: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Time forward passes and explanations of images that lie on the device."""
    explain_size = args.image_size
    explainer = embedcam.Explainer(net, db, autocast=autocast, explain_size=explain_size)

    def forward(batch: Tensor) -> object:
        with layers.evaluating(net), torch.inference_mode(), torch.autocast(net.device.type, autocast, bool(autocast)):
            return net(batch)

    modes: dict[str, Work] = {"eager": explainer}
    if not args.quick:
        modes["compiled"] = CompiledExplainer(net, db, autocast=autocast, explain_size=explain_size)
    for count in args.batches:
        batch = torch.rand(count, 3, args.image_size, args.image_size, device=net.device)
        batch = batch.contiguous(memory_format=net.memory_format)
        plain = row("forward", batch, forward, args.seconds, precision=precision, mode="eager")
        yield plain
        if net.device.type == "cuda":
            modes["CUDA graph"] = graphed(explainer, batch)
        for mode, explain in modes.items():
            try:
                timed = row("explain", batch, explain, args.seconds, precision=precision, mode=mode)
            except NetworkError as error:  # it cannot be compiled
                print(error, file=sys.stderr)
            else:
                yield {**timed, "x forward": timed["ms"].value / plain["ms"].value}


def graphed(explainer: embedcam.Explainer, example: Tensor) -> Work:
    """Record the explanation of a batch as a CUDA graph; replaying it copies images in and the explanation out."""
    images = example.clone()
    module = explainer.module.fixed((images.shape[2], images.shape[3])).eval()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(3):
            module(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        outputs = module(images)

    def explain(batch: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            images.copy_(batch)
            graph.replay()
            copies = [values.to("cpu", non_blocking=True) for values in outputs]
        torch.cuda.current_stream().synchronize()
        return copies

    return explain


def row(work: str, batch: Tensor, call: Work, seconds: float, **columns: str) -> dict[str, Any]:
    """Time calls for some seconds, after the first ones."""
    for _ in range(3):
        call(batch)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        wait(batch)
        start = time.perf_counter()
        call(batch)
        wait(batch)
        times.append(time.perf_counter() - start)
    return {
        "work": work,
        "batch": len(batch),
        "images/s": Median.of(len(batch) / each for each in times),
        "ms": Median.of(1000 * each for each in times),
        "syncs": syncs(batch, call),
        **columns,
    }


def wait(batch: Tensor) -> None:
    """Wait for the GPU."""
    if batch.device.type == "cuda":
        torch.cuda.synchronize(batch.device)


def syncs(batch: Tensor, call: Work) -> int | None:
    """Count how often a call makes the host wait for the GPU, by torch's own warnings."""
    if batch.device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in warned)


if __name__ == "__main__":
    main()
