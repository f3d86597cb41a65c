"""Load test of the server: many simultaneous requests, and their losses, latency and memory.

    python benchmarks/serve.py [--net FILE --db FILE | --onnx FILE] [--requests 200] [--rounds 5] [--json FILE]

The server is a process on this machine and shares the cores with the clients. The default is a tiny network of the
built-in pictures, which measures the overhead of the server. Every request has its own connection, and all requests of
a round are sent at the same time, so the slowest is the last in the queue. A request is lost if its response is not
the complete explanation. Memory is the resident memory of the server.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple

from measure import Median, about, report

COLUMNS = {
    "round": "",
    "requests": "",
    "lost": "",
    "answers/s": ".1f",
    "median s": ".2f",
    "slowest s": ".2f",
    "MB before": ".0f",
    "MB after": ".0f",
}
WARM_UP = 20


class Answer(NamedTuple):
    """Content of a response, or None, and its latency."""

    content: bytes | None
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", type=Path)
    parser.add_argument("--db", type=Path)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--image", type=Path, help="picture to send; a synthetic one of 640 x 480 pixels by default")
    parser.add_argument("--requests", type=int, default=200, help="simultaneous requests")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--concurrency", type=int, default=2, help="pictures explained at the same time, one thread each"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help="run the server")
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    picture = args.image.read_bytes() if args.image else synthetic_picture()
    with tempfile.TemporaryDirectory() as folder:
        if not (args.onnx or args.net):
            args.net, args.db = prepare(Path(folder))
        with server(args) as (process, port):
            expected = [send(port, picture).content for _ in range(WARM_UP)][-1]
            rows: list[dict[str, Any]] = []
            before = resident(process)
            for number in range(args.rounds):
                rows.append(
                    {"round": number + 1, "MB before": before, **load_test(port, picture, expected, args.requests)}
                )
                before = rows[-1]["MB after"] = resident(process)
    report(COLUMNS, rows, about("fastapi", "uvicorn", "torch") | {"concurrency": args.concurrency}, args.json)


def load_test(port: int, picture: bytes, expected: bytes | None, requests: int) -> dict[str, Any]:
    """Send requests at the same time."""
    barrier = Barrier(requests)

    def request(_: int) -> Answer:
        barrier.wait()
        return send(port, picture)

    start = time.perf_counter()
    with ThreadPoolExecutor(requests) as threads:
        answers = list(threads.map(request, range(requests)))
    seconds = time.perf_counter() - start
    return {
        "requests": requests,
        "lost": sum(answer.content is None or answer.content != expected for answer in answers),
        "answers/s": requests / seconds,
        "median s": Median.of(answer.seconds for answer in answers),
        "slowest s": max(answer.seconds for answer in answers),
    }


def send(port: int, picture: bytes) -> Answer:
    """Request the explanation of a picture over a new connection."""
    start = time.perf_counter()
    content = None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("POST", "/explain?include=heatmap", picture, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        content = answer.read() if answer.status == 200 else None
    return Answer(content, time.perf_counter() - start)


def synthetic_picture() -> bytes:
    """A JPEG file of smooth random colours."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def prepare(folder: Path) -> tuple[Path, Path]:
    """Write a tiny network and its database."""
    from embedcam.builder.build import build_database
    from embedcam.nets import EmbeddingNet

    net = EmbeddingNet("tiny", 32, image_size=32).eval()
    net.save(folder / "net.safetensors")
    build_database(net, "digits", clusters=10, top_k=10, pairs=5).save(folder / "weights.h5")
    return folder / "net.safetensors", folder / "weights.h5"


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the server; yields its process and port."""
    command = [sys.executable, __file__, "--serve"]
    for option in ("concurrency", "requests", "net", "db", "onnx"):
        if getattr(args, option):
            command += [f"--{option}", str(getattr(args, option))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        if not line.startswith("serving at http://"):
            raise SystemExit(line + process.stderr.read())
        try:
            yield process, int(line.split()[2].rpartition(":")[2])
        finally:
            process.terminate()


def serve(args: argparse.Namespace) -> None:
    """Run the server."""
    from embedcam.app import serve
    from embedcam.app.limits import Limits
    from embedcam.onnx import OnnxExplainer
    from embedcam.utils import progress

    progress.show()
    explainer: Any
    if args.onnx:
        explainer = OnnxExplainer(args.onnx, threads=1)
    else:
        import torch

        from embedcam.explain import Explainer
        from embedcam.nets import EmbeddingNet

        torch.set_num_threads(1)
        explainer = Explainer(EmbeddingNet.load(args.net), args.db)
    serve(explainer, port=0, limits=Limits(rate=10**9, queue=args.requests, concurrency=args.concurrency))


def resident(process: subprocess.Popen[str]) -> float:
    """Resident memory of a process, in MB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
