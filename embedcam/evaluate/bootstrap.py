"""Confidence intervals of means by bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


def interval(values: NDArray[Any], seed: int = 0) -> list[float]:
    """Compute the 95 % interval of a mean.

    Args:
        values: (N,) independent measurements, at least one.
        seed: Of the samples.

    Returns:
        (lower, upper).
    """
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values, dtype=float)[drawn].mean(axis=1), (0.025, 0.975))
    return [float(low), float(high)]
