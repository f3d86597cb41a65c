"""One run in several processes, as `torchrun` starts them."""

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

# How long a process waits for the others, which may work alone for long; a dead one is noticed at once.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """The processes of a run; by default, one alone.

    Attributes:
        rank: Which of them this is, from 0.
        size: How many they are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that does what must be done once."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            EmbedcamError: If one of them has ended.
        """
        if self.size > 1:
            import torch.distributed as dist

            with self._together():
                dist.barrier()

    def add_up(self, tensor: Tensor) -> Tensor:
        """Add up what all processes have.

        Args:
            tensor: This process's; of one shape in all of them. It is changed.

        Returns:
            The sum, the same in all of them.

        Raises:
            EmbedcamError: If one of them has ended.
        """
        if self.size > 1:
            import torch.distributed as dist

            with self._together():
                dist.all_reduce(tensor)
        return tensor

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EmbedcamError(
                f"another of the {self.size} processes has ended: {str(error).splitlines()[0]}; see what it said, mend "
                "that, and go on with --resume"
            ) from error


def main_process() -> bool:
    """Tell whether this process speaks for the run.

    Returns:
        True for the first of those that `torchrun` started, and for one alone.
    """
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Tell which of the processes on this machine this one is.

    Returns:
        Its number, from 0.
    """
    return int(os.environ.get("LOCAL_RANK", "0"))


def join() -> Group:
    """Join the other processes if `torchrun` started this one.

    Returns:
        All of them; one alone without `torchrun`.

    Raises:
        EmbedcamError: If they cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Group()
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        try:
            # Gradients go from GPU to GPU; waiting needs no GPU.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise EmbedcamError(
                f"the {size} processes of this run cannot reach each other: {str(error).splitlines()[0]}; start them "
                "with torchrun"
            ) from error
    return Group(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Take leave of the other processes, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
