"""Run code in fresh processes that start at once: they are forked from one that has imported the heavy libraries.

A process that imports torch and torchvision by itself takes three seconds of processor time.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTED = (
    "embedcam.batch.files",
    "embedcam.builder.build",
    "embedcam.cli.offline",
    "embedcam.cli.online",
    "embedcam.evaluate",
    "embedcam.train",
    "faiss",
    "matplotlib.pyplot",
    "torch.distributed",
    "torchvision",
)
# A process that takes longer hangs.
_SECONDS = 600

# Elsewhere processes cannot be forked, or not safely once libraries run threads.
_METHOD = "fork" if sys.platform == "linux" else "spawn"


class Forks:
    """Starts processes; `close` ends it."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run one process to its end.

        Args:
            code: Its program.
            arguments: Its command line.

        Returns:
            Its exit code and what it printed.
        """
        return self.run_together(code, *arguments, environments=[{}])[0]

    def run_together(
        self, code: str, *arguments: object, environments: list[dict[str, str]]
    ) -> list[subprocess.CompletedProcess[str]]:
        """Run several processes side by side, to the end of all.

        Args:
            code: Their program.
            arguments: Their command line.
            environments: What each has in its environment besides that of this process.

        Returns:
            The exit code of each and what it printed.
        """
        words = list(map(str, arguments))
        with tempfile.TemporaryDirectory() as folder:
            order = {
                "code": code,
                "arguments": words,
                "folder": folder,
                "environments": [{**os.environ, "OMP_NUM_THREADS": "1", **each} for each in environments],
            }
            print(json.dumps(order), file=self._server.stdin, flush=True)
            codes = json.loads(self._server.stdout.readline())
            printed = [Path(folder, f"{stream}{rank}") for rank in range(len(codes)) for stream in ("out", "err")]
            texts = [path.read_text(encoding="utf-8") for path in printed]
        return [
            subprocess.CompletedProcess(words, code, *texts[2 * rank : 2 * rank + 2]) for rank, code in enumerate(codes)
        ]

    def close(self) -> None:
        """End it."""
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def main() -> None:
    """Fork processes as they are ordered."""
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # no process has to copy what it does not change
    for line in sys.stdin:
        order = json.loads(line)
        started = []
        for rank, environment in enumerate(order.pop("environments")):
            process = multiprocessing.get_context(_METHOD).Process(
                target=run_one, args=(rank, environment), kwargs=order
            )
            process.start()
            started.append(process)
        for process in started:
            process.join()
        print(json.dumps([process.exitcode for process in started]), flush=True)


def run_one(rank: int, environment: dict[str, str], code: str, arguments: list[str], folder: str) -> None:
    """Run code with files, environment and command line of its own."""
    if hasattr(signal, "alarm"):
        signal.alarm(_SECONDS)
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, f"{stream}{rank}"), os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


if __name__ == "__main__":
    main()
