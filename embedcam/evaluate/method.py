"""One row of the table: a way to explain, timed and scored."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..explain.explanation import Explanation
from .localization import THRESHOLDS, Localization

SCORES = ("mean_ratio", "iou_50", "best_iou", "pointing", "pixel_ap", "box_50")
_RESAMPLES = 1000

Explain = Callable[[Tensor, NDArray[np.int64]], Explanation]


@dataclass
class Method:
    """A way to explain images, and what came of it.

    Attributes:
        name: As printed.
        explain: From images (B, 3, H, W) and their indices in the data set to an explanation.
        backprop: Whether it needs a backward pass.
        default: Whether it is what `Explainer` does when nothing is said.
    """

    name: str
    explain: Explain
    backprop: bool = False
    default: bool = False
    scores: Localization = field(default_factory=Localization)
    correlations: list[float] = field(default_factory=list)
    seconds: float = 0.0
    images: int = 0

    def run(self, images: Tensor, indices: NDArray[np.int64]) -> Explanation:
        """Explain a batch, and note the time.

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

    def anew(self) -> Method:
        """Give the same way to explain, of which nothing came yet.

        Returns:
            A copy without scores.
        """
        return Method(self.name, self.explain, self.backprop, self.default)

    def state(self) -> dict[str, NDArray[Any]]:
        """Give all that came of it, to be kept in a file.

        Returns:
            For `add`.
        """
        known = {"correlations": self.correlations, "seconds": self.seconds, "images": self.images}
        return {**self.scores.state(), **{key: np.asarray(value) for key, value in known.items()}}

    def add(self, state: dict[str, NDArray[Any]]) -> None:
        """Take in what came of other images.

        Args:
            state: Of the same method.
        """
        self.scores.merge(state)
        self.correlations += state["correlations"].tolist()
        self.seconds += float(state["seconds"])
        self.images += int(state["images"])

    def correlate(self, explanation: Explanation, reference: Explanation) -> None:
        """Note how alike each map and a reference are, by Pearson's correlation over the pixels.

        Args:
            explanation: Of this method.
            reference: Of the same images, in the same size.
        """
        for mine, other in zip(explanation.heatmaps, reference.heatmaps, strict=True):
            flat = mine.std() == 0 or other.std() == 0
            self.correlations.append(0.0 if flat else float(np.corrcoef(mine.ravel(), other.ravel())[0, 1]))

    def row(self, seed: int = 0) -> dict[str, Any]:
        """Give the row as the JSON has it; scores are null where no image had a mask.

        Args:
            seed: Of the bootstrap.

        Returns:
            The scores, the 95 % interval of each over the images (null for `pixel_ap`, which is one number of all
            pixels), the correlation with the reference, and the time.
        """
        known: dict[str, Any] = dict.fromkeys((*SCORES, "best_threshold"))
        interval: dict[str, Any] = dict.fromkeys(SCORES)
        scores = self.scores.per_image()
        if len(scores["iou"]):
            known |= {key: value for key, value in self.scores.result().items() if key in known}
            interval |= _bootstrap(scores, seed)
        return {
            "method": self.name,
            "default": self.default,
            "backprop": self.backprop,
            **known,
            "interval": interval,
            "correlation": float(np.mean(self.correlations)) if self.correlations else None,
            "ms_per_image": 1000 * self.seconds / max(self.images, 1),
        }


def _bootstrap(scores: dict[str, NDArray[Any]], seed: int) -> dict[str, list[float]]:
    """Draw the images again and again, with replacement; each draw chooses its best threshold anew."""
    generator = np.random.default_rng(seed)
    count, ious = len(scores["mean_ratio"]), scores["iou"].astype(np.float64)
    drawn: dict[str, list[float]] = {key: [] for key in SCORES if key != "pixel_ap"}
    for _ in range(_RESAMPLES):
        times = np.bincount(generator.integers(count, size=count), minlength=count) / count
        iou = times @ ious
        best = int(iou.argmax())
        drawn["mean_ratio"].append(float(times @ scores["mean_ratio"]))
        drawn["pointing"].append(float(times @ scores["pointing"]))
        drawn["iou_50"].append(float(iou[THRESHOLDS.index(0.5)]))
        drawn["best_iou"].append(float(iou[best]))
        drawn["box_50"].append(float(times @ (scores["box_iou"][:, best] >= 0.5)))
    return {key: [float(v) for v in np.quantile(values, (0.025, 0.975))] for key, values in drawn.items()}
