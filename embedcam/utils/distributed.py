"""Runs of several processes, started by `torchrun`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from ..errors import EmbedcamError

if TYPE_CHECKING:
    from torch import Tensor

# Timeout of collective operations. One process may work alone for long; a dead one is noticed at once.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """The processes of a run; a single one by default.

    Attributes:
        rank: Rank of this process, from 0.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that does what must be done once (rank 0)."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all processes (a barrier).

        Raises:
            EmbedcamError: If another process has ended.
        """
        if self.size > 1:
            import torch.distributed as dist

            with self._ended_as_error():
                dist.barrier()

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place.

        Args:
            tensor: Tensor of the same shape in all processes.

        Returns:
            The sum.

        Raises:
            EmbedcamError: If another process has ended.
        """
        if self.size > 1:
            import torch.distributed as dist

            with self._ended_as_error():
                dist.all_reduce(tensor)
        return tensor

    @contextlib.contextmanager
    def _ended_as_error(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EmbedcamError(
                f"another of the {self.size} processes has ended: {str(error).splitlines()[0]}; fix the error "
                "that it printed, and resume with --resume"
            ) from error


def main_process() -> bool:
    """Check whether this is the process with rank 0.

    Returns:
        True for rank 0, and without `torchrun`.
    """
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Return the rank of this process among those on this machine.

    Returns:
        The rank, from 0.
    """
    return int(os.environ.get("LOCAL_RANK", "0"))


def join() -> Group:
    """Initialise the process group if `torchrun` started this process.

    Returns:
        The processes of the run; a single one without `torchrun`.

    Raises:
        EmbedcamError: If the other processes cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Group()
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        try:
            # Gradients are exchanged between GPUs; barriers use the CPU.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise EmbedcamError(
                f"the {size} processes of this run cannot reach each other: {str(error).splitlines()[0]}; start them "
                "with torchrun"
            ) from error
    return Group(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Destroy the process group, if there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
