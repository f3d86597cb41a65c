"""Corrupt files of every kind that embedcam reads, and use them: `python tests/fuzz/fuzz.py --inputs 20000`.

Every input must end in success or in an EmbedcamError, within 5 seconds and 1 GiB. Inputs are numbered; a number always
gives the same input with the same --seed. `--only NUMBER` runs one again and prints its traceback.

Worker processes run one input at a time and are killed when it takes too long.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from targets import TARGETS

# CPU seconds, since other processes may delay an input; HELD_UP times as many seconds of wall time are allowed.
SECONDS, HELD_UP, BYTES = 5.0, 120, 2**30
# Seconds for starting a worker, which imports torch.
START = 600.0


def run_one(number: int, seed: int, kinds: list[str], folder: Path) -> tuple[str, str]:
    """Create an input and use it.

    Returns:
        "accepted", "refused" or "failed", and the traceback.
    """
    from embedcam.errors import EmbedcamError

    target = TARGETS[kinds[number % len(kinds)]]
    path = folder / f"input{target.suffix}"
    try:
        path.write_bytes(target.input(np.random.default_rng((seed, number))))
        target.use(path)
    except EmbedcamError as error:
        text = str(error)
        return ("refused", "") if text and "\n" not in text else ("failed", f"an error of several lines: {text!r}")
    except BaseException:
        return "failed", traceback.format_exc()
    return "accepted", ""


def work(pipe: Connection, seed: int, kinds: list[str], folder: Path) -> None:
    """Use inputs until there are none left; report the time and memory of each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    for kind in kinds:  # imports everything before the first measurement
        target = TARGETS[kind]
        whole = folder / f"whole{target.suffix}"
        whole.write_bytes(target.seal(target.seeds()[0]))
        target.use(whole)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # silences libtiff and onnxruntime
    before = _limit_memory()
    pipe.send(None)
    while (number := pipe.recv()) is not None:
        _reset_peak()
        started = time.process_time()
        outcome, detail = run_one(number, seed, kinds, folder)
        pipe.send((number, outcome, detail, time.process_time() - started, _memory("VmHWM") - before))


def _limit_memory() -> int:
    """Limit further allocations."""
    with contextlib.suppress(ImportError):
        import resource

        allowed = _memory("VmData") + BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    return _memory("VmRSS")


def _memory(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0


def _processor_seconds(pid: int) -> float | None:
    """CPU seconds of a process; None if unknown."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return None


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Worker:
    """A worker process, its input, and when it began."""

    process: Any
    pipe: Connection
    number: int | None = None
    since: float = 0.0
    ran: float = 0.0

    def begin(self, number: int | None) -> None:
        """Start an input."""
        self.number, self.since, self.ran = number, time.monotonic(), _processor_seconds(self.process.pid) or 0.0
        self.pipe.send(number)

    def overdue(self) -> bool:
        """Whether the input has taken too long."""
        waited = time.monotonic() - self.since
        if self.number is None:
            return waited > START
        ran = _processor_seconds(self.process.pid)
        return waited > SECONDS * HELD_UP or (waited if ran is None else ran - self.ran) > SECONDS


class Tally:
    """Outcomes of the inputs of one kind."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0
        self.most = 0


def fuzz(inputs: int, seed: int, kinds: list[str], workers: int) -> tuple[dict[str, Tally], list[tuple[int, str]]]:
    """Use a number of inputs.

    Returns:
        The outcomes by kind, and the number and details of each failure.
    """
    context = multiprocessing.get_context("spawn")
    tallies = {kind: Tally() for kind in kinds}
    failures: list[tuple[int, str]] = []
    left = iter(range(inputs))

    def note(number: int, outcome: str, detail: str, seconds: float, most: int) -> None:
        tally = tallies[kinds[number % len(kinds)]]
        tally.slowest, tally.most = max(tally.slowest, seconds), max(tally.most, most)
        if outcome != "failed" and (seconds > SECONDS or most > BYTES):
            outcome, detail = "failed", f"it took {seconds:.1f} s and {most / 2**20:.0f} MiB"
        tally.counts[outcome] += 1
        if outcome == "failed":
            failures.append((number, detail))

    with tempfile.TemporaryDirectory() as folder:

        def start(place: int) -> Worker:
            ours, theirs = context.Pipe()
            own = Path(folder) / str(place)
            own.mkdir(exist_ok=True)
            process = context.Process(target=work, args=(theirs, seed, kinds, own), daemon=True)
            process.start()
            theirs.close()
            return Worker(process, ours, None, time.monotonic())

        crew = {place: start(place) for place in range(workers)}
        while crew:
            ready = wait([worker.pipe for worker in crew.values()], timeout=0.2)
            for place, worker in list(crew.items()):
                message, ended = None, False
                if worker.pipe in ready:
                    try:
                        message = worker.pipe.recv()
                    except EOFError:
                        ended = True
                elif worker.overdue():
                    ended = True
                else:
                    continue
                if ended:
                    seconds = time.monotonic() - worker.since
                    worker.process.kill()
                    worker.process.join()
                    if worker.number is None:
                        raise RuntimeError("a worker could not use the whole files")
                    note(worker.number, "failed", f"ended with {worker.process.exitcode}", seconds, 0)
                    crew[place] = start(place)
                    continue
                if message is not None:
                    note(*message)
                worker.begin(next(left, None))
                if worker.number is None:
                    worker.process.join()
                    del crew[place]
    return tallies, failures


def main() -> int:
    """Print a table and each failure; exit with 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kinds", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="KIND")
    parser.add_argument("--only", type=int, help="use one input in this process")
    options = parser.parse_args()
    if options.only is not None:
        folder = Path(tempfile.mkdtemp())
        print(*run_one(options.only, options.seed, options.kinds, folder), sep="\n")
        print(f"the input lies in {folder}")
        return 0
    tallies, failures = fuzz(options.inputs, options.seed, options.kinds, options.workers)
    print(f"{'kind':<10}{'inputs':>8}{'accepted':>10}{'refused':>9}{'failed':>8}{'slowest s':>11}{'most MiB':>10}")
    for kind, tally in tallies.items():
        counts = (tally.counts.total(), *(tally.counts[name] for name in ("accepted", "refused", "failed")))
        numbers = "".join(f"{count:>{width}}" for count, width in zip(counts, (8, 10, 9, 8), strict=True))
        print(f"{kind:<10}{numbers}{tally.slowest:>11.2f}{tally.most / 2**20:>10.0f}")
    for number, story in sorted(failures):
        print(f"\ninput {number} ({options.kinds[number % len(options.kinds)]}): {story}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
