"""Measure the frame rate of explaining a video with ONNX, including reading, drawing and writing.

    python benchmarks/video.py [--sizes 96 224] [--frame 640 480] [--json video.json]
    python benchmarks/video.py --video FILE ...

The network is that of Faster-Grad-CAM, MobileNetV2 of width 0.5, with random weights. The default video is synthetic, a
moving picture. "CPU ms" is the processor time of all threads per frame; the number of cores times 1000 / "CPU ms" is an
upper bound of the frame rate. No window is opened.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Median, about, interleaved, report
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v2

import embedcam
from embedcam.onnx.export import export
from embedcam.show.drawing import DrawOptions
from embedcam.video.stream import StreamReport, explain_stream
from embedcam.video.writer import write_video

TRAINING = 60
COLUMNS = {"input": "", "mode": "", "frames/s": ".1f", "CPU ms": ".1f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[96, 224], help="sides of the network's input, in pixels"
    )
    parser.add_argument(
        "--frame", type=int, nargs=2, default=[640, 480], help="width and height of the synthetic video"
    )
    parser.add_argument("--frames", type=int, default=300, help="frames of the synthetic video")
    parser.add_argument("--video", type=Path, help="a video file; a synthetic one by default")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of onnxruntime; drawing and writing have their own"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed runs per mode")
    parser.add_argument("--json", type=Path, help="JSON file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = args.video or synthetic_video(folder / "synthetic.mp4", args.frame, args.frames)
        rows = []
        for size in args.sizes:
            explainer = embedcam.OnnxExplainer(exported(size, folder / f"{size}.onnx"), threads=args.threads)
            rows += measure(explainer, video, folder / "out.mp4", args.rounds)
    options = {"threads": args.threads, "frame": "x".join(map(str, args.frame)), "rounds": args.rounds}
    report(COLUMNS, rows, {**about("onnxruntime", "av"), **options}, args.json)


def measure(explainer: embedcam.OnnxExplainer, video: Path, out: Path, rounds: int) -> list[dict[str, Any]]:
    """Explain the video once per round in both modes."""
    modes = {"heat map": DrawOptions(), "box": DrawOptions(boxes=True)}
    cpu_times: dict[str, list[tuple[int, float]]] = {mode: [] for mode in modes}

    def run(mode: str) -> StreamReport:
        start = time.process_time()
        report = explain_stream(explainer, video, out, modes[mode], show=False)
        cpu_times[mode].append((report.frames, time.process_time() - start))
        return report

    seconds = interleaved({mode: partial(run, mode) for mode in modes}, rounds, warm_up=1)
    return [
        {
            "input": explainer.preprocess.input_size[0],
            "mode": mode,
            "frames/s": Median.of(cpu_times[mode][0][0] / elapsed for elapsed in seconds[mode]),
            "CPU ms": Median.of(1000 * cpu / frames for frames, cpu in cpu_times[mode][1:]),
        }
        for mode in modes
    ]


def exported(size: int, path: Path) -> Path:
    """Export an explainer with a database of random images."""
    torch.manual_seed(0)
    training = torch.rand(TRAINING, 3, size, size)
    module = mobilenet_v2(width_mult=0.5)
    module.classifier = nn.Identity()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # else activations vanish with random weights
    with torch.no_grad():
        module.train()(training)
    net = embedcam.wrap(module.eval(), preprocess=embedcam.Preprocess((size, size)))
    database = embedcam.build_database(net, [(image, number % 2) for number, image in enumerate(training)], pairs=5)
    export(embedcam.Explainer(net, database, explain_size=size), path)
    return path


def synthetic_video(path: Path, size: list[int], frames: int) -> Path:
    """Write a video with 30 frames per second, a moving crop of a smooth picture."""
    (width, height), random = size, np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (8, 16, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width + frames, height), Image.Resampling.BICUBIC))
    with write_video(path, Fraction(1, 30)) as writer:
        for number in range(frames):
            writer.write(picture[:, number : number + width], number)
    return path


if __name__ == "__main__":
    main()
