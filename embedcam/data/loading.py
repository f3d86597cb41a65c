"""Read and preprocess pictures in threads, batch by batch and in order."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, UnreadableError
from .samples import Samples

logger = logging.getLogger("embedcam")

S = TypeVar("S")
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
    """Read pictures as image batches, in order; unreadable ones are skipped with a warning.

    Args:
        samples: The data set.
        preprocess: Maps a picture to float32 (3, H, W).
        batch_size: Pictures per batch, at least 1; all batches but the last are full.
        strict: Raise on an unreadable picture instead of skipping it.
        workers: Number of threads; 0 decodes in the calling thread.
        on_skip: Called with the index and the error of each skipped picture.

    Yields:
        (indices, images): int64 (b,) into `samples`, float32 (b, 3, H, W).

    Raises:
        DataError: If a picture is unreadable and `strict` is set, or if all pictures are unreadable.
        ValueError: If `batch_size` is below 1 or `workers` below 0.
    """
    read = read_batches(samples, preprocess, batch_size, strict=strict, workers=workers, on_skip=on_skip)
    with contextlib.closing(read):
        shape: tuple[int, ...] | None = None
        for batch in read:
            for index, image in batch:
                if image.shape != (shape := shape or image.shape):
                    raise DataError(
                        f"image {samples.ids[index]} has shape {image.shape}, those before it {shape}; "
                        "bring all to one size, or give pictures, which are resized"
                    )
            yield np.array([index for index, _ in batch], dtype=np.int64), np.stack([image for _, image in batch])


def read_batches(
    samples: Samples,
    prepare: Callable[[Image.Image], T],
    batch_size: int,
    *,
    start: int = 0,
    strict: bool = False,
    workers: int = 2,
    on_skip: Callable[[int, DataError], None] | None = None,
) -> Generator[list[tuple[int, T]], None, None]:
    """Read pictures batch by batch, in order, and apply a function to each in the threads that decode it.

    Pictures are decoded ahead of the consumer; Pillow and numpy release the interpreter lock. Memory does not grow
    with the data set, and the result does not depend on `workers`.

    Args:
        samples: The data set.
        prepare: Function that is applied to each picture.
        batch_size: Pictures per batch, at least 1; all batches but the last are full.
        start: Index of the first picture to read.
        strict: Raise on an unreadable picture instead of skipping it.
        workers: Number of threads; 0 decodes in the calling thread.
        on_skip: Called with the index and the error of each skipped picture.

    Yields:
        List of (index, result of `prepare`) of one batch.

    Raises:
        DataError: If a picture is unreadable and `strict` is set, or if all pictures are unreadable.
        ValueError: If `batch_size` is below 1 or `workers` below 0.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f"batch_size must be >= 1 and workers >= 0, got {batch_size} and {workers}")

    if strict and (problems := getattr(samples, "problems", ())):
        raise DataError(problems[0])

    def decode(index: int) -> T | DataError:
        try:
            return prepare(samples.image(index))
        except DataError as error:
            return error

    skipped, first_error = 0, ""
    batch: list[tuple[int, T]] = []
    # The whole next batch is decoded while the network processes this one.
    todo, ahead = range(start, len(samples)), batch_size + workers
    with contextlib.closing(in_order(decode, todo, workers, ahead, "decode")) as results:
        for index, result in zip(todo, results, strict=True):
            if not isinstance(result, DataError):
                batch.append((index, result))
            elif strict:
                raise result
            else:
                skipped, first_error = skipped + 1, first_error or str(result)
                logger.warning("skipped: %s", result)
                if on_skip is not None:
                    on_skip(index, result)
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch
    if skipped and skipped == len(samples):
        raise UnreadableError(f"none of the {skipped} pictures could be read; the first error: {first_error}")


def in_order(
    work: Callable[[S], T], items: Iterable[S], workers: int, ahead: int, name: str
) -> Generator[T, None, None]:
    """Apply a function to items in threads, and yield the results in the items' order.

    Items are generated in the calling thread while the threads work. All threads have ended when the generator is
    closed: running calls are finished, waiting ones are cancelled.

    Args:
        work: Function of one item.
        items: The items.
        workers: Number of threads; 0 works in the calling thread.
        ahead: Most items that are taken before the oldest result is yielded.
        name: Name of the threads.

    Yields:
        The results; an error of `work` is raised in place of its result.
    """
    if workers == 0:
        yield from map(work, items)
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix=f"embedcam-{name}")
    try:
        pending: deque[Future[T]] = deque()
        for item in items:
            pending.append(executor.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
