"""Heat by part: which parts of the objects do maps mark?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data.keypoints import Keypoints
from ..data.preprocess import Preprocess
from ..data.samples import Samples
from ..errors import DataError
from .bootstrap import interval
from .faithfulness import Explain


def heat_by_part(
    methods: Mapping[str, Explain],
    test: Samples,
    batches: Iterable[tuple[NDArray[np.int64], Tensor]],
    preprocess: Preprocess,
) -> dict[str, Any]:
    """Divide the heat on the objects among their parts.

    Every pixel of an object (of its mask or box; of the image, if there is neither) belongs to the nearest visible
    part. The heat of a part is its share of the heat on the object, its area its share of the object's pixels, and
    its density the first divided by the second: above 1, the map prefers the part.

    Args:
        methods: By name, functions from images (B, 3, H, W) to an explanation.
        test: Images with `keypoints`.
        batches: Indices in `test` and images.
        preprocess: How the images were made.

    Returns:
        A dictionary that JSON can hold: `images` with a visible part and `rows`, one per method. A row has the
        `method`; `parts` and `groups`: by name the mean `heat` and `area` over the images in which it is visible, their
        quotient `density`, and the number of these `images`; and `prefers`: for two groups, such as "head over tail",
        the `share` of images in which the density of the first is higher, among those where both are visible, with
        its 95 % `interval` and the number of `images`.

    Raises:
        DataError: If there are no keypoints, or none is visible.
    """
    keypoints = keypoints_of(test)
    measured: dict[str, list[NDArray[np.float64]]] = {name: [] for name in methods}
    for indices, images in batches:
        regions = [_regions(test, keypoints.places[index], index, preprocess) for index in indices.tolist()]
        for name, explain in methods.items():
            for heatmap, region in zip(explain(images).heatmaps, regions, strict=True):
                if region is not None:
                    measured[name].append(_shares(heatmap, region, len(keypoints.names)))
    count = len(next(iter(measured.values()), []))
    if not count:
        raise DataError("no image has a visible part; --parts needs keypoints inside the pictures")
    rows = [_row(name, np.stack(values), keypoints.names, keypoints.groups) for name, values in measured.items()]
    return {"schema": 1, "images": count, "rows": rows}


def keypoints_of(samples: Samples) -> Keypoints:
    """Return the keypoints of a data set.

    Args:
        samples: The data set.

    Returns:
        The keypoints.

    Raises:
        DataError: If it has none.
    """
    keypoints: Keypoints | None = getattr(samples, "keypoints", None)
    if keypoints is None:
        raise DataError("these images have no keypoints; --parts needs a data set with parts, such as cub:PATH")
    return keypoints


def _regions(
    test: Samples, places: NDArray[np.float64], index: int, preprocess: Preprocess
) -> NDArray[np.int64] | None:
    """Assign pixels to parts: (H, W) index of the part, -1 beyond the object; None if no part is visible."""
    visible = np.flatnonzero(~np.isnan(places[:, 0]))
    if not visible.size:
        return None
    height, width = preprocess.input_size
    # Centres of pixels, as shares of the picture: then the sizes of the picture and of the map do not matter.
    columns, rows = ((np.arange(side) + 0.5) / side for side in (width, height))
    whole = test.image(index).size
    aspect = whole[0] / whole[1]  # distances are those in the picture
    x, y = ((places[visible, axis] + 0.5) / whole[axis] for axis in (0, 1))
    across = (columns[None, :, None] - x) * aspect
    regions = visible[(across**2 + (rows[:, None, None] - y) ** 2).argmin(axis=2)]
    mask = test.mask(index)
    return regions if mask is None else np.where(preprocess.mask(mask), regions, -1)


def _shares(heatmap: NDArray[np.float32], regions: NDArray[np.int64], parts: int) -> NDArray[np.float64]:
    """Give heat and area (2, P), each with the sum 1 (no heat at all: 0); NaN for parts that are not visible."""
    on_object = regions >= 0
    owner = regions[on_object]
    area = np.bincount(owner, minlength=parts).astype(float)
    heat = np.bincount(owner, weights=heatmap[on_object], minlength=parts)
    shares: NDArray[np.float64] = np.stack([heat / (heat.sum() or 1), area / (area.sum() or 1)])
    shares[:, area == 0] = np.nan
    return shares


def _row(name: str, shares: NDArray[np.float64], names: tuple[str, ...], groups: tuple[str, ...]) -> dict[str, Any]:
    """Average shares (N, 2, P) over the images, by part and by group."""
    members = {group: [g == group for g in groups] for group in Counter(groups)}
    by_group = {group: shares[:, :, rows] for group, rows in members.items()}
    summed = {
        group: np.where(np.isnan(each).all(axis=2), np.nan, np.nansum(each, axis=2)) for group, each in by_group.items()
    }
    density = {group: each[:, 0] / each[:, 1] for group, each in summed.items()}
    prefers = {}
    for first, second in combinations(density, 2):
        both = ~np.isnan(density[first] + density[second])
        if both.any():
            higher = (density[first] > density[second])[both]
            prefers[f"{first} over {second}"] = {
                "share": float(higher.mean()),
                "interval": interval(higher),
                "images": int(both.sum()),
            }
    return {
        "method": name,
        "parts": {part: _means(shares[:, :, column]) for column, part in enumerate(names)},
        "groups": {group: _means(each) for group, each in summed.items()},
        "prefers": prefers,
    }


def _means(shares: NDArray[np.float64]) -> dict[str, float | int | None]:
    visible = shares[~np.isnan(shares[:, 0])]
    if not len(visible):
        return {"heat": None, "area": None, "density": None, "images": 0}
    heat, area = visible.mean(axis=0).tolist()
    return {"heat": heat, "area": area, "density": heat / area, "images": len(visible)}
