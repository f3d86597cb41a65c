"""Time `explain_files` from image files to overlays: images per second, busy cores, where time goes, peak memory.

    python benchmarks/end_to_end.py [--images 1000] [--batch-size 4] [--concurrency 1] [--json FILE]
    python benchmarks/end_to_end.py --net net.safetensors --db weights.h5 --data DIR ...
    python benchmarks/end_to_end.py --onnx explainer.onnx --data DIR ...

The made pictures are JPEGs of 400 x 300 pixels; without a network it is MobileNetV2 of random weights, with a small
database. `busy %` is the processor time of the process by its wall time and all cores, `peak MB` its resident memory;
both runs are processes of their own, so that their peaks can be compared. The three parts are timed alone, on one core
and on a few images; `share %` is of their sum. With several concurrency, each computes on one core.
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
    parser.add_argument("--onnx", type=Path, help="exported explainer, instead of these two")
    parser.add_argument("--backbone", default="mobilenet_v2", help="of random weights, without any of these")
    parser.add_argument("--image-size", type=int, default=224, help="its input")
    parser.add_argument("--data", type=Path, help="folder of real images; made ones if left out")
    parser.add_argument("--images", type=int, default=1000, help="of them; a run with a quarter of it comes first")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "IMAGES"), help="do one work in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given, *given.one)))
        return
    with contextlib.ExitStack() as stack:
        if given.data is None:
            made = stack.enter_context(images(None, given.images))
            assert isinstance(made, FileSamples)
            given.data = made.files[0].parents[1]
        if given.net is None and given.onnx is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            given.net, given.db = random_network(folder, given.backbone, given.image_size)
        sizes = [given.images // 4, given.images]
        rows = [*(apart(given, "end to end", size)[0] for size in sizes), *apart(given, "parts", SAMPLE)]
    made_with = about("torch", "numpy", "pillow") | {"batch size": given.batch_size, "concurrency": given.concurrency}
    report(COLUMNS, rows, made_with, given.json)


def apart(given: argparse.Namespace, work: str, count: int) -> list[dict[str, Any]]:
    """Do one work in a process of its own."""
    model = ["--onnx", given.onnx] if given.onnx else ["--net", given.net, "--db", given.db]
    # What is given twice counts as it is given last.
    more = map(str, ["--data", given.data, *model, "--one", work, count])
    command = [sys.executable, __file__, *sys.argv[1:], *more]
    rows: list[dict[str, Any]] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    )
    return rows


def random_network(folder: Path, backbone: str, image_size: int) -> tuple[Path, Path]:
    """Write a network of random weights and a database of random images."""
    import torch

    torch.manual_seed(0)
    net = embedcam.EmbeddingNet(backbone, 128, image_size=image_size).eval()
    training = [(image, label % 2) for label, image in enumerate(torch.rand(60, 3, image_size, image_size))]
    net.save(folder / "net.safetensors")
    embedcam.build_database(net, training, pairs=5, top_k=min(50, net.channels)).save(folder / "weights.h5")
    return folder / "net.safetensors", folder / "weights.h5"


def one(given: argparse.Namespace, work: str, count: str) -> list[dict[str, Any]]:
    """Do one work in this process."""
    inputs = files.find_files([given.data]).files[: int(count)]
    explainer = load(given, alone=work == "parts" or given.concurrency > 1)
    with tempfile.TemporaryDirectory() as out:
        if work == "parts":
            return parts(explainer, inputs, given.batch_size, Path(out))
        return [end_to_end(explainer, inputs, given, Path(out))]


def load(given: argparse.Namespace, *, alone: bool) -> AnyExplainer:
    """Load the explainer, to compute on all cores or on one alone."""
    if given.onnx:
        return OnnxExplainer(given.onnx, threads=int(alone))
    import torch

    if alone:
        torch.set_num_threads(1)
    return embedcam.Explainer(embedcam.EmbeddingNet.load(given.net), given.db)


def end_to_end(
    explainer: AnyExplainer, inputs: tuple[Path, ...], given: argparse.Namespace, out: Path
) -> dict[str, Any]:
    """Explain files as the command line does."""
    wall, busy = time.perf_counter(), time.process_time()
    done = files.explain_files(
        explainer, inputs, out, batch_size=given.batch_size, workers=given.workers, concurrency=given.concurrency
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
    """Tell the peak of this process's resident memory, on Linux without what the process that started it held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def parts(explainer: AnyExplainer, inputs: tuple[Path, ...], batch_size: int, out: Path) -> list[dict[str, Any]]:
    """Time reading, the network, and drawing and writing, each alone."""
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
            "CPU ms/image": 1000 * taken / len(inputs),
            "share %": 100 * taken / sum(seconds),
        }
        for name, taken in zip(names, seconds, strict=True)
    ]


if __name__ == "__main__":
    main()
