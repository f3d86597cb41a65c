"""What a file may ask for at most; files may come from strangers, and what they ask for is allocated later."""

from __future__ import annotations

import math

from .preprocess import Preprocess

LARGEST_INPUT = 2**26
"""Pixels of one image as a network sees it: 8192 x 8192."""


def usable(preprocess: Preprocess) -> Preprocess:
    """Make sure that a preprocessing read from a file can be carried out.

    Args:
        preprocess: What the file asks for.

    Returns:
        The same.

    Raises:
        ValueError: If its images are larger than `LARGEST_INPUT`, or its numbers give none.
    """
    height, width = preprocess.input_size
    if height * width > LARGEST_INPUT:
        raise ValueError(f"an input of {height} x {width} has more than {LARGEST_INPUT:,} pixels")
    if not all(map(math.isfinite, (*preprocess.mean, *preprocess.std))) or not min(preprocess.std) > 0:
        raise ValueError(f"mean {preprocess.mean} and std {preprocess.std} must be finite, and std positive")
    return preprocess
