"""Random numbers that are functions of what they are for, not of what was drawn before.

Order, masks and sentence pairs depend on (seed, epoch, sample, place) alone, so a run can be
resumed at any step, split over any number of workers, and gives the same batches.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014), which spreads every bit over all."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hashed(*keys: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each combination of keys (whole numbers, broadcast together)."""
    arrays = np.broadcast_arrays(*(np.asarray(key).astype(np.uint64) for key in keys))
    state = np.zeros(arrays[0].shape, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64 on purpose
        for array in arrays:
            state = _mix(state + _GOLDEN + _mix(array + _GOLDEN))
    return state


def uniform(*keys: ArrayLike) -> NDArray[np.float64]:
    """A number in [0, 1) for each combination of keys."""
    return (hashed(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=4)  # every step of an epoch asks for the same one
def permutation(count: int, *keys: int) -> NDArray[np.int64]:
    """An order of ``count`` things for these keys."""
    return np.argsort(hashed(*keys, np.arange(count)), kind="stable")
