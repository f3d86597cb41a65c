"""What a file may ask for at most; files may come from strangers, and what they ask for is allocated later."""

from __future__ import annotations

import math

from .preprocess import Preprocess

LARGEST_INPUT = 2**24
"""Pixels of one image as a network sees it: 4096 x 4096."""

RATIO, FLOOR, LARGEST = 64, 2**26, 2**34
"""What a file unpacks to may take so many times its size, FLOOR bytes in any case, and never more than LARGEST."""


def allowance(size: int) -> int:
    """Say how much memory a file may ask for.

    Args:
        size: Of the file, in bytes.

    Returns:
        Bytes.
    """
    return min(FLOOR + RATIO * size, LARGEST)


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
    if not len(preprocess.mean) == len(preprocess.std) == 3:
        raise ValueError(f"mean {preprocess.mean} and std {preprocess.std} must have three numbers each")
    if not all(map(math.isfinite, (*preprocess.mean, *preprocess.std))) or not min(preprocess.std) > 0:
        raise ValueError(f"mean {preprocess.mean} and std {preprocess.std} must be finite, and std positive")
    return preprocess
