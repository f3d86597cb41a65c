"""How the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes

# Parameters of glibc's `mallopt`, and their values.
_OPTIONS = {
    -8: 1,  # M_ARENA_MAX: the arenas of threads hold blocks of at most 64 MB
    -3: 2**30,  # M_MMAP_THRESHOLD, bytes from which a block is returned as soon as it is freed
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD, freed bytes from which they are returned
}


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for later blocks, in place of returning it to the system.

    By default, blocks above 32 MB, such as the feature maps of an image batch, are returned, and the system clears
    each page of the next one. That takes as long as the network itself on a CPU. Call it before threads start. The
    setting holds for the whole process, whose memory then stays at its peak. Without glibc, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # another C library, or Windows
        return
    for option, value in _OPTIONS.items():
        mallopt(option, value)
