"""Measure the peak of resident memory of builds and evaluations of different sizes, and of repeated explanations.

    python benchmarks/memory.py [--sizes 1000 200000] [--explanations 1000] [--works build ...] [--json FILE]

Each row is measured in its own process. The pictures, 16 x 16 pixels in 50 classes, are computed from their index, so
that only the memory of embedcam grows; the network is `tiny` with 16 dimensions. `evaluate` has a quarter as many
training images as test images, and every tenth image has a mask. `x smallest` is the peak relative to that of the
smallest size; `grown MB` is the growth of resident memory after the first 50 explanations (Linux).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from measure import about, report
from numpy.typing import NDArray
from PIL import Image

SIZE, DIM, CLASSES = 16, 16, 50
NOISE = np.random.default_rng(0).integers(0, 90, 2**20, dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (CLASSES, 3), dtype=np.uint8)
WARM_UP = 50  # calls that fill allocators and caches
COLUMNS = {
    "work": "",
    "images": ",",
    "peak MB": ".0f",
    "x smallest": ".2f",
    "grown MB": "+.1f",
    "seconds": ".0f",
}


class Names(Sequence[str]):
    """Names of pictures, computed on access."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return Names(self._rows[index]) if isinstance(index, slice) else f"{self._rows[index]}.png"


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Pictures computed from their index: a square in the colour of the class, on noise.

    Attributes:
        rows: (N,) indices.
        labels: (N,) classes.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    names = tuple(f"class {number}" for number in range(CLASSES))
    has_masks = True

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> Synthetic:
        """The pictures of some indices."""
        return cls(rows, rows % CLASSES)

    @property
    def ids(self) -> Names:
        """Names of the pictures."""
        return Names(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """Picture `index`."""
        start = 7919 * int(self.rows[index]) % (len(NOISE) - 3 * SIZE * SIZE)
        pixels = NOISE[start : start + 3 * SIZE * SIZE].reshape(SIZE, SIZE, 3).copy()
        pixels[self._square(index)] = COLOURS[self.labels[index]]
        return Image.fromarray(pixels)

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Mask of picture `index`, if it has one."""
        if self.rows[index] % 10:
            return None
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[self._square(index)] = True
        return mask

    def _square(self, index: int) -> tuple[slice, slice]:
        top, left = divmod(int(self.rows[index]) // CLASSES % 64, 8)
        return slice(top, top + 8), slice(left, left + 8)

    def ignore(self, index: int) -> None:
        """No pixel is ignored."""

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Synthetic:
        """Select pictures."""
        return self.of(self.rows[np.asarray(indices, dtype=np.int64)])


def prepare(folder: Path, count: int) -> None:
    """Write the network, the database and the ONNX file."""
    import torch

    import embedcam
    from embedcam.onnx.export import export

    torch.manual_seed(0)
    samples = Synthetic.of(np.arange(count))
    net = embedcam.EmbeddingNet("tiny", DIM, image_size=SIZE)
    images = torch.from_numpy(np.stack([net.preprocess(samples.image(row)) for row in range(CLASSES)]))
    for _ in range(50):
        net.train()(images)  # batch norms adapt, which separates the classes
    net.eval().save(folder / "net.safetensors")
    database = embedcam.build_database(net, samples)
    database.save(folder / "weights.h5")
    export(embedcam.Explainer(net, database), folder / "explainer.onnx")


def build(folder: Path, count: int, *, exemplars: bool) -> None:
    """Build a database like the command line."""
    from embedcam.builder.build import build_file
    from embedcam.nets import EmbeddingNet

    net = EmbeddingNet.load(folder / "net.safetensors")
    build_file(net, Synthetic.of(np.arange(count)), folder / "built.h5", exemplars=exemplars)


def evaluate(folder: Path, count: int) -> None:
    """Evaluate like the command line."""
    from embedcam.evaluate import table
    from embedcam.nets import EmbeddingNet

    net = EmbeddingNet.load(folder / "net.safetensors")
    test, training = np.arange(count), np.arange(count, count + count // 4)
    table.evaluate(net, load_database(folder), Synthetic.of(test), Synthetic.of(training), work=folder / "scores")


def with_torch(folder: Path, count: int) -> float:
    """Explain with torch."""
    import embedcam

    net = embedcam.EmbeddingNet.load(folder / "net.safetensors")
    return growth(embedcam.Explainer(net, load_database(folder)), random_image(), count)


def with_onnx(folder: Path, count: int) -> float:
    """Explain with onnxruntime."""
    from embedcam.onnx import OnnxExplainer

    return growth(OnnxExplainer(folder / "explainer.onnx"), random_image(), count)


def with_gradients(folder: Path, count: int) -> float:
    """Explain with every Grad-CAM weighting, at one layer and at two."""
    import torch

    from embedcam.gradient import WEIGHTINGS, GradCAM, TripletMargin
    from embedcam.nets import EmbeddingNet

    net = EmbeddingNet.load(folder / "net.safetensors")
    target = TripletMargin(*torch.randn(2, DIM))
    choices = itertools.product((net.layer, [net.layer, "features.5"]), WEIGHTINGS)
    cams = itertools.cycle([GradCAM(net, layer, method=method) for layer, method in choices])
    return growth(lambda images: next(cams)(images, target), torch.from_numpy(random_image()), count)


def load_database(folder: Path) -> Any:
    """Load the database of `prepare`."""
    from embedcam.database import WeightDatabase

    return WeightDatabase.load(folder / "weights.h5")


def random_image() -> NDArray[np.float32]:
    """A random image batch of size 1."""
    return np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)


def growth(explain: Callable[[Any], object], image: Any, count: int) -> float:
    """Explain an image many times, and return the growth of resident memory in MB."""
    for _ in range(WARM_UP):
        explain(image)
    before = resident()
    for _ in range(count):
        explain(image)
    return resident() - before


def resident() -> float:
    """Resident memory of this process, in MB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


SIZED_WORKS: dict[str, Callable[[Path, int], None]] = {
    "build": partial(build, exemplars=True),
    "build, no exemplars": partial(build, exemplars=False),
    "evaluate": evaluate,
}
EXPLAIN_WORKS: dict[str, Callable[[Path, int], float]] = {
    "Explainer": with_torch,
    "OnnxExplainer": with_onnx,
    "Grad-CAM": with_gradients,
}
WORKS = {"prepare": prepare, **SIZED_WORKS, **EXPLAIN_WORKS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 200_000], help="images")
    parser.add_argument("--explanations", type=int, default=1000)
    works = [*SIZED_WORKS, *EXPLAIN_WORKS]
    parser.add_argument("--works", choices=works, nargs="+", default=works)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("WORK", "IMAGES", "FOLDER"), help="run one work in this process")
    args = parser.parse_args()
    if args.one:
        work, count, folder = args.one
        run_here(work, int(count), Path(folder))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        run_in_process("prepare", min(args.sizes), name)
        for work in args.works:
            counts = args.sizes if work in SIZED_WORKS else [args.explanations]
            of_work = [run_in_process(work, count, name) for count in counts]
            rows += [{**row, "x smallest": row["peak MB"] / of_work[0]["peak MB"]} for row in of_work]
    report(COLUMNS, rows, about("torch", "faiss-cpu", "numpy"), args.json)


def run_in_process(work: str, count: int, folder: str) -> dict[str, Any]:
    """Run one work in its own process."""
    command = [sys.executable, __file__, "--one", work, str(count), folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def run_here(work: str, count: int, folder: Path) -> None:
    """Run one work and print its measurements.

    The peak of a process includes the memory of its parent at the start, which is small here, without torch.
    """
    start = time.perf_counter()
    grown = WORKS[work](folder, count)
    row = {"work": work, "images": count, "grown MB": grown, "seconds": time.perf_counter() - start}
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({**row, "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}))


if __name__ == "__main__":
    main()
