"""Dynamic batching: images that wait at the same time are explained together."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..explain.explanation import AnyExplainer, Explanation

logger = logging.getLogger("embedcam")


class _Waiting(NamedTuple):
    explainer: AnyExplainer
    image: NDArray[np.float32]
    future: Future[Explanation]


class Batches:
    """Explains images in a thread pool. A free thread takes what waits by then, and nothing waits for a batch to fill.

    Args:
        size: Maximum number of images of a batch.
        threads: Batches explained at the same time.
    """

    def __init__(self, size: int, threads: int) -> None:
        self._size, self._waiting, self._lock = size, deque[_Waiting](), Lock()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="embedcam-explain")

    def explain(self, explainer: AnyExplainer, image: NDArray[np.float32]) -> Future[Explanation]:
        """Explain an image, first in, first out.

        Args:
            explainer: The explainer. Only images of the same one share a batch.
            image: (3, H, W), normalised, of the explainer's input size.

        Returns:
            The explanation of a batch of this one image. An error is that of the image alone.
        """
        future: Future[Explanation] = Future()
        with self._lock:
            self._waiting.append(_Waiting(explainer, image, future))
        # One task per image: where an earlier task has taken the image along, nothing is left to do.
        self._threads.submit(self._explain_next)
        return future

    def close(self) -> None:
        """Shut down the thread pool after the running batches."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _explain_next(self) -> None:
        with self._lock:
            batch: list[_Waiting] = []
            while (
                self._waiting
                and len(batch) < self._size
                and (not batch or self._waiting[0].explainer is batch[0].explainer)
            ):
                each = self._waiting.popleft()
                if each.future.set_running_or_notify_cancel():
                    batch.append(each)
        if len(batch) > 1:
            try:
                explanation = batch[0].explainer(np.stack([each.image for each in batch]))
            except Exception as error:  # of one of the images, or of all: each alone shows which
                logger.warning("a batch of %d images failed and is explained image by image: %s", len(batch), error)
            else:
                for row, each in enumerate(batch):
                    each.future.set_result(explanation.of_image(row))
                return
        for each in batch:
            try:
                each.future.set_result(each.explainer(each.image[None]))
            except Exception as error:
                each.future.set_exception(error)
