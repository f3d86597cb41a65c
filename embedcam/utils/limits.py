"""Limits on the memory that an untrusted file can make embedcam allocate."""

from __future__ import annotations

LARGEST_INPUT = 2**24
"""Most pixels of a network's input: 4096 x 4096."""

RATIO, FLOOR, LARGEST = 64, 2**26, 2**34
"""A file may unpack to FLOOR bytes plus RATIO times its size, and never to more than LARGEST bytes."""


def allowance(size: int) -> int:
    """Compute how many bytes the content of a file may unpack to.

    Args:
        size: Size of the file in bytes.

    Returns:
        The limit in bytes.
    """
    return min(FLOOR + RATIO * size, LARGEST)
