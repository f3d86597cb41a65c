"""All registered scores of heat maps against masks, over the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, EmbedcamError
from .scores import SCORES, nest, nested

_RESAMPLES = 1000


class Localization:
    """The scores of `SCORES`, over as many images as are added. Ignored pixels are left out of every score.

    Attributes:
        scores: By name.
        images: How many images were added.
    """

    def __init__(self) -> None:
        self.scores = {name: SCORES[name]() for name in SCORES}
        self.images = 0

    def add(
        self, heatmaps: NDArray[np.float32], masks: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None
    ) -> None:
        """Score one batch; a batch that is refused changes nothing.

        Args:
            heatmaps: (B, H, W) in [0, 1].
            masks: (B, H, W) bool, True on the object.
            ignore: (B, H, W) bool, True on pixels that must not count.

        Raises:
            DataError: If the shapes differ, a heat map leaves [0, 1] or holds NaN, or a mask shows no object
                outside the ignored pixels. The message counts images from 0 in the order in which they were added.
        """
        heatmaps, masks = np.asarray(heatmaps, dtype=np.float32), np.asarray(masks, dtype=bool)
        ignore = np.zeros_like(masks) if ignore is None else np.asarray(ignore, dtype=bool)
        self._check(heatmaps, masks, ignore)
        heatmaps, masks = np.where(ignore, np.float32(0), heatmaps), masks & ~ignore
        for score in self.scores.values():
            score.add(heatmaps, masks, ignore)
        self.images += len(heatmaps)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that was added, to be kept in a file.

        Returns:
            For `merge`.
        """
        state = {"images": np.array(self.images)}
        for name, score in self.scores.items():
            state |= nest(name, score.state())
        return state

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        """Add what was added elsewhere.

        Args:
            state: Of other images.
        """
        self.images += int(state["images"])
        for name, score in self.scores.items():
            score.merge(nested(name, state))

    def result(self) -> dict[str, float]:
        """Compute the scores of all images added so far.

        Returns:
            The value of each score's columns, and `images`, their number.

        Raises:
            DataError: If no image was added.
            EmbedcamError: If a score does not give its columns.
        """
        if not self.images:
            raise DataError("no image was scored for localization; add images that have a mask")
        values: dict[str, float] = {}
        for name, score in self.scores.items():
            result, keys = score.result(), {column.key for column in score.columns}
            if result.keys() != keys:
                raise EmbedcamError(f"score {name!r} returns {sorted(result)}, but its columns are {sorted(keys)}")
            values |= result
        return {**values, "images": self.images}

    def intervals(self, seed: int = 0) -> dict[str, list[float]]:
        """Compute 95 % intervals by bootstrap over the images.

        Args:
            seed: Of the samples.

        Returns:
            (lower, upper) for each column that can be resampled.
        """
        generator = np.random.default_rng(seed)
        drawn: dict[str, list[float]] = {}
        for _ in range(_RESAMPLES):
            counts = np.bincount(generator.integers(self.images, size=self.images), minlength=self.images)
            for score in self.scores.values():
                for key, value in score.resampled(counts).items():
                    drawn.setdefault(key, []).append(value)
        return {key: np.quantile(values, (0.025, 0.975)).tolist() for key, values in drawn.items()}

    def _check(self, heatmaps: NDArray[np.float32], masks: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> None:
        if heatmaps.ndim != 3 or not heatmaps.shape == masks.shape == ignore.shape:
            raise DataError(
                f"batch from image {self.images} on: heat maps {heatmaps.shape}, masks {masks.shape} and ignore "
                f"masks {ignore.shape} must share one shape (B, H, W); bring the masks to the heat maps' size"
            )
        for index, (heatmap, mask, ignored) in enumerate(zip(heatmaps, masks, ignore, strict=True), self.images):
            # Written so that NaN fails too.
            if not ((heatmap >= 0) & (heatmap <= 1)).all():
                raise DataError(
                    f"heat map {index} must lie in [0, 1], found {heatmap.min():.4g} to {heatmap.max():.4g}; "
                    "score normalised maps, not raw ones"
                )
            if not (mask & ~ignored).any():
                reason = "all its pixels are ignored" if mask.any() else "it is all zero"
                raise DataError(f"mask {index} shows no object: {reason}; leave the image out")
