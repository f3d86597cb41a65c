"""Count the frames a second of a video that are read, explained through ONNX, drawn and written.

    python benchmarks/video.py [--sizes 96 224] [--frame 640 480] [--json video.json]
    python benchmarks/video.py --video FILE ...

The network is Faster-Grad-CAM's, MobileNetV2 of width 0.5, with random weights, explained by default. Without a file,
the video is made: a picture that wanders. "CPU ms" is what all threads together spend on a frame; on idle cores, their
number times 1000 / "CPU ms" is the most frames a second that could be. Nothing is shown.
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
from embedcam.video.stream import VIDEO_DRAW, StreamReport, explain_stream
from embedcam.video.video import write_video

TRAINING = 60
COLUMNS = {"input": "", "mode": "", "frames/s": ".1f", "CPU ms": ".1f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224], help="sides of the network's input")
    parser.add_argument("--frame", type=int, nargs=2, default=[640, 480], help="width and height of the made video")
    parser.add_argument("--frames", type=int, default=300, help="of the made video")
    parser.add_argument("--video", type=Path, help="a video file; a made one if left out")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime; drawing and writing have their own")
    parser.add_argument("--rounds", type=int, default=5, help="times that every work runs")
    parser.add_argument("--json", type=Path, help="also write the table there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = given.video or made(folder / "made.mp4", given.frame, given.frames)
        rows = []
        for size in given.sizes:
            explainer = embedcam.OnnxExplainer(exported(size, folder / f"{size}.onnx"), threads=given.threads)
            rows += measure(explainer, video, folder / "out.mp4", given.rounds)
    options = {"threads": given.threads, "frame": "x".join(map(str, given.frame)), "rounds": given.rounds}
    report(COLUMNS, rows, {**about("onnxruntime", "av"), **options}, given.json)


def measure(explainer: embedcam.OnnxExplainer, video: Path, out: Path, rounds: int) -> list[dict[str, Any]]:
    """Explain the whole video once a round in both modes."""
    modes = {"heat map": VIDEO_DRAW, "box": DrawOptions(boxes=True, threshold=VIDEO_DRAW.threshold)}
    spent: dict[str, list[tuple[int, float]]] = {mode: [] for mode in modes}

    def work(mode: str) -> StreamReport:
        start = time.process_time()
        done = explain_stream(explainer, video, out, modes[mode], show=False)
        spent[mode].append((done.frames, time.process_time() - start))
        return done

    seconds = interleaved({mode: partial(work, mode) for mode in modes}, rounds, warm_up=1)
    return [
        {
            "input": explainer.preprocess.input_size[0],
            "mode": mode,
            "frames/s": Median.of(spent[mode][0][0] / taken for taken in seconds[mode]),
            "CPU ms": Median.of(1000 * cpu / frames for frames, cpu in spent[mode][1:]),
        }
        for mode in modes
    ]


def exported(size: int, path: Path) -> Path:
    """Write an explainer of random images as an ONNX file."""
    torch.manual_seed(0)
    training = torch.rand(TRAINING, 3, size, size)
    module = mobilenet_v2(width_mult=0.5)
    module.classifier = nn.Identity()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # or random weights fade from layer to layer, and all embeddings are alike
    with torch.no_grad():
        module.train()(training)
    net = embedcam.wrap(module.eval(), preprocess=embedcam.Preprocess((size, size)))
    database = embedcam.build_database(net, [(image, number % 2) for number, image in enumerate(training)], pairs=5)
    export(embedcam.Explainer(net, database, explain_size=size), path)
    return path


def made(path: Path, size: list[int], frames: int) -> Path:
    """Write a video at 30 frames a second whose frames wander over a smooth picture."""
    (width, height), random = size, np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (8, 16, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width + frames, height), Image.Resampling.BICUBIC))
    with write_video(path, Fraction(1, 30)) as writer:
        for number in range(frames):
            writer.write(picture[:, number : number + width], number)
    return path


if __name__ == "__main__":
    main()
