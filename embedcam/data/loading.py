"""Reading and preprocessing pictures ahead of the network, batch by batch, in order."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .samples import Samples

logger = logging.getLogger("embedcam")

T = TypeVar("T")


def batches(
    samples: Samples,
    preprocess: Callable[[Image.Image], NDArray[np.float32]],
    batch_size: int,
    *,
    strict: bool = False,
    workers: int = 2,
    on_skip: Callable[[int, DataError], None] | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Read the pictures as image batches, in order; those that cannot be read are skipped with a warning.

    Pictures are decoded a little ahead of the consumer, in threads: Pillow and numpy release the interpreter
    lock. The memory needed does not grow with the data set, the result does not depend on the workers.

    Args:
        samples: The data set.
        preprocess: Turns a picture into float32 (3, H, W).
        batch_size: Pictures a batch, at least 1; all batches but the last are full.
        strict: Raise on a picture that cannot be read.
        workers: Threads, at least 0; 0 decodes in the calling thread.
        on_skip: Called with the index and the error of each picture that is skipped.

    Yields:
        (indices, images): int64 (b,) into `samples`, float32 (b, 3, H, W).

    Raises:
        DataError: If a picture cannot be read and `strict`, or if none at all can be read.
        ValueError: If `batch_size` or `workers` is out of its range.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f"batch_size must be >= 1 and workers >= 0, got {batch_size} and {workers}")

    def decode(index: int) -> NDArray[np.float32] | DataError:
        try:
            return preprocess(samples.image(index))
        except DataError as error:
            return error

    skipped: list[DataError] = []
    batch: list[tuple[int, NDArray[np.float32]]] = []
    # Enough ahead to decode the whole next batch while the network works on this one.
    with contextlib.closing(_in_order(decode, len(samples), workers, ahead=batch_size + workers)) as results:
        for index, result in enumerate(results):
            if not isinstance(result, DataError):
                batch.append((index, result))
            elif strict:
                raise result
            else:
                skipped.append(result)
                logger.warning("skipped: %s", result)
                if on_skip is not None:
                    on_skip(index, result)
            if len(batch) == batch_size:
                yield _stack(batch)
                batch = []
    if batch:
        yield _stack(batch)
    if skipped and len(skipped) == len(samples):
        raise DataError(f"none of the {len(skipped)} pictures could be read; the first: {skipped[0]}")


def _stack(batch: list[tuple[int, NDArray[np.float32]]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.array([index for index, _ in batch], dtype=np.int64), np.stack([image for _, image in batch])


def _in_order(work: Callable[[int], T], count: int, workers: int, ahead: int) -> Generator[T, None, None]:
    """Map `work` over 0 ... count - 1; at most `ahead` results wait for the consumer."""
    if workers == 0:
        yield from map(work, range(count))
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="embedcam-decode")
    try:
        pending: deque[Future[T]] = deque()
        for index in range(count):
            pending.append(executor.submit(work, index))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when the consumer stops early, or on Ctrl-C
        executor.shutdown(wait=True, cancel_futures=True)
