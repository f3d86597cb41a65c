"""What a file may ask for at most; files may come from strangers, and what they ask for is allocated later."""

from __future__ import annotations

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
