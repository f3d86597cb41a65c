"""What a server takes on at most: sizes, requests a minute, requests at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TypeVar

from ..data.images import MAX_PIXELS
from ..errors import EmbedcamError

T = TypeVar("T")

# Requests whose bodies are read while others are computed, so that a computation never waits for the network.
_READ_AHEAD = 3
# Addresses whose requests are counted; the ones heard of longest ago are forgotten.
_ADDRESSES = 4096


class Refused(EmbedcamError):
    """A request that is not answered as it was meant to be.

    Args:
        status: The HTTP status, 4xx or 5xx.
        message: What is wrong, and the mend.
        retry_after: Seconds after which the same request may be answered; None where that changes nothing.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}


@dataclass(frozen=True)
class Limits:
    """How much a server takes on.

    Attributes:
        upload: Bytes of one picture's file.
        pixels: Pixels of one picture.
        rate: Requests a minute from one address, which may come all at once.
        queue: Requests that are read, computed or wait for it; further ones are sent away.
        jobs: Computations at once.
        patience: Seconds in which a picture must arrive once it is being read.
    """

    upload: int = 20_000_000
    pixels: int = 40_000_000
    rate: int = 600
    queue: int = 256
    jobs: int = 1
    patience: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise EmbedcamError(f"the limit {field.name} must be positive, got {value}; leave it out for the usual")
        if self.pixels > MAX_PIXELS:
            raise EmbedcamError(
                f"no picture of more than {MAX_PIXELS:,} pixels is read; lower the limit {self.pixels:,}"
            )


class Gate:
    """Lets requests in up to a number, reads the bodies of a few, and computes in a bounded number of threads.

    A body is read only when its request's turn is near. So however many wait, few bodies lie in memory: the others stay
    with their senders, whom TCP makes wait.

    Args:
        limits: How many.
    """

    def __init__(self, limits: Limits) -> None:
        self._most, self._inside = limits.queue, 0
        self._near = asyncio.Semaphore(limits.jobs + _READ_AHEAD)
        self._threads = ThreadPoolExecutor(limits.jobs, thread_name_prefix="embedcam-serve")

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Wait for a turn.

        Raises:
            Refused: If too many wait already.
        """
        if self._inside >= self._most:
            raise Refused(503, f"{self._most} requests are waiting already; try again in a few seconds", 2)
        self._inside += 1
        try:
            async with self._near:
                yield
        finally:
            self._inside -= 1

    async def compute(self, work: Callable[[], T]) -> T:
        """Do something in one of the threads, in the order of the calls.

        Args:
            work: What is done.

        Returns:
            What it returned.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End the threads once what they are doing is done."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class RateLimit:
    """Counts requests by address: each may send a minute's worth at once, and goes on at that rate.

    Args:
        a_minute: Requests.
        clock: Seconds.
    """

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._full, self._clock = float(a_minute), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> None:
        """Count a request.

        Args:
            address: Where it comes from.

        Raises:
            Refused: If the address has sent too many.
        """
        now = self._clock()
        left, then = self._left.pop(address, (self._full, now))
        left = min(self._full, left + (now - then) * self._full / 60)
        self._left[address] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > _ADDRESSES:
            self._left.popitem(last=False)
        if left < 1:
            wait = (1 - left) * 60 / self._full
            raise Refused(429, f"more than {self._full:g} requests a minute; wait {math.ceil(wait)} s", wait)
