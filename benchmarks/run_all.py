"""Make the tables of README.md again: each benchmark with its stated arguments and a time limit, an hour at most.

    python benchmarks/run_all.py --net net.safetensors --db weights.h5 --onnx explainer.onnx --data folder:butterflies \
        --weights mobilenet_v2.safetensors --vit dinov2_vits14.safetensors
    python benchmarks/run_all.py --only serve match
    python benchmarks/run_all.py --quick --readme /tmp/README.md

Each table stands between two marks in README.md, under its command, the date, the machine and the versions, and is
written as soon as its benchmark ends. Where a benchmark fails, runs past its limit, or lacks a file, the old table
stays; the exit code is 1. `--quick` runs tiny networks, to see that everything works: give a copy of README.md to
`--readme`. The tables of `networks.py` and `heatmap_choices.py` stand elsewhere and take longer.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch
from measure import about

from embedcam.utils.files import write_text

HERE = Path(__file__).parent
_WIDTH = 119  # of lines of text
# Files that only the user has: option -> how the commands in README.md name it.
FILES = {
    "net": "net.safetensors",
    "db": "weights.h5",
    "onnx": "explainer.onnx",
    "data": "folder:butterflies",
    "weights": "mobilenet_v2.safetensors",
    "vit": "dinov2_vits14.safetensors",
}


class Table(NamedTuple):
    """A table of README.md.

    Attributes:
        script: The benchmark.
        minutes: Its time limit.
        full: Its arguments; `{net}` and the like stand for files.
        quick: Arguments with which it ends within seconds, without such files; None where it cannot.
        gpu: Whether it needs a GPU.
    """

    script: str
    minutes: float
    full: str
    quick: str | None
    gpu: bool = False


_TINY = "--backbone tiny --image-size 32"
TABLES = {
    "localization": Table("localization.py", 8, "--run {net} {db} {data} --grid 100 --brief", None),
    "class-tokens": Table("class_tokens.py", 3, "--weights {vit} --data {data}", None),
    "mobilenet-v2": Table(
        "explain_peers.py",
        4,
        "--backbones mobilenet_v2 --weights {weights} --rounds 15 --int8",
        "--backbones tiny --image-size 32 --batches 1 --rounds 2",
    ),
    "resnet50": Table(
        "explain_peers.py",
        4,
        "--backbones resnet50 --rounds 6",
        "--backbones tiny --image-size 32 --batches 2 --rounds 2",
    ),
    "vit": Table(
        "explain_peers.py",
        5,
        "--backbones timm:vit_small_patch14_dinov2 --rounds 6",
        "--backbones tiny --image-size 32 --batches 1 --rounds 2",
    ),
    "build": Table(
        "build_throughput.py",
        8,
        "--weights {weights} --images 500 --loop-images 2",
        f"--images 60 --loop-images 2 --pairs 3 --rounds 2 {_TINY}",
    ),
    "build-in-memory": Table(
        "build_throughput.py",
        5,
        "--in-memory --images 5000 --image-size 64 --loop-images 0 --rounds 3",
        f"--in-memory --images 60 --loop-images 0 --rounds 1 {_TINY}",
    ),
    "train": Table("train_scores.py", 5, "", "--brief"),
    "match": Table("match.py", 1, "", f"--images 50 --rounds 2 {_TINY}"),
    "files": Table("end_to_end.py", 3, "--net {net} --db {db} --concurrency 2", f"--images 12 --batch-size 3 {_TINY}"),
    "lookup": Table(
        "lookup.py", 3, "--rounds 30 --data classes", "--sizes 500 --classes 20 --queries 30 --rounds 2 --data classes"
    ),
    "memory": Table("memory.py", 6, "", "--sizes 400 --works Explainer --explanations 3"),
    "video": Table("video.py", 2, "", "--sizes 32 --frame 80 60 --frames 4 --rounds 2"),
    "serve": Table(
        "serve.py", 2, "--net {net} --db {db} --onnx {onnx} --rounds 1", "--clients 1 4 --requests 8 --rounds 1"
    ),
    "gpu": Table("gpu.py", 6, "", "--device cpu --quick", gpu=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=list(TABLES), metavar="NAME", help=", ".join(TABLES)
    )
    parser.add_argument("--quick", action="store_true", help="tiny networks: only to see that it works")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the marks of the tables")
    for option, name in FILES.items():
        parser.add_argument(f"--{option}", help=f"the file that README.md calls {name}")
    args = parser.parse_args()
    files = {option: value for option in FILES if (value := getattr(args, option))}
    missing = [name for name in args.only if marks(name)[0] not in args.readme.read_text()]
    if missing:
        sys.exit(f"run_all: {args.readme} has no mark {marks(missing[0])[0]}; add it, or leave it out with --only")
    failures = [name for name in args.only if not make(name, args.readme, files, quick=args.quick)]
    if failures:
        sys.exit(f"run_all: these tables were not made: {', '.join(failures)}")


def make(name: str, readme: Path, files: Mapping[str, str], *, quick: bool) -> bool:
    """Make one table; False if it stays as it was."""
    table = TABLES[name]
    arguments = table.quick if quick else table.full
    lacking = [option for option in FILES if arguments and f"{{{option}}}" in arguments and option not in files]
    reason = None
    if arguments is None:
        reason = "it has no quick form"
    elif lacking:
        reason = f"it needs --{' --'.join(lacking)}"
    elif table.gpu and not quick and not torch.cuda.is_available():
        reason = "there is no GPU"
    if arguments is None or reason:
        print(f"{name}: left out, {reason}", flush=True)
        return quick
    command = [sys.executable, str(HERE / table.script), *shlex.split(arguments.format(**files))]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=60 * table.minutes)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own processes too, such as a server
            print(f"{name}: not made within {table.minutes:g} minutes", flush=True)
            return False
    rows = [line for line in output.splitlines() if line.startswith("|")]
    if process.returncode or not rows:
        print(f"{name}: failed\n{errors}", flush=True)
        return False
    shown = f"python benchmarks/{table.script} {arguments.format(**FILES)}".strip()
    write(readme, name, shown, made_with(output), rows)
    print(f"{name}: made in {time.perf_counter() - start:.0f} s", flush=True)
    return True


def write(readme: Path, name: str, command: str, source: str, rows: Sequence[str]) -> None:
    """Replace a table between its marks."""
    begin, end = marks(name)
    before, _, rest = readme.read_text().partition(begin)
    after = rest.partition(end)[2]
    today = datetime.now(timezone.utc).date()
    made = textwrap.fill(f"{today}; {source}.", _WIDTH, break_on_hyphens=False)
    text = "\n".join([begin, "```sh", command, "```", "", made, "", *rows, end])
    write_text(readme, f"{before}{text}{after}")


def marks(name: str) -> tuple[str, str]:
    """The lines around a table."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def made_with(output: str) -> str:
    """Machine and versions, as the benchmark printed them; else those of this process."""
    printed = next((line for line in output.splitlines() if line.startswith("embedcam ")), None)
    known = about("torch", "onnxruntime", "numpy")
    return printed or ", ".join(f"{name} {value}" for name, value in known.items() if name != "schema")


if __name__ == "__main__":
    main()
