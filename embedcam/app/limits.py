"""Limits of the server: sizes, request rate and concurrency."""

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

# Requests whose bodies are read beyond two batches per thread, so that computation does not wait for the network.
_READ_AHEAD = 3
# Addresses that are tracked; the least recently seen is forgotten.
_MAX_ADDRESSES = 4096


class Refused(EmbedcamError):
    """A request that is answered with an error.

    Args:
        status: HTTP status, 4xx or 5xx.
        message: What is wrong, and the fix.
        retry_after: Seconds after which the request may be retried, or None.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        upload: Maximum size of a picture's file, in bytes.
        pixels: Maximum number of pixels of a picture.
        rate: Requests per minute and client address; a burst of that size is allowed.
        queue: Maximum number of requests in progress or waiting; others get status 503.
        concurrency: Batches of pictures explained at the same time, one thread each.
        batch: Maximum number of pictures in a batch. Only pictures that wait at the same time share one. 1 explains
            each alone, with the same bits whatever the load; larger batches are faster on a GPU, and not on a CPU.
        timeout: Maximum time to receive a picture, in seconds.
    """

    upload: int = 20_000_000
    pixels: int = 40_000_000
    rate: int = 600
    queue: int = 256
    concurrency: int = 1
    batch: int = 1
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise EmbedcamError(f"the limit {field.name} must be positive, got {value}; omit it for the default")
        if self.pixels > MAX_PIXELS:
            raise EmbedcamError(f"the limit pixels must be at most {MAX_PIXELS:,}, got {self.pixels:,}; lower it")


class Gate:
    """Admits a limited number of requests, reads few bodies at a time, and computes in a thread pool.

    The body of a request is read shortly before its turn. While many requests wait, few bodies are in memory; the
    others are held back by TCP flow control.

    Args:
        limits: Limits of the server.
    """

    def __init__(self, limits: Limits) -> None:
        self._max_requests, self._requests = limits.queue, 0
        self._readers = asyncio.Semaphore(2 * limits.concurrency * limits.batch + _READ_AHEAD)
        self._threads = ThreadPoolExecutor(limits.concurrency, thread_name_prefix="embedcam-serve")

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Wait for the turn to read the body.

        Raises:
            Refused: If the queue is full.
        """
        if self._requests >= self._max_requests:
            raise Refused(503, f"{self._max_requests} requests are already waiting; try again in a few seconds", 2)
        self._requests += 1
        try:
            async with self._readers:
                yield
        finally:
            self._requests -= 1

    async def compute(self, work: Callable[[], T]) -> T:
        """Run a function in the thread pool, first in, first out.

        Args:
            work: The function.

        Returns:
            Its result.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Shut down the thread pool after the running functions."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class RateLimit:
    """Token bucket per client address.

    Args:
        per_minute: Requests per minute, and size of a burst.
        clock: Monotonic time, in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = float(per_minute), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> None:
        """Count a request.

        Args:
            address: Client address.

        Raises:
            Refused: If the address has sent too many requests.
        """
        now = self._clock()
        tokens, updated = self._buckets.pop(address, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - updated) * self._capacity / 60)
        self._buckets[address] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > _MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if tokens < 1:
            wait = (1 - tokens) * 60 / self._capacity
            raise Refused(429, f"more than {self._capacity:g} requests per minute; wait {math.ceil(wait)} s", wait)
