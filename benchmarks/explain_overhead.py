"""Time an explanation beside the plain embedding that it comes with, in one run.

    python benchmarks/explain_overhead.py [--weights mobilenet_v2.safetensors] [--json explain_overhead.json]

MobileNetV2 at 224 x 224, a database of random images. Both run once a round, so that they share whatever else the
machine does; the ratio is the median, over the rounds, of the explanation's time by the plain forward's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import embedcam
from embedcam.files import write_text

WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="state dict of torchvision's mobilenet_v2; random if left out")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="images at once")
    parser.add_argument("--rounds", type=int, default=60, help="times that both run")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--json", type=Path, help="also write the table there")
    given = parser.parse_args()
    rows = measure(given.weights, given.batches, given.rounds, given.image_size)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    print(f"{'batch':>5}{'plain ms':>12}{'explain ms':>12}{'ratio':>8}{'95 %':>16}")
    for row in rows:
        interval = f"{row['low']:.3f}-{row['high']:.3f}"
        print(f"{row['batch']:>5}{row['plain_ms']:>12.2f}{row['explain_ms']:>12.2f}{row['ratio']:>8.3f}{interval:>16}")
    if given.json:
        about = {"schema": 1, "embedcam": embedcam.__version__, "torch": torch.__version__}
        write_text(given.json, json.dumps({**about, "threads": torch.get_num_threads(), "rows": rows}, indent=2) + "\n")


def measure(weights: Path | None, batches: list[int], rounds: int, image_size: int) -> list[dict[str, Any]]:
    """Time both at each batch size."""
    torch.manual_seed(0)
    net = embedcam.EmbeddingNet("mobilenet_v2", 128, weights=weights, image_size=image_size).eval()
    training = [(image, label % 2) for label, image in enumerate(torch.rand(60, 3, image_size, image_size))]
    explainer = embedcam.Explainer(net, embedcam.build_database(net, training, pairs=5))

    def plain(images: Tensor) -> Tensor:
        with torch.inference_mode():
            embeddings: Tensor = net(images)
            return embeddings

    rows = []
    for batch in batches:
        images = torch.rand(batch, 3, image_size, image_size)
        times = [(clock(plain, images), clock(explainer, images)) for _ in range(WARM_UP + rounds)][WARM_UP:]
        ratios = sorted(explained / embedded for embedded, explained in times)
        # The order statistics that enclose the median with 95 % probability.
        reach = round(0.98 * rounds**0.5)
        rows.append(
            {
                "batch": batch,
                "plain_ms": 1000 * statistics.median(t for t, _ in times),
                "explain_ms": 1000 * statistics.median(t for _, t in times),
                "ratio": statistics.median(ratios),
                "low": ratios[max(0, rounds // 2 - reach)],
                "high": ratios[min(rounds - 1, rounds // 2 + reach)],
            }
        )
    return rows


def clock(work: Callable[[Tensor], object], images: Tensor) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work(images)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
