"""Running a command: its errors, exit code and device."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ..errors import EmbedcamError
from ..utils import progress
from ..utils.distributed import leave, local_rank, main_process
from ..utils.memory import keep_freed_memory
from . import streams

if TYPE_CHECKING:
    import torch


def device(name: str) -> torch.device:
    """Find the device to compute on.

    Args:
        name: As in torch, or "auto" for a GPU if there is one.

    Returns:
        The device.

    Raises:
        EmbedcamError: If it cannot be used.
    """
    import torch

    if name == "auto":
        # torchrun starts one numbered process per GPU.
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EmbedcamError(f"device {name!r} cannot be used: {reason}; use --device cpu or auto") from error


def cores() -> int:
    """Count the cores that this process may use.

    Returns:
        At least 1.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_concurrency() -> int:
    """Number of batches to explain at the same time on a CPU: one per core, which is faster than one on all cores.

    Returns:
        1 to 8; every batch takes memory.
    """
    return min(cores(), 8)


_INTERRUPTED = 130
# The extra to install for a verb; "train" for all others.
_EXTRAS = {"explain": "torch", "classmap": "torch", "serve": "torch", "export": "export"}


class _Warnings(logging.Handler):
    """Prints each warning as one line, once: a file may be read in several steps of a run."""

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._printed:
            self._printed.add(text)
            print(f"embedcam: warning: {text}", file=sys.stderr, flush=True)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def run(command: Callable[..., Any], *, debug: bool) -> int:
    """Run a command, with warnings, errors and interruptions as one line each.

    A run finishes its files although standard output cannot be written.

    Args:
        command: The typer application.
        debug: Raise errors of embedcam, to show their traceback.

    Returns:
        The exit code: 0 done, 1 an error, 2 wrong usage, 130 interrupted, 141 done but not printed.
    """
    keep_freed_memory()
    streams.protect()
    if main_process():
        progress.show()
    if os.environ.get("NO_COLOR"):
        from typer import rich_utils

        rich_utils.COLOR_SYSTEM = None  # on its own, rich removes colours only, not bold and dim
    logger = logging.getLogger("embedcam")
    logger.addHandler(_Warnings())
    logger.propagate = False
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = int(command(standalone_mode=False) or 0)
    except EmbedcamError as error:
        if debug:
            raise
        print(f"embedcam: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if debug or error.name is None or error.name.partition(".")[0] == "embedcam":
            raise
        extra = _EXTRAS.get(_verb(), "train")
        print(f'embedcam: this needs {error.name}; install it with `pip install "embedcam[{extra}]"`', file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        if debug or "temporary directory" not in str(error):
            raise
        print(f"embedcam: {error.strerror}; set TMPDIR to a folder that can be written", file=sys.stderr)
        return 1
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        usage = getattr(error, "show", None)  # click's usage errors have such a method
        if usage is not None:
            usage()
            return int(getattr(error, "exit_code", 2))
        if debug or not _is_out_of_memory(error):
            raise
        print(
            f"embedcam: not enough memory: {str(error).splitlines()[0]}; use smaller images or batches, or another "
            "--device",
            file=sys.stderr,
        )
        return 1
    finally:
        leave()
    if code == _INTERRUPTED:  # some versions of typer return this code on Ctrl-C
        _print_interrupted()
    unprinted = streams.failure()
    if unprinted is not None and not isinstance(unprinted, BrokenPipeError):
        print(f"embedcam: cannot write to standard output: {unprinted.strerror}", file=sys.stderr)
    return code or (0 if unprinted is None else streams.BROKEN_PIPE)


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises a RuntimeError on a CPU, and a kind of it on a GPU.
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )


def _verb() -> str:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


def _print_interrupted() -> None:
    # `evaluate` stores finished scores beside its JSON file, if it writes one.
    stores_scores = _verb() == "evaluate" and any(word.partition("=")[0] == "--json" for word in sys.argv)
    resumable = _verb() in ("train", "build", "index", "explain") or stores_scores
    hint = "finished work is kept: continue with --resume" if resumable else "no incomplete file was left"
    line_break = "\n" if sys.stderr.isatty() else ""  # after the ^C that the terminal shows
    print(f"{line_break}embedcam: interrupted; {hint}", file=sys.stderr)
