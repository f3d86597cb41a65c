"""Explain an image a thousand times and tell how the resident memory grows (Linux).

python benchmarks/gradcam_leak.py [--explanations 1000]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
from pathlib import Path

import torch
from torchvision import models

from embedcam.gradient import METHODS, ClassScore, GradCAM

WARM_UP = 50  # allocators and caches fill in the first calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--explanations", type=int, default=1000)
    count = parser.parse_args().explanations
    torch.manual_seed(0)
    model = models.mobilenet_v2(weights=None).eval()
    image = torch.randn(1, 3, 224, 224)
    cams = itertools.cycle(
        [
            GradCAM(model, layer, method=method)
            for method in METHODS
            for layer in ("features.18", ["features.18", "features.14"])
        ]
    )
    for _ in range(WARM_UP):
        next(cams)(image, ClassScore())
    before = resident()
    for _ in range(count):
        next(cams)(image, ClassScore())
    print(
        f"{count} explanations: resident memory {before:.1f} MB -> {resident():.1f} MB ({resident() - before:+.1f} MB)"
    )


def resident() -> float:
    """Tell the resident memory of this process in MB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
