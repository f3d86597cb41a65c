"""One row of the table: a way to explain, timed and scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EmbedcamError
from ..explain.explanation import Explanation
from ..show.report import Column
from .grid import BY_PARTNER, LOCALISED, SHARE, Ask
from .grid import COLUMNS as GRID
from .localization import Localization
from .scores import SCORES, nest, nested

Explain = Callable[[Tensor, NDArray[np.int64]], Explanation]

_COLUMNS = (
    Column("ms_per_image", "ms / image", "time to explain one image, in milliseconds", False, 1),
    Column("correlation", "Correlation", "with the maps of per-image Grad-CAM, averaged over images", None),
)


def score_columns() -> list[Column]:
    """List the columns of all registered scores.

    Returns:
        In the order of the registry.

    Raises:
        EmbedcamError: If a score uses the key of another column.
    """
    keys = {"method", "default", "backprop", "input_size", "interval", *(column.key for column in (*GRID, *_COLUMNS))}
    columns = []
    for name in SCORES:
        for column in SCORES[name].columns:
            if column.key in keys:
                raise EmbedcamError(f"score {name!r} has a column {column.key!r}, which exists already; rename it")
            keys.add(column.key)
            columns.append(column)
    return columns


def columns() -> list[Column]:
    """List the columns of the table of `evaluate`, beside the method's name.

    Returns:
        Those of the scores, the grid test, the time and the correlation with the reference.

    Raises:
        EmbedcamError: If a score uses the key of another column.
    """
    return [*score_columns(), *GRID, *_COLUMNS]


@dataclass
class Method:
    """A way to explain images, with its scores so far.

    Attributes:
        name: As printed.
        explain: From images (B, 3, H, W) and their indices in the data set to an explanation.
        backprop: Whether it needs a backward pass.
        default: Whether it is what `Explainer` does by default.
        asks: How it is asked for one of several pictures, by what it is asked for, of `grid.BY`.
        grid: The result of `grid_test`, for each way to ask.
        scores: Of its heat maps.
        correlations: Of each heat map with the reference's.
        seconds: Spent explaining.
        images: Explained.
        input_size: (height, width) of these images.
    """

    name: str
    explain: Explain
    backprop: bool = False
    default: bool = False
    asks: Mapping[str, Ask] = field(default_factory=dict)
    grid: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: Localization = field(default_factory=Localization)
    correlations: list[float] = field(default_factory=list)
    seconds: float = 0.0
    images: int = 0
    input_size: tuple[int, int] | None = None

    def run(self, images: Tensor, indices: NDArray[np.int64]) -> Explanation:
        """Explain a batch and add up the time.

        Args:
            images: (B, 3, H, W).
            indices: (B,) in the data set.

        Returns:
            The explanation.
        """
        start = time.perf_counter()
        explanation = self.explain(images, indices)  # ends on the host, so nothing is left running on a GPU
        self.seconds += time.perf_counter() - start
        self.images += len(images)
        return explanation

    def state(self) -> dict[str, NDArray[Any]]:
        """Return scores and times, to be kept in a file.

        Returns:
            For `merge`.
        """
        own = {"correlations": self.correlations, "seconds": self.seconds, "images": self.images}
        return {**nest("scores", self.scores.state()), **{key: np.asarray(value) for key, value in own.items()}}

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        """Add the scores and times of other images.

        Args:
            state: Of the same method.
        """
        self.scores.merge(nested("scores", state))
        self.correlations += state["correlations"].tolist()
        self.seconds += float(state["seconds"])
        self.images += int(state["images"])

    def correlate(self, explanation: Explanation, reference: Explanation) -> None:
        """Add Pearson's correlation of each map with a reference over the pixels; 0 where either is flat.

        Args:
            explanation: Of this method.
            reference: Of the same images, in the same size.
        """
        for heatmap, other in zip(explanation.heatmaps, reference.heatmaps, strict=True):
            flat = heatmap.std() == 0 or other.std() == 0
            self.correlations.append(0.0 if flat else float(np.corrcoef(heatmap.ravel(), other.ravel())[0, 1]))

    def row(self, seed: int = 0) -> dict[str, Any]:
        """Return the row as the JSON has it; scores are null where no image had a mask.

        Args:
            seed: Of the bootstrap.

        Returns:
            The scores, the 95 % interval of each over the images (null for a score that is no mean over images), the
            correlation with the reference, the size of the images, and the time. The grid scores are those of
            clusters, or those of partners of a method that can be asked for nothing else; null for a method that
            cannot be asked.
        """
        scored = bool(self.scores.images)
        values, intervals = (self.scores.result(), self.scores.intervals(seed)) if scored else ({}, {})
        partner = self.grid.get("partner", {})
        for column, key, result in (
            (SHARE, SHARE.key, self.grid.get("cluster", partner)),
            (LOCALISED, LOCALISED.key, self.grid.get("cluster", partner)),
            (BY_PARTNER, SHARE.key, partner),
        ):
            if result:
                values[column.key], intervals[column.key] = result[key], result["interval"][key]
        keys = [column.key for column in (*score_columns(), *GRID)]
        return {
            "method": self.name,
            "default": self.default,
            "backprop": self.backprop,
            "input_size": None if self.input_size is None else list(self.input_size),
            **{key: values.get(key) for key in keys},
            "interval": {key: intervals.get(key) for key in keys},
            "correlation": float(np.mean(self.correlations)) if self.correlations else None,
            "ms_per_image": 1000 * self.seconds / max(self.images, 1),
        }
