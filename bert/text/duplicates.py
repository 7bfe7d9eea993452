"""The sieve: documents that say nearly the same as an earlier one are found. Layer 1.

MinHash (Broder 1997) with one permutation (Li, Owen & Zhang 2012): every shingle of five units
is hashed once, falls into one of 120 bins, and the least value of each bin is the signature. An
empty bin borrows from the next one that is not (Shrivastava & Li 2014). The share of equal
places in two signatures estimates the Jaccard similarity of the documents, with a standard
deviation of at most 0.05. Candidates are those that agree on one of 20 bands of 6 places:
of the pairs with a similarity of 0.8 that finds 99.8%.

Units are whatever numbers text has become: word pieces, and so characters in Chinese.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5  # units
BANDS, ROWS = 20, 6
PLACES = BANDS * ROWS
_EMPTY = np.uint32(0xFFFFFFFF)
_BLOCK = 2**16  # signatures in memory at a time


def signatures(units: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The signatures of documents.

    Args:
        units: [T] whole numbers, one document after the other.
        starts: [documents + 1] where each begins in ``units``, and the end of the last.

    Returns:
        [documents, PLACES]; zeros for a document of fewer than ``SHINGLE`` units.
    """
    count = len(starts) - 1
    places = np.full(count * PLACES, _EMPTY)
    hashes = _mixed(units.astype(np.uint64))
    shingles = hashes[: max(len(units) - SHINGLE + 1, 0)].copy()
    for offset in range(1, SHINGLE):
        shingles *= np.uint64(0x9E3779B97F4A7C15)
        shingles += hashes[offset : offset + len(shingles)]
    lengths = np.diff(starts)
    owner = np.repeat(np.arange(count), lengths)
    whole = np.arange(len(shingles)) + SHINGLE <= starts[1:][owner[: len(shingles)]]
    shingles = _mixed(shingles[whole])
    bins = ((shingles >> np.uint64(32)) * np.uint64(PLACES)) >> np.uint64(32)
    slots = owner[: len(whole)][whole] * PLACES + bins.astype(np.int64)
    np.minimum.at(places, slots, shingles.astype(np.uint32))
    return _filled(places.reshape(count, PLACES))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of numbers, by the finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def _filled(places: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Signatures without empty places, 16 bits of each value."""
    column = np.arange(PLACES)
    twice = np.hstack([places, places])
    there = np.where(twice != _EMPTY, np.arange(2 * PLACES), 2 * PLACES)
    nearest = np.minimum.accumulate(there[:, ::-1], axis=1)[:, ::-1][:, :PLACES]
    steps = nearest - column  # to the place that lends; none in a document without shingles
    values = np.take_along_axis(places, nearest % PLACES, axis=1).astype(np.uint64)
    # How far the value came is mixed in, so that two empty places do not always agree.
    result = (_mixed(values + (steps.astype(np.uint64) << np.uint64(32))) >> np.uint64(48)).astype(
        np.uint16
    )
    result[(places == _EMPTY).all(axis=1)] = 0
    return result


def exact_duplicates(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each document the first one with the same hash; -1 where there is none before."""
    order = np.argsort(hashes, kind="stable")
    new = np.ones(len(order), bool)
    new[1:] = hashes[order[1:]] != hashes[order[:-1]]
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    result = np.full(len(hashes), -1, np.int64)
    result[order[~new]] = first[~new]
    return result


def near_duplicates(all_signatures: NDArray[np.uint16], similarity: float) -> NDArray[np.int64]:
    """For each document an earlier one that is at least so similar, by estimate; -1 for none.

    Takes memory of about 40 bytes a document beside the signatures, which may be a memory map.
    The documents that are like an earlier one are often like each other too: a chain counts as
    one group, and what is told is the nearest link before.

    Args:
        all_signatures: [documents, PLACES].
        similarity: the least share of equal places.
    """
    count = len(all_signatures)
    result = np.full(count, -1, np.int64)
    keys = np.empty(count, np.uint64)
    for band in range(BANDS):
        for start in range(0, count, _BLOCK):
            rows = all_signatures[start : start + _BLOCK, band * ROWS : (band + 1) * ROWS]
            key = np.zeros(len(rows), np.uint64)
            for row in range(ROWS):
                key = _mixed(key * np.uint64(0x9E3779B97F4A7C15) + rows[:, row] + np.uint64(1))
            keys[start : start + _BLOCK] = key
        order = np.argsort(keys, kind="stable")
        later = 1 + np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        for start in range(0, len(later), _BLOCK):
            here = later[start : start + _BLOCK]
            two, one = order[here], order[here - 1]
            a, b = all_signatures[two], all_signatures[one]
            alike = ((a == b).mean(axis=1) >= similarity) & a.any(axis=1)
            result[two[alike]] = np.maximum(result[two[alike]], one[alike])
    return result
