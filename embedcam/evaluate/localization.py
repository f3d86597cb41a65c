"""Does the heat map lie on the object: the scores of heat maps against masks, gathered batch by batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import DataError
from ..show.boxes import Box, iou, mask_box

# Divided from integers, so that each is the float that a reader writes: adding 0.05 up would miss some.
THRESHOLDS: tuple[float, ...] = tuple(i / 20 for i in range(1, 20))
_LEVELS = 2**16
# What an image leaves, in 168 bytes. As float32, ratios of up to 16 million pixels are told apart.
_IMAGE = np.dtype(
    [
        ("mean_ratio", np.float64),
        ("pointing", np.float64),
        ("iou", np.float32, len(THRESHOLDS)),
        ("box_iou", np.float32, len(THRESHOLDS)),
    ]
)


class Localization:
    """Scores of heat maps against masks, over as many images as are added.

    Ignored pixels are left out of every score. Pixels are only counted, in two histograms, and each image
    leaves 40 numbers, so that any number of images fits in memory.
    """

    def __init__(self) -> None:
        self._images: list[NDArray[np.void]] = [np.empty(0, _IMAGE)]
        self._count, self._iou = 0, np.zeros(len(THRESHOLDS))
        # Of the object's pixels, and of all pixels: how many have each of the quantised heats.
        self._object_pixels = np.zeros(_LEVELS, dtype=np.int64)
        self._pixels = np.zeros(_LEVELS, dtype=np.int64)

    def add(
        self, heatmaps: NDArray[np.float32], masks: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None
    ) -> None:
        """Score one batch; a batch that is refused leaves nothing behind.

        Args:
            heatmaps: (B, H, W) in [0, 1].
            masks: (B, H, W) bool, True on the object.
            ignore: (B, H, W) bool, True on pixels that no score may count.

        Raises:
            DataError: If the shapes differ, a heat map leaves [0, 1] or holds NaN, or a mask shows no object
                outside the ignored pixels. The message counts images from 0 in the order they were added in.
        """
        heatmaps, masks = np.asarray(heatmaps, dtype=np.float32), np.asarray(masks, dtype=bool)
        ignore = np.zeros_like(masks) if ignore is None else np.asarray(ignore, dtype=bool)
        self._check(heatmaps, masks, ignore)
        # From here on an ignored pixel is cold and off the object: it adds to no sum, no IoU and no box.
        heatmaps, masks = np.where(ignore, np.float32(0), heatmaps), masks & ~ignore
        heats = np.rint(heatmaps * (_LEVELS - 1)).astype(np.uint16)
        self._object_pixels += np.bincount(heats[masks], minlength=_LEVELS)
        self._pixels += np.bincount(heats[~ignore], minlength=_LEVELS)
        images = np.empty(len(heatmaps), _IMAGE)
        for image, heatmap, mask in zip(images, heatmaps, masks, strict=True):
            hot, truth = [heatmap >= threshold for threshold in THRESHOLDS], mask_box(mask)
            image["mean_ratio"], image["pointing"] = _mean_ratio(heatmap, mask), _pointing(heatmap, mask)
            image["iou"] = found = np.array([np.count_nonzero(h & mask) / np.count_nonzero(h | mask) for h in hot])
            self._iou += found
            image["box_iou"] = [_box_iou(_largest_box(h), truth) for h in hot]
        self._images.append(images)
        self._count += len(images)

    def state(self) -> dict[str, NDArray[Any]]:
        """Give all that was added, to be kept in a file.

        Returns:
            For `merge`. The histograms come without their zeros.
        """
        self.per_image()
        levels = np.flatnonzero(self._pixels)
        return {
            "scores": self._images[0],
            "iou": self._iou,
            "levels": levels,
            "object_pixels": self._object_pixels[levels],
            "pixels": self._pixels[levels],
        }

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        """Add what was added elsewhere.

        Args:
            state: Of other images.
        """
        self._images.append(state["scores"])
        self._count += len(state["scores"])
        self._iou += state["iou"]
        self._object_pixels[state["levels"]] += state["object_pixels"]
        self._pixels[state["levels"]] += state["pixels"]

    def result(self) -> dict[str, float]:
        """Give the scores of all images added so far.

        Returns:
            Each score in [0, 1], higher is better:

            - `mean_ratio`: heat inside the mask / all heat, averaged over images. A zero map scores 0.
            - `iou_50`: IoU of (heat map >= 0.5) with the mask, averaged.
            - `best_iou`: the same at `best_threshold`, the one of `THRESHOLDS` that is best for all images
              together (the lowest of equals).
            - `pointing`: share of images whose strongest pixel is on the object. Where several pixels are
              equally strong, the image counts by the share of them on the object. A zero map scores 0.
            - `pixel_ap`: average precision of the heat, in steps of 1 / 65535, as a classifier of all pixels.
            - `box_50`: share of images whose largest box at `best_threshold` (not at a best one of its own)
              has IoU >= 0.5 with the box around the whole mask. The largest box is the one around the
              component of most pixels; pixels that touch at a corner are connected.

            And `images`, their number.

        Raises:
            DataError: If no image was added.
        """
        if not self._count:
            raise DataError("no image was scored for localization; add images that have a mask")
        scores = self.per_image()
        mean_iou = self._iou / self._count
        best = int(mean_iou.argmax())
        return {
            "mean_ratio": float(scores["mean_ratio"].mean()),
            "iou_50": float(mean_iou[THRESHOLDS.index(0.5)]),
            "best_iou": float(mean_iou[best]),
            "best_threshold": THRESHOLDS[best],
            "pointing": float(scores["pointing"].mean()),
            "pixel_ap": _average_precision(self._object_pixels, self._pixels),
            "box_50": float((scores["box_iou"][:, best] >= 0.5).mean()),
            "images": self._count,
        }

    def per_image(self) -> dict[str, NDArray[Any]]:
        """Give each image's scores, in the order in which they were added, to draw bootstrap samples from.

        Returns:
            `mean_ratio` and `pointing` (N,) float64; `iou` and `box_iou` (N, 19) float32, one at each of the
            `THRESHOLDS`. Not copies.
        """
        if len(self._images) > 1:
            self._images = [np.concatenate(self._images)]
        return {name: self._images[0][name] for name in _IMAGE.fields or ()}

    def _check(self, heatmaps: NDArray[np.float32], masks: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> None:
        first = self._count
        if heatmaps.ndim != 3 or not heatmaps.shape == masks.shape == ignore.shape:
            raise DataError(
                f"batch from image {first} on: heat maps {heatmaps.shape}, masks {masks.shape} and ignore "
                f"masks {ignore.shape} must share one shape (B, H, W); bring the masks to the heat maps' size"
            )
        for index, (heatmap, mask, unseen) in enumerate(zip(heatmaps, masks, ignore, strict=True), first):
            # Written so that NaN fails too.
            if not ((heatmap >= 0) & (heatmap <= 1)).all():
                raise DataError(
                    f"heat map {index} must lie in [0, 1], found {heatmap.min():.4g} to {heatmap.max():.4g}; "
                    "score normalised maps, not raw ones"
                )
            if not (mask & ~unseen).any():
                why = "all its pixels are ignored" if mask.any() else "it is all zero"
                raise DataError(f"mask {index} shows no object: {why}; leave the image out")


def _mean_ratio(heatmap: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    inside, outside = heatmap[mask].sum(dtype=np.float64), heatmap[~mask].sum(dtype=np.float64)
    return float(inside / (inside + outside)) if inside else 0.0


def _pointing(heatmap: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    # Ties are common, as maps are flat beyond their outermost cells; the first would favour the top left.
    highest = heatmap.max()
    return float(mask[heatmap == highest].mean()) if highest else 0.0


def _largest_box(hot: NDArray[np.bool_]) -> Box | None:
    # The first of `show.boxes.find_boxes`; not all of them, since there are 19 thresholds an image.
    around = mask_box(hot)
    if around is None:
        return None
    # Most of a map is cold: looking at the rest alone saves most of the time.
    crop = hot[around.top : around.bottom, around.left : around.right]
    components, count = ndimage.label(crop, structure=np.ones((3, 3), dtype=bool))
    if count == 1:
        return around
    box = mask_box(components == 1 + np.bincount(components.ravel())[1:].argmax())
    assert box is not None
    left, top = around.left, around.top
    return replace(box, left=box.left + left, top=box.top + top, right=box.right + left, bottom=box.bottom + top)


def _box_iou(box: Box | None, truth: Box | None) -> float:
    return iou(box, truth) if box and truth else 0.0


def _average_precision(object_pixels: NDArray[np.int64], pixels: NDArray[np.int64]) -> float:
    """Sum of (recall_n - recall_{n-1}) * precision_n from the hottest level n to the coldest."""
    object_pixels, pixels = object_pixels[::-1], pixels[::-1]
    precision = np.cumsum(object_pixels) / np.maximum(np.cumsum(pixels), 1)
    return float(np.sum(object_pixels * precision) / object_pixels.sum())
