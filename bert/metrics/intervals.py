"""Confidence intervals by the percentile bootstrap.

A score on 200 rows is one draw of what could have been: other 200 rows would have given
another. Drawing the rows again with replacement, many times, shows how far it moves
(Efron 1979). The middle 95% of those scores is the interval.

Two ways in. ``bootstrap`` draws rows and fits every score. Where a score depends only on
how often each kind of row occurs (the cells of a confusion matrix), ``resample_counts``
draws those counts instead: exactly the same distribution at a cost that does not grow
with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert.errors import DataError

SAMPLES = 1000
CONFIDENCE = 0.95


def bootstrap(
    statistic: Callable[..., float],
    arrays: Sequence[NDArray[Any]],
    samples: int = SAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """The interval of a score over rows, by drawing the rows with replacement.

    Args:
        statistic: takes the arrays, row-aligned, and returns one number; NaN where a draw
            leaves it undefined, and that draw is then left out.
        arrays: one or more arrays [n, ...] whose first axis is the rows.
        samples: how many times to draw.
        seed: the same seed gives the same interval.
        confidence: the share of the drawn scores inside the interval.

    Returns:
        (low, high). It always contains the score of the rows themselves.

    Raises:
        DataError: no arrays, no rows, or arrays of different lengths.
    """
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise DataError(
            f"The arrays must have one length, not {sorted(lengths)}.",
            fix="Give truth and predictions of the same rows.",
        )
    rows = lengths.pop()
    if rows == 0:
        raise DataError("There are no rows to score.", fix="Give at least one row.")
    rng = np.random.default_rng(seed)
    draws = np.empty(samples)
    for sample in range(samples):
        chosen = rng.integers(rows, size=rows)
        draws[sample] = statistic(*(array[chosen] for array in arrays))
    low, high = percentiles(draws, np.asarray(statistic(*arrays), dtype=float), confidence)
    return float(low), float(high)


def resample_counts(
    counts: NDArray[np.int64],
    samples: int = SAMPLES,
    seed: int = 0,
    *,
    chunk_cells: int = 2_000_000,
) -> Iterator[NDArray[np.int64]]:
    """Counts [K] of kinds of rows, as they come out when the rows are drawn with replacement.

    Drawing n rows with replacement and counting their kinds is a multinomial draw of n
    with the observed shares, so the rows are never touched.

    Args:
        counts: how many rows there are of each kind, [K]; at least one row in all.
        samples: how many draws.
        seed: the same seed gives the same draws.
        chunk_cells: draws are handed out in blocks of about so many numbers, which bounds
            the memory; the draws do not depend on it.

    Yields:
        Blocks [s, K] of draws, ``samples`` rows in all.
    """
    rng = np.random.default_rng(seed)
    rows = int(counts.sum())
    shares = counts / rows
    block = max(1, chunk_cells // max(1, len(counts)))
    for start in range(0, samples, block):
        yield rng.multinomial(rows, shares, size=min(block, samples - start))


def percentiles(
    draws: NDArray[np.float64], value: NDArray[np.float64], confidence: float = CONFIDENCE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middle part of drawn scores.

    The interval is widened to contain the value where it does not: the draws of a skewed
    score (the F1 of a rare label) can lie to one side of it.

    Args:
        draws: scores [samples, ...]; NaN ones are left out.
        value: the scores themselves [...].
        confidence: the share of the draws inside.

    Returns:
        (low [...], high [...]); both equal the value where every draw is NaN.
    """
    undefined = np.isnan(draws).all(axis=0)
    outside = (1 - confidence) / 2
    # Columns without any number would make nanquantile warn.
    low, high = np.nanquantile(np.where(undefined, 0.0, draws), [outside, 1 - outside], axis=0)
    low = np.where(undefined, value, np.fmin(low, value))
    high = np.where(undefined, value, np.fmax(high, value))
    return low, high
