"""Measure the peak of resident memory: of a build and of `evaluate` as images grow, of explaining again and again.

    python benchmarks/memory.py [--sizes 1000 200000] [--explanations 1000] [--works build ...] [--json FILE]

Each figure is of a process of its own. The pictures, 16 x 16 pixels in 50 classes, are computed from their numbers, so
that only what embedcam keeps grows; the network is `tiny` with 16 dimensions. `evaluate` has a quarter as many training
images as test images, every tenth of them with a mask. `x smallest` is the peak beside that of the smallest size;
`grown MB` is how much more is resident at the end than after the first 50 explanations (Linux).
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
WARM_UP = 50  # allocators and caches fill in the first calls
COLUMNS = {
    "work": "",
    "images": ",",
    "peak MB": ".0f",
    "x smallest": ".2f",
    "grown MB": "+.1f",
    "seconds": ".0f",
}


class Names(Sequence[str]):
    """The names of pictures, made when they are asked for."""

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
class Simulated:
    """Pictures computed from their numbers: on noise, a square in the colour of the class.

    Attributes:
        rows: (N,) the numbers.
        labels: (N,) the classes.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    names = tuple(f"class {number}" for number in range(CLASSES))
    has_masks = True

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> Simulated:
        """Make those of some numbers."""
        return cls(rows, rows % CLASSES)

    @property
    def ids(self) -> Names:
        """The numbers as names."""
        return Names(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """Compute picture `index`."""
        start = 7919 * int(self.rows[index]) % (len(NOISE) - 3 * SIZE * SIZE)
        pixels = NOISE[start : start + 3 * SIZE * SIZE].reshape(SIZE, SIZE, 3).copy()
        pixels[self._square(index)] = COLOURS[self.labels[index]]
        return Image.fromarray(pixels)

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Compute its mask, if it has one."""
        if self.rows[index] % 10:
            return None
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[self._square(index)] = True
        return mask

    def _square(self, index: int) -> tuple[slice, slice]:
        top, left = divmod(int(self.rows[index]) // CLASSES % 64, 8)
        return slice(top, top + 8), slice(left, left + 8)

    def ignore(self, index: int) -> None:
        """Return None: every pixel counts."""

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Simulated:
        """Keep only these pictures."""
        return self.of(self.rows[np.asarray(indices, dtype=np.int64)])


def prepare(folder: Path, count: int) -> None:
    """Write the network, a database and an ONNX file for the others."""
    import torch

    import embedcam
    from embedcam.onnx.export import export

    torch.manual_seed(0)
    samples = Simulated.of(np.arange(count))
    net = embedcam.EmbeddingNet("tiny", DIM, image_size=SIZE)
    some = torch.from_numpy(np.stack([net.preprocess(samples.image(row)) for row in range(CLASSES)]))
    for _ in range(50):
        net.train()(some)  # so that batch norms part the classes
    net.eval().save(folder / "net.safetensors")
    database = embedcam.build_database(net, samples)
    database.save(folder / "weights.h5")
    export(embedcam.Explainer(net, database), folder / "explainer.onnx")


def build(folder: Path, count: int, *, exemplars: bool) -> None:
    """Build a database as the command line does."""
    from embedcam.builder.build import build_file
    from embedcam.nets import EmbeddingNet

    net = EmbeddingNet.load(folder / "net.safetensors")
    build_file(net, Simulated.of(np.arange(count)), folder / "built.h5", exemplars=exemplars)


def evaluate(folder: Path, count: int) -> None:
    """Score as the command line does."""
    from embedcam.evaluate import table
    from embedcam.nets import EmbeddingNet

    net, test, gallery = (
        EmbeddingNet.load(folder / "net.safetensors"),
        np.arange(count),
        np.arange(count, count + count // 4),
    )
    table.evaluate(net, load_database(folder), Simulated.of(test), Simulated.of(gallery))


def with_torch(folder: Path, count: int) -> float:
    """Explain by torch."""
    import embedcam

    net = embedcam.EmbeddingNet.load(folder / "net.safetensors")
    return growth(embedcam.Explainer(net, load_database(folder)), some_image(), count)


def with_onnx(folder: Path, count: int) -> float:
    """Explain by onnxruntime."""
    from embedcam.onnx import OnnxExplainer

    return growth(OnnxExplainer(folder / "explainer.onnx"), some_image(), count)


def with_gradients(folder: Path, count: int) -> float:
    """Explain by backpropagation, by either method, at one layer and at two."""
    import torch

    from embedcam.gradient import WEIGHTINGS, GradCAM, TripletMargin
    from embedcam.nets import EmbeddingNet

    net = EmbeddingNet.load(folder / "net.safetensors")
    target = TripletMargin(*torch.randn(2, DIM))
    choices = itertools.product((net.layer, [net.layer, "features.5"]), WEIGHTINGS)
    cams = itertools.cycle([GradCAM(net, layer, method=method) for layer, method in choices])
    return growth(lambda images: next(cams)(images, target), torch.from_numpy(some_image()), count)


def load_database(folder: Path) -> Any:
    """Load the database that `prepare` wrote."""
    from embedcam.database import WeightDatabase

    return WeightDatabase.load(folder / "weights.h5")


def some_image() -> NDArray[np.float32]:
    """Make an image batch of one."""
    return np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)


def growth(explain: Callable[[Any], object], image: Any, count: int) -> float:
    """Explain an image again and again; tell by how many MB the resident memory grows."""
    for _ in range(WARM_UP):
        explain(image)
    before = resident()
    for _ in range(count):
        explain(image)
    return resident() - before


def resident() -> float:
    """Tell the resident memory of this process in MB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


OF_SIZES: dict[str, Callable[[Path, int], None]] = {
    "build": partial(build, exemplars=True),
    "build, no exemplars": partial(build, exemplars=False),
    "evaluate": evaluate,
}
EXPLAINING: dict[str, Callable[[Path, int], float]] = {
    "Explainer": with_torch,
    "OnnxExplainer": with_onnx,
    "Grad-CAM": with_gradients,
}
WORKS = {"prepare": prepare, **OF_SIZES, **EXPLAINING}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 200_000], help="images")
    parser.add_argument("--explanations", type=int, default=1000)
    works = [*OF_SIZES, *EXPLAINING]
    parser.add_argument("--works", choices=works, nargs="+", default=works)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("WORK", "IMAGES", "FOLDER"), help="do one work in this process")
    given = parser.parse_args()
    if given.one:
        work, count, folder = given.one
        one(work, int(count), Path(folder))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        apart("prepare", min(given.sizes), name)
        for work in given.works:
            of_work = [apart(work, size, name) for size in (given.sizes if work in OF_SIZES else [given.explanations])]
            rows += [{**row, "x smallest": row["peak MB"] / of_work[0]["peak MB"]} for row in of_work]
    report(COLUMNS, rows, about("torch", "faiss-cpu", "numpy"), given.json)


def apart(work: str, count: int, folder: str) -> dict[str, Any]:
    """Do one work in a process of its own."""
    command = [sys.executable, __file__, "--one", work, str(count), folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def one(work: str, count: int, folder: Path) -> None:
    """Do one work, and print what it took.

    The peak of a process is at least what the one that started it held then; that one holds little, without torch.
    """
    start = time.perf_counter()
    grown = WORKS[work](folder, count)
    row = {"work": work, "images": count, "grown MB": grown, "seconds": time.perf_counter() - start}
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({**row, "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}))


if __name__ == "__main__":
    main()
