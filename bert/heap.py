"""What the C library does with memory that tensors have freed; on Linux alone."""

from __future__ import annotations

import ctypes
import sys

# Of ``mallopt`` in <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have this process keep large blocks that are freed, for the next step to take again.

    glibc hands them back to the system, which clears every page anew when it is next touched:
    a twelfth of a fine-tuning step on a CPU (``benchmarks/shapes.py``). Elsewhere nothing is done.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give the system what this process holds and does not use.

    Batches of ever other shapes leave holes that fit nothing: a server that held 480 MiB in use
    had grown to twice that in a quarter of an hour. Elsewhere nothing is done.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
