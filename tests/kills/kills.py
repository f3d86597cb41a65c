"""Kill trainings, builds, explanations and evaluations at random moments, and see that nothing is lost.

    python tests/kills/kills.py [--kills 50] [--seed 0]

Each run is started again with `--resume` until it comes to its end. In between it is killed, by SIGKILL, SIGTERM or
Ctrl-C, at a random file operation: counted, not timed, so that a slow machine kills at the same moments. Before every
start there is a finished result of an earlier run under the same name. After every kill it must still be there, whole,
or be the new one. At the end, the files must have the bytes of the undisturbed run, and no other file may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from forks import Forks
from PIL import Image

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Runs the command line after the first two arguments and prints the number of its file operations; at one of them, it
# sends itself a signal. Shards are of a few images, so that a build of few images has many of them.
CODE = """
import os, signal, sys
from embedcam.utils import shards
from embedcam.cli import main
moment, number = map(int, sys.argv[1:3])
del sys.argv[1:3]
shards.SHARD = 8
os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
signal.signal(signal.SIGINT, signal.default_int_handler)
seen = 0
def watch(event, arguments):
    global seen
    if event in ("open", "os.rename", "os.remove"):
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), number)
sys.addaudithook(watch)
try:
    main()
finally:
    print(seen)
"""


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
        return [self.name, *self.arguments, self.out[0], str(folder / self.out[1]), "--resume"]


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
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Forks()) as forks:
        runs = make(Path(folder), forks)
        total = dict.fromkeys((run.name for run in runs), 0)
        while sum(total.values()) < kills:
            for run in runs:
                total[run.name] += kill_until_done(run, Path(folder), chance, forks)
        return total


def make(folder: Path, forks: Forks) -> list[Run]:
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
        forks.run(CODE, 0, 0, *run.command(folder)).check_returncode()
    pictures = str(folder / "data" / "images")
    return [
        train,
        build,
        Run("explain", (pictures, *files), ("--out", "explained")),
        Run("evaluate", (*data, *files), ("--json", "scores.json")),
    ]


def kill_until_done(run: Run, folder: Path, chance: random.Random, forks: Forks) -> int:
    """Start a run until it ends by itself, killing it in between; return how often it was killed."""
    where = folder / f"{run.name}-killed"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    undisturbed = forks.run(CODE, 0, 0, *run.command(where))
    undisturbed.check_returncode()
    operations, expected = int(undisturbed.stdout.splitlines()[-1]), contents(where)
    for killed in range(1000):
        # The range grows, so that the run comes to its end.
        moment = chance.randint(1, round(operations * (0.9 + killed / 8)))
        number = chance.choice(SIGNALS)
        done = forks.run(CODE, moment, int(number), *run.command(where))
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode == 0:
            assert contents(where) == expected, f"{run.name}: other files than an undisturbed run leaves"
            return killed
        assert done.returncode in (-number, 130, 143), done.stderr
        finished = {name: content for name, content in contents(where).items() if name in expected}
        assert {name: finished.get(name) for name in results(run, expected)} == results(run, expected), run.name
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
