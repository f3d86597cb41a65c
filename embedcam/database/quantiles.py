"""Shares of a cluster's training images beyond a distance, from a few stored quantiles."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)


class Slopes(NamedTuple):
    """The share of a cluster's images beyond a distance, linear between the quantiles.

    At distance d it is 1 + clip(d * slope - offset, 0, 1) . falls.

    Attributes:
        slopes: (C, 5).
        offsets: (C, 5).
        falls: (5,), decrease of the share from each quantile to the next.
    """

    slopes: Any
    offsets: Any
    falls: Any

    @classmethod
    def of(cls, quantiles: NDArray[np.float32]) -> Slopes:
        """Prepare the interpolation between quantiles.

        Args:
            quantiles: (C, 5) distances at `QUANTILES`.

        Returns:
            float64 arrays.
        """
        rows = quantiles.astype(np.float64)
        # If quantiles are zero, rounding errors must not decide.
        bounds = np.maximum(np.concatenate([np.zeros((len(rows), 1)), rows], axis=1), rows[:, :1] * 1e-6 + 1e-6)
        # Between equal quantiles, the share falls in one step.
        slopes = 1 / np.maximum(np.diff(bounds, axis=1), 1e-12)
        return cls(slopes, bounds[:, :-1] * slopes, np.diff([1.0, *(1 - q for q in QUANTILES)]))

    def beyond(self, clusters: Any, distances: Any) -> Any:
        """Interpolate the share of a cluster's images that are at least as far from a centroid.

        Args:
            clusters: (B,) indices.
            distances: (B,) to their centroids, of the same library as the attributes (numpy or torch).

        Returns:
            (B,) in [0, 1]; 0 beyond the outermost image.
        """
        steps = (distances[:, None] * self.slopes[clusters] - self.offsets[clusters]).clip(0, 1)
        return 1 + steps @ self.falls
