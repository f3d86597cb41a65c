"""Measure `explain_files` from image files to overlays: throughput, processor use, time per step, peak memory.

    python benchmarks/end_to_end.py [--images 1000] [--batch-size 4] [--concurrency 1] [--json FILE]
    python benchmarks/end_to_end.py --net net.safetensors --db weights.h5 --data DIR ...
    python benchmarks/end_to_end.py --onnx explainer.onnx --data DIR ...

Synthetic pictures are JPEGs of 400 x 300 pixels; the default network is MobileNetV2 with random weights and a small
database. `busy %` is the processor time relative to wall time and cores, `peak MB` the resident memory; both runs have
their own process, so that their peaks can be compared. The three steps are timed separately, on one core and on a few
images; `share %` is relative to their sum. With `--concurrency` above 1, each batch is computed on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from build_throughput import images
from measure import about, report

import embedcam
from embedcam.batch import files
from embedcam.data.images import read_image
from embedcam.data.samples import FileSamples
from embedcam.explain.explanation import AnyExplainer
from embedcam.onnx import OnnxExplainer
from embedcam.show.drawing import DrawOptions

COLUMNS = {
    "work": "",
    "images": ",",
    "images/s": ".1f",
    "busy %": ".0f",
    "peak MB": ".0f",
    "CPU ms/image": ".1f",
    "share %": ".0f",
}
SAMPLE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", type=Path, help="network file")
    parser.add_argument("--db", type=Path, help="its weight database")
    parser.add_argument("--onnx", type=Path, help="exported explainer, instead of network and database")
    parser.add_argument(
        "--backbone", default="mobilenet_v2", help="network with random weights, without --net and --onnx"
    )
    parser.add_argument("--image-size", type=int, default=224, help="side of its input, in pixels")
    parser.add_argument("--data", type=Path, help="folder of images; synthetic ones by default")
    parser.add_argument(
        "--images", type=int, default=1000, help="number of images; a run with a quarter of it comes first"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "IMAGES"), help="run one work in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_here(args, *args.one)))
        return
    with contextlib.ExitStack() as stack:
        if args.data is None:
            samples = stack.enter_context(images(None, args.images))
            assert isinstance(samples, FileSamples)
            args.data = samples.files[0].parents[1]
        if args.net is None and args.onnx is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            args.net, args.db = random_network(folder, args.backbone, args.image_size)
        sizes = [args.images // 4, args.images]
        rows = [run_in_process(args, "end to end", size)[0] for size in sizes]
        rows += run_in_process(args, "steps", SAMPLE)
    made_with = about("torch", "numpy", "pillow") | {"batch size": args.batch_size, "concurrency": args.concurrency}
    report(COLUMNS, rows, made_with, args.json)


def run_in_process(args: argparse.Namespace, work: str, count: int) -> list[dict[str, Any]]:
    """Run one work in its own process."""
    model = ["--onnx", args.onnx] if args.onnx else ["--net", args.net, "--db", args.db]
    # Later options override earlier ones.
    options = map(str, ["--data", args.data, *model, "--one", work, count])
    command = [sys.executable, __file__, *sys.argv[1:], *options]
    rows: list[dict[str, Any]] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    )
    return rows


def random_network(folder: Path, backbone: str, image_size: int) -> tuple[Path, Path]:
    """Write a network with random weights and a database of random images."""
    import torch

    torch.manual_seed(0)
    net = embedcam.EmbeddingNet(backbone, 128, image_size=image_size).eval()
    training = [(image, label % 2) for label, image in enumerate(torch.rand(60, 3, image_size, image_size))]
    net.save(folder / "net.safetensors")
    embedcam.build_database(net, training, pairs=5, top_k=min(50, net.channels)).save(folder / "weights.h5")
    return folder / "net.safetensors", folder / "weights.h5"


def run_here(args: argparse.Namespace, work: str, count: str) -> list[dict[str, Any]]:
    """Run one work in this process."""
    inputs = files.find_files([args.data]).files[: int(count)]
    explainer = load(args, single_thread=work == "steps" or args.concurrency > 1)
    with tempfile.TemporaryDirectory() as out:
        if work == "steps":
            return steps(explainer, inputs, args.batch_size, Path(out))
        return [end_to_end(explainer, inputs, args, Path(out))]


def load(args: argparse.Namespace, *, single_thread: bool) -> AnyExplainer:
    if args.onnx:
        return OnnxExplainer(args.onnx, threads=int(single_thread))
    import torch

    if single_thread:
        torch.set_num_threads(1)
    return embedcam.Explainer(embedcam.EmbeddingNet.load(args.net), args.db)


def end_to_end(
    explainer: AnyExplainer, inputs: tuple[Path, ...], args: argparse.Namespace, out: Path
) -> dict[str, Any]:
    """Explain files like the command line."""
    wall, busy = time.perf_counter(), time.process_time()
    done = files.explain_files(
        explainer, inputs, out, batch_size=args.batch_size, workers=args.workers, concurrency=args.concurrency
    )
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    return {
        "work": "end to end",
        "images": len(done),
        "images/s": len(done) / wall,
        "busy %": 100 * busy / (wall * about()["cores"]),
        "peak MB": peak_mb(),
        "CPU ms/image": 1000 * busy / len(done),
    }


def peak_mb() -> float:
    """Peak of resident memory of this process in MB, on Linux without that of its parent."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def steps(explainer: AnyExplainer, inputs: tuple[Path, ...], batch_size: int, out: Path) -> list[dict[str, Any]]:
    """Time reading, explaining and writing separately."""
    samples, draw = files.find_files(inputs), DrawOptions()
    prepare = functools.partial(files.prepare, explainer.preprocess, files._LONGEST_SIDE)
    files._explain(explainer, samples, [(0, prepare(read_image(inputs[0])))])  # warm up
    clock = [time.process_time()]
    read = [prepare(read_image(file)) for file in inputs]
    clock.append(time.process_time())
    numbered = list(enumerate(read))
    starts = range(0, len(read), batch_size)
    explained = [files._explain(explainer, samples, numbered[start : start + batch_size]) for start in starts]
    clock.append(time.process_time())
    for batch in explained:
        for image in batch:
            files._write(out, draw, image)
    clock.append(time.process_time())
    names = ("reading and preparing", "explaining", "drawing and writing")
    seconds = [after - before for before, after in itertools.pairwise(clock)]
    return [
        {
            "work": name,
            "images": len(inputs),
            "CPU ms/image": 1000 * elapsed / len(inputs),
            "share %": 100 * elapsed / sum(seconds),
        }
        for name, elapsed in zip(names, seconds, strict=True)
    ]


if __name__ == "__main__":
    main()
