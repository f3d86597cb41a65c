"""Scores of heat maps against masks: the protocol, its registry, and those that embedcam has itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import ndimage

from ..registry import Registry
from ..show.boxes import Box, iou, mask_box
from ..show.report import Column

# Divided from integers, so that each is the float nearest to its decimal: repeated addition of 0.05 would miss some.
THRESHOLDS: tuple[float, ...] = tuple(i / 20 for i in range(1, 20))


def nest(name: str, state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Prefix the keys of a state, to keep it beside others.

    Args:
        name: Prefix, without a dot.
        state: The state.

    Returns:
        For `nested`.
    """
    return {f"{name}.{key}": value for key, value in state.items()}


def nested(name: str, states: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Pick one of the states that `nest` prefixed.

    Args:
        name: Its prefix.
        states: All of them.

    Returns:
        The state.
    """
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in states.items() if key.startswith(prefix)}


class Score(ABC):
    """One column of the `evaluate` table, or a few, computed from heat maps and masks batch by batch.

    Subclasses take no arguments; `ImageScore` is the simpler base where each image is measured independently. Before
    `add`, heat is set to 0 and the mask to False on ignored pixels.

    Attributes:
        columns: What `result` gives.
    """

    columns: ClassVar[tuple[Column, ...]]

    @abstractmethod
    def add(self, heatmaps: NDArray[np.float32], masks: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> None:
        """Add a batch.

        Args:
            heatmaps: (B, H, W) in [0, 1].
            masks: (B, H, W), True on the object; at least one pixel of each.
            ignore: (B, H, W), True on pixels that must not count.
        """

    @abstractmethod
    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that was added, as arrays that NumPy saves without pickling.

        Returns:
            For `merge`.
        """

    @abstractmethod
    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        """Add what was added to another score of this class.

        Args:
            state: Of other images.
        """

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Compute the score of all images added so far, at least one.

        Returns:
            A value for the key of each column.
        """

    def resampled(self, counts: NDArray[np.int64]) -> dict[str, float]:
        """Compute the score of a bootstrap sample of the images.

        Args:
            counts: (N,) how often the sample contains each image, in the order in which they were added.

        Returns:
            A value for the key of each column that has an interval; none by default.
        """
        return {}


class ImageScore(Score):
    """A score that summarises one record per image, by default the mean.

    Attributes:
        dtype: Of a record.
    """

    dtype: ClassVar[DTypeLike] = np.float64

    def __init__(self) -> None:
        self._batches: list[NDArray[Any]] = [np.empty(0, self.dtype)]

    @abstractmethod
    def measure(self, heatmap: NDArray[np.float32], mask: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> Any:
        """Measure one image.

        Args:
            heatmap: (H, W) in [0, 1]; 0 on ignored pixels.
            mask: (H, W), True on the object; False on ignored pixels.
            ignore: (H, W), True on pixels that must not count.

        Returns:
            Its record, such as a number in [0, 1].
        """

    def summarise(self, records: NDArray[Any], counts: NDArray[np.int64] | None) -> dict[str, float]:
        """Compute the score from records.

        Args:
            records: (N,) of `dtype`.
            counts: (N,) how often each image counts; once if None.

        Returns:
            A value for the key of each column.
        """
        (column,) = self.columns
        return {column.key: float(np.average(records, weights=counts))}

    @property
    def records(self) -> NDArray[Any]:
        """The records (N,) of all images, in the order in which they were added."""
        if len(self._batches) > 1:
            self._batches = [np.concatenate(self._batches)]
        return self._batches[0]

    def add(self, heatmaps: NDArray[np.float32], masks: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> None:
        measured = [self.measure(*image) for image in zip(heatmaps, masks, ignore, strict=True)]
        self._batches.append(np.array(measured, self.dtype))

    def state(self) -> dict[str, NDArray[Any]]:
        return {"records": self.records}

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        self._batches.append(state["records"])

    def result(self) -> dict[str, float]:
        return self.summarise(self.records, None)

    def resampled(self, counts: NDArray[np.int64]) -> dict[str, float]:
        return self.summarise(self.records, counts)


SCORES: Registry[type[Score]] = Registry("score", "embedcam.scores")


@SCORES.register("mean_ratio")
class MeanRatio(ImageScore):
    """The heat inside the mask divided by all heat, averaged over images; a zero map scores 0."""

    columns = (Column("mean_ratio", "Mean ratio", "share of the heat that lies on the object, averaged over images"),)

    def measure(self, heatmap: NDArray[np.float32], mask: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> float:
        inside, outside = (heatmap[part].sum(dtype=np.float64) for part in (mask, ~mask))
        return float(inside / (inside + outside)) if inside else 0.0


@SCORES.register("iou")
class IoU(ImageScore):
    """The overlap of the thresholded heat map with the mask, and of their boxes.

    `iou_50` is the IoU of (heat map >= 0.5) with the mask, averaged over images; `best_iou` the same at
    `best_threshold`, the one of `THRESHOLDS` that is best for all images together (the lowest of equals). `box_50` is
    the share of images whose largest box at that threshold has IoU >= 0.5 with the box around the whole mask; the
    largest box surrounds the component of most pixels, and pixels that touch at a corner are connected.
    """

    columns = (
        Column("iou_50", "IoU at 0.5", "overlap of the heat of at least 0.5 with the mask, averaged over images"),
        Column("best_iou", "Best IoU", "the same at the best single threshold for the whole set"),
        Column("best_threshold", "Threshold", "the threshold of the best IoU", higher_is_better=None, decimals=2),
        Column("box_50", "Box at 0.5", "share of images whose largest box overlaps the mask's box by half or more"),
    )
    dtype = np.dtype([("iou", np.float64, len(THRESHOLDS)), ("box_50", np.bool_, len(THRESHOLDS))])

    def measure(self, heatmap: NDArray[np.float32], mask: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> Any:
        hot, mask_around = [heatmap >= threshold for threshold in THRESHOLDS], mask_box(mask)
        assert mask_around is not None
        boxes = [_largest_box(pixels) for pixels in hot]
        return (
            [np.count_nonzero(pixels & mask) / np.count_nonzero(pixels | mask) for pixels in hot],
            [box is not None and iou(box, mask_around) >= 0.5 for box in boxes],
        )

    def summarise(self, records: NDArray[Any], counts: NDArray[np.int64] | None) -> dict[str, float]:
        mean_iou = np.average(records["iou"], axis=0, weights=counts)
        best = int(mean_iou.argmax())
        return {
            "iou_50": float(mean_iou[THRESHOLDS.index(0.5)]),
            "best_iou": float(mean_iou[best]),
            "best_threshold": THRESHOLDS[best],
            "box_50": float(np.average(records["box_50"][:, best], weights=counts)),
        }


@SCORES.register("pointing")
class Pointing(ImageScore):
    """The share of images whose strongest pixel is on the object.

    Where several pixels are equally strong, the image counts by the share of them on the object; a zero map scores 0.
    """

    columns = (Column("pointing", "Pointing", "share of images whose strongest pixel is on the object"),)

    def measure(self, heatmap: NDArray[np.float32], mask: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> float:
        # Ties are common, since maps are flat beyond their outermost cells; the first would favour the top left.
        highest = heatmap.max()
        return float(mask[heatmap == highest].mean()) if highest else 0.0


@SCORES.register("pixel_ap")
class PixelAP(Score):
    """The average precision of the heat, in steps of 1 / 65535, as a classifier of all pixels of all images.

    Pixels are counted in two histograms, so that memory does not grow with the images. It has no interval, since it is
    no mean over images.
    """

    columns = (Column("pixel_ap", "Pixel AP", "average precision of the heat as a classifier of object pixels"),)
    _LEVELS = 2**16

    def __init__(self) -> None:
        self._on_object, self._all = np.zeros((2, self._LEVELS), dtype=np.int64)

    def add(self, heatmaps: NDArray[np.float32], masks: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> None:
        levels = np.rint(heatmaps * (self._LEVELS - 1)).astype(np.uint16)
        self._on_object += np.bincount(levels[masks], minlength=self._LEVELS)
        self._all += np.bincount(levels[~ignore], minlength=self._LEVELS)

    def state(self) -> dict[str, NDArray[Any]]:
        levels = np.flatnonzero(self._all)
        return {"levels": levels, "on_object": self._on_object[levels], "all": self._all[levels]}

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        self._on_object[state["levels"]] += state["on_object"]
        self._all[state["levels"]] += state["all"]

    def result(self) -> dict[str, float]:
        # The sum of (recall_n - recall_{n-1}) * precision_n from the hottest level n to the coldest.
        on_object, pixels = self._on_object[::-1], self._all[::-1]
        precision = np.cumsum(on_object) / np.maximum(np.cumsum(pixels), 1)
        return {"pixel_ap": float(np.sum(on_object * precision) / on_object.sum())}


def _largest_box(hot: NDArray[np.bool_]) -> Box | None:
    # The first of `show.boxes.find_boxes`; not all of them, since there are 19 thresholds per image.
    around = mask_box(hot)
    if around is None:
        return None
    # Most of a map is cold: searching only the rest saves most of the time.
    crop = hot[around.top : around.bottom, around.left : around.right]
    components, count = ndimage.label(crop, structure=np.ones((3, 3), dtype=bool))
    if count == 1:
        return around
    box = mask_box(components == 1 + np.bincount(components.ravel())[1:].argmax())
    assert box is not None
    left, top = around.left, around.top
    return replace(box, left=box.left + left, top=box.top + top, right=box.right + left, bottom=box.bottom + top)
