"""Load test of the server: latency, losses, processor time and memory with 1 to 200 clients at once.

    python benchmarks/serve.py [--net FILE --db FILE] [--onnx FILE] [--clients 1 8 64 200] [--rounds 3] [--json FILE]

The server is a process on this machine and shares the cores with the clients. Without files, a tiny network of the
built-in pictures measures the overhead of the server. The clients of a round start at the same time, and each sends its
requests one after the other, each over its own connection; with as many clients as requests, all are sent at once.
Latencies are of all rounds together. A request is lost if its response is not the complete explanation, within 1e-5 of
that of the picture alone. `CPU ms` is the processor time of the server per answer, memory its resident memory.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple

import numpy as np
from measure import about, report
from PIL import Image

COLUMNS = {
    "explainer": "",
    "clients": "",
    "requests": ",",
    "lost": "",
    "answers/s": ".1f",
    "p50 s": ".3f",
    "p95 s": ".3f",
    "p99 s": ".3f",
    "slowest s": ".3f",
    "CPU ms": ".1f",
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
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 200])
    parser.add_argument("--requests", type=int, default=200, help="requests of a round, one per client at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=2, help="batches explained at the same time, one core each")
    parser.add_argument("--batch", type=int, help="maximum number of pictures in a batch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help="run the server")
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    picture = args.image.read_bytes() if args.image else synthetic_picture()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if not (args.onnx or args.net):
            args.net, args.db = prepare(Path(folder))
        sources = {
            "torch": {"net": args.net, "db": args.db} if args.net else None,
            "ONNX": {"onnx": args.onnx} if args.onnx else None,
        }
        for name, files in sources.items():
            if files is not None:
                rows += [{"explainer": name, **row} for row in measure(args, files, picture)]
    report(COLUMNS, rows, about("fastapi", "uvicorn", "torch") | {"concurrency": args.concurrency}, args.json)


def measure(args: argparse.Namespace, files: dict[str, Path], picture: bytes) -> Iterator[dict[str, Any]]:
    """Start a server and measure it with each number of clients."""
    options = {**files, "concurrency": args.concurrency, "batch": args.batch, "requests": max(args.clients)}
    with server(options) as (process, port):
        expected = [send(port, picture).content for _ in range(WARM_UP)][-1]
        before = resident(process)
        for clients in args.clients:
            answers, seconds, used = [], 0.0, cpu_seconds(process)
            for _ in range(args.rounds):
                start = time.perf_counter()
                answers += load(port, picture, clients, max(args.requests // clients, 1))
                seconds += time.perf_counter() - start
            used = cpu_seconds(process) - used
            p50, p95, p99, slowest = np.quantile([answer.seconds for answer in answers], [0.5, 0.95, 0.99, 1])
            yield {
                "clients": clients,
                "requests": len(answers),
                "lost": sum(not same(answer.content, expected) for answer in answers),
                "answers/s": len(answers) / seconds,
                "p50 s": float(p50),
                "p95 s": float(p95),
                "p99 s": float(p99),
                "slowest s": float(slowest),
                "CPU ms": used / len(answers) * 1e3,
                "MB before": before,
                "MB after": (before := resident(process)),
            }


def load(port: int, picture: bytes, clients: int, requests: int) -> list[Answer]:
    """Send requests from clients that start at the same time."""
    barrier = Barrier(clients)

    def client(_: int) -> list[Answer]:
        barrier.wait()
        return [send(port, picture) for _ in range(requests)]

    with ThreadPoolExecutor(clients) as threads:
        return [answer for answers in threads.map(client, range(clients)) for answer in answers]


def same(content: bytes | None, expected: bytes | None) -> bool:
    """Whether two responses are the same explanation within 1e-5."""
    if content is None or expected is None or content == expected:
        return content is not None and content == expected
    found, wanted = json.loads(content), json.loads(expected)
    levels = [
        np.asarray(Image.open(io.BytesIO(b64decode(each.pop("heatmap")))), np.float64) / 65535
        for each in (found, wanted)
    ]
    return bool(
        found.keys() == wanted.keys()
        and found["cluster"] == wanted["cluster"]
        and abs(found["distance"] - wanted["distance"]) <= 1e-5
        and np.abs(levels[0] - levels[1]).max() <= 1e-5 + 1 / 65535
    )


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
def server(options: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the server; yields its process and port."""
    command = [sys.executable, __file__, "--serve"]
    for option, value in options.items():
        if value is not None:
            command += [f"--{option}", str(value)]
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
    batch = {} if args.batch is None else {"batch": args.batch}
    serve(explainer, port=0, limits=Limits(rate=10**9, queue=args.requests, concurrency=args.concurrency, **batch))


def resident(process: subprocess.Popen[str]) -> float:
    """Resident memory of a process, in MB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
