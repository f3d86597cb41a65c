"""Time Grad-CAM beside grad-cam, torchcam and captum, all in one run.

    pip install grad-cam torchcam captum
    python benchmarks/gradcam_peers.py [--weights mobilenet_v2.safetensors] [--json gradcam_peers.json]

MobileNetV2 at 224 x 224, the score of one class, the last convolution's output. Every method runs once a round, so that
all share whatever else the machine does; a ratio is the median, over the rounds, of a method's time by the plain
forward's. Each peer has a network of its own: their hooks stay in it.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import captum.attr
import pytorch_grad_cam
import torch
import torchcam.methods
from torch import Tensor, nn
from torchvision import models

from embedcam import __version__
from embedcam.files import write_text
from embedcam.gradient import ClassScore, GradCAM
from embedcam.nets.backbones import load_backbone, read_state_dict

LAYER, INDEX = "features.18", 281
WARM_UP = 3
PLAIN = "plain forward"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="state dict of torchvision's mobilenet_v2; random if left out")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="images at once")
    parser.add_argument("--rounds", type=int, default=30, help="times that every method runs")
    parser.add_argument("--json", type=Path, help="also write the table there")
    given = parser.parse_args()
    model = network(given.weights)
    rows = [row for batch in given.batches for row in measure(methods(model), batch, given.rounds)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    print(f"{'batch':>5}  {'method':<26}{'ms':>9}{'x plain forward':>17}")
    for row in rows:
        print(f"{row['batch']:>5}  {row['method']:<26}{row['ms']:>9.1f}{row['ratio']:>17.2f}")
    if given.json:
        about = {"schema": 1, "embedcam": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
        write_text(given.json, json.dumps({**about, "rows": rows}, indent=2) + "\n")


def network(weights: Path | None) -> nn.Module:
    """Make MobileNetV2."""
    torch.manual_seed(0)
    model: nn.Module = models.mobilenet_v2(weights=None)
    if weights is not None:
        load_backbone(model, "mobilenet_v2", read_state_dict(weights), weights)
    return model.eval()


def methods(model: nn.Module) -> dict[str, Callable[[Tensor], Any]]:
    """Name every method; each is a function of the images alone."""
    plain = copy.deepcopy(model)

    @torch.inference_mode()
    def forward(images: Tensor) -> Any:
        return plain(images)

    ours = {
        f"embedcam {method}": GradCAM(copy.deepcopy(model), LAYER, method=method) for method in ("gradcam", "gradcam++")
    }

    for_grad_cam = copy.deepcopy(model)
    grad_cam = pytorch_grad_cam.GradCAM(for_grad_cam, [for_grad_cam.get_submodule(LAYER)])

    for_torchcam = copy.deepcopy(model)
    extractor = torchcam.methods.GradCAM(for_torchcam, LAYER)

    for_captum = copy.deepcopy(model)
    attribution = captum.attr.LayerGradCam(for_captum, for_captum.get_submodule(LAYER))

    return {
        PLAIN: forward,
        **{name: partial(cam, target=ClassScore(INDEX)) for name, cam in ours.items()},
        "torchcam": lambda images: extractor(INDEX, for_torchcam(images)),
        "captum": lambda images: attribution.attribute(images, INDEX, relu_attributions=True),
        "grad-cam": lambda images: grad_cam(images, [lambda output: output[INDEX]] * len(images)),
    }


def measure(functions: dict[str, Callable[[Tensor], Any]], batch: int, rounds: int) -> list[dict[str, Any]]:
    """Time every function once a round."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(WARM_UP + rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function(images)
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return [
        {
            "batch": batch,
            "method": name,
            "ms": 1000 * statistics.median(taken),
            "ratio": statistics.median(a / b for a, b in zip(taken, seconds[PLAIN], strict=True)),
        }
        for name, taken in seconds.items()
    ]


if __name__ == "__main__":
    main()
