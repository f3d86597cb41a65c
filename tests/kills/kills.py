"""Kill trainings, builds, explanations and evaluations at random moments, and see that nothing is lost.

    python tests/kills/kills.py [--kills 50] [--seed 0]

Each run is started again with `--resume` until it comes to its end; in between it is killed, by SIGKILL, SIGTERM or
Ctrl-C, after a random share of the time that an undisturbed run takes. Before every start there is a finished result of
an earlier run under the same name. After every kill it must still be there, whole, or be the new one; at the end, the
files must have the bytes of the undisturbed run, and nothing else may lie about.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ENVIRONMENT = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "OMP_NUM_THREADS": "1"}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Shards of a few images, so that a build of few images has many of them.
START = "from embedcam.database import shards; shards.SHARD = 8; from embedcam.cli import main; import sys; sys.exit(main())"


@dataclass(frozen=True)
class Run:
    """A command and the files that it leaves.

    Attributes:
        name: Its verb.
        arguments: Of the command line, but for --out.
        out: Option and file or folder of the output, relative.
    """

    name: str
    arguments: tuple[str, ...]
    out: tuple[str, str]

    def command(self, folder: Path) -> list[str]:
        """Give the whole command that writes into a folder."""
        return [
            sys.executable,
            "-c",
            START,
            self.name,
            *self.arguments,
            self.out[0],
            str(folder / self.out[1]),
            "--resume",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="over all verbs together, at least")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    total = kill_all(given.kills, random.Random(given.seed))
    print(
        f"{sum(total.values())} kills, nothing lost: " + ", ".join(f"{verb} {count}" for verb, count in total.items())
    )


def kill_all(kills: int, chance: random.Random) -> dict[str, int]:
    """Kill runs of every verb.

    Args:
        kills: At least so many in all.
        chance: Draws moments and signals.

    Returns:
        How often runs of each verb were killed.

    Raises:
        AssertionError: If anything was lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = make(Path(folder))
        total = dict.fromkeys((run.name for run in runs), 0)
        while sum(total.values()) < kills:
            for run in runs:
                total[run.name] += kill_until_done(run, Path(folder), chance)
        return total


def make(folder: Path) -> list[Run]:
    """Make pictures, a network and a database, and the runs on them."""
    colors = np.random.default_rng(0)
    for label in range(3):
        (folder / "data" / "images" / f"class{label}").mkdir(parents=True)
        (folder / "data" / "masks" / f"class{label}").mkdir(parents=True)
        for number in range(24):
            pixels = colors.integers(0, 90, (40, 40, 3), dtype=np.uint8)
            pixels[8:30, 8:30, label] = 255
            mask = np.zeros((40, 40), dtype=np.uint8)
            mask[8:30, 8:30] = 255
            Image.fromarray(pixels).save(folder / "data" / "images" / f"class{label}" / f"{number:02d}.png")
            Image.fromarray(mask).save(folder / "data" / "masks" / f"class{label}" / f"{number:02d}.png")
    data = ("--data", f"folder:{folder / 'data'}")
    small = ("--backbone", "tiny", "--image-size", "32", "--dim", "8", "--batch-size", "12")
    files = ("--net", str(folder / "net.safetensors"), "--db", str(folder / "weights.h5"))
    train = Run("train", (*data, *small, "--epochs", "4"), ("--out", "net.safetensors"))
    build = Run(
        "build", (*data, *files[:2], "--clusters", "4", "--top-k", "12", "--pairs", "5"), ("--out", "weights.h5")
    )
    for run in (train, build):
        subprocess.run(run.command(folder), check=True, capture_output=True, env=ENVIRONMENT)
    pictures = str(folder / "data" / "images")
    return [
        train,
        build,
        Run("explain", (pictures, *files), ("--out", "explained")),
        Run("evaluate", (*data, *files), ("--json", "scores.json")),
    ]


def kill_until_done(run: Run, folder: Path, chance: random.Random) -> int:
    """Start a run until it ends by itself, killing it in between; return how often it was killed."""
    where = folder / f"{run.name}-killed"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    start = time.monotonic()
    subprocess.run(run.command(where), check=True, capture_output=True, env=ENVIRONMENT)
    took, wanted = time.monotonic() - start, contents(where)
    for killed in range(1000):
        process = subprocess.Popen(
            run.command(where), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
        )
        # Less and less often, so that it comes to its end.
        patience = took * chance.uniform(0.2, 1.1 + killed / 4)
        try:
            _, said = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.send_signal(chance.choice(SIGNALS))
            _, said = process.communicate()
            assert "Traceback" not in said, said
            finished = {name: content for name, content in contents(where).items() if name in wanted}
            assert {name: finished.get(name) for name in results(run, wanted)} == results(run, wanted), run.name
            continue
        assert process.returncode == 0, said
        assert contents(where) == wanted, f"{run.name}: other files than an undisturbed run leaves"
        return killed
    raise AssertionError(f"{run.name} does not come to its end")


def results(run: Run, files: dict[str, bytes]) -> dict[str, bytes]:
    """Pick the files that an earlier run had finished, which no kill may take away or change."""
    return {name: content for name, content in files.items() if name.startswith(run.out[1])}


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder but times that differ from run to run."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name == "scores.json":
            content = b"\n".join(line for line in content.splitlines() if b"ms_per_image" not in line)
        found[str(path.relative_to(folder))] = content
    return found


if __name__ == "__main__":
    main()
