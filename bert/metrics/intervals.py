"""Confidence intervals: the percentile bootstrap, Wilson's for shares, Student's for seeds.

A score on 200 rows is one draw of what could have been: other 200 rows would have given
another. Drawing the rows again with replacement, many times, shows how far it moves
(Efron 1979). The middle 95% of those scores is the interval.

Three ways in. ``bootstrap`` draws rows and fits every score. Where a score depends only on
how often each kind of row occurs (the cells of a confusion matrix), ``resample_counts``
draws those counts instead: exactly the same distribution at a cost that does not grow
with the number of rows. Where it depends on sums over rows that arrive one after the
other, ``RowSums`` keeps the sums of all draws at once and no row.

``share`` is for plain shares of rows, and knows the noise of a share of 0 or 1 too.
``mean_interval`` is for the same score of several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bert.errors import DataError

SAMPLES = 1000
CONFIDENCE = 0.95
Quality = dict[str, float]
# 2 ** 16 numbers as often 0, 1, 2 ... as a Poisson variable of mean 1: looking one up at a
# random place is ten times faster than drawing it.
POISSON = np.repeat(
    np.arange(9),
    np.diff(
        np.round(65536 * np.cumsum([0, *(math.exp(-1) / math.factorial(k) for k in range(9))]))
    ).astype(int),
).astype(np.float64)


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


class RowSums:
    """Sums over rows that stream past, for the rows themselves and for every draw of them.

    Each row counts in a draw as often as a Poisson variable of mean 1 says, which for more
    than a few rows is drawing with replacement (Hanley and MacGibbon 2006), and needs no
    row twice. Memory does not grow with the rows; the result does not depend on how they
    are grouped into calls.

    Attributes:
        totals: the sums of the rows [W].
    """

    block = 256

    def __init__(self, seed: int = 0) -> None:
        self.totals = np.zeros(0)
        self._draws = np.zeros((SAMPLES, 0))
        self._waiting: list[NDArray[np.float64]] = []
        self._rows = 0
        self._rng = np.random.default_rng(seed)

    def add(self, rows: ArrayLike) -> None:
        """Add rows [n, W]. W may grow: earlier rows are then zero in the new columns."""
        array = np.asarray(rows, dtype=np.float64)
        for start in range(0, len(array), self.block):
            part = array[start : start + self.block]
            self._waiting.append(part)
            self._rows += len(part)
            if self._rows >= self.block:
                self._flush()

    def draws(self) -> NDArray[np.float64]:
        """The sums of 1,000 draws of the rows [samples, W]."""
        self._flush()
        return self._draws

    def _flush(self) -> None:
        for part in self._waiting:
            wider = part.shape[1] - len(self.totals)
            if wider > 0:
                self.totals = np.pad(self.totals, (0, wider))
                self._draws = np.pad(self._draws, ((0, 0), (0, wider)))
        if self._waiting:
            width = len(self.totals)
            rows = np.concatenate(
                [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in self._waiting]
            )
            places = self._rng.integers(0, len(POISSON), (len(rows), SAMPLES), dtype=np.uint16)
            self.totals = self.totals + rows.sum(axis=0)
            self._draws += POISSON[places].T @ rows  # [samples, n] @ [n, W]
        self._waiting, self._rows = [], 0


def quality(
    value: float, draws: NDArray[np.float64], unknown: tuple[float, float] = (0.0, 1.0)
) -> Quality:
    """A score with its interval, ready for JSON.

    Args:
        value: the score; NaN where it is undefined.
        draws: its draws [samples].
        unknown: the least and the greatest the score could be: the interval of an undefined
            one, whose value is given as 0.
    """
    if math.isnan(value):
        return {"value": 0.0, "low": unknown[0], "high": unknown[1]}
    low, high = percentiles(draws, np.asarray(value, dtype=float))
    return {"value": float(value), "low": float(low), "high": float(high)}


def share(hits: float, rows: float) -> Quality:
    """A share of rows with Wilson's 95% interval (1927), ready for JSON.

    Unlike the bootstrap's it is not empty where all rows, or none, are hits.

    Args:
        hits: how many rows are, from 0 to ``rows``.
        rows: of how many; without any the share is 0 and the interval 0 to 1.
    """
    if rows <= 0:
        return {"value": 0.0, "low": 0.0, "high": 1.0}
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    value = hits / rows
    middle = value + z * z / (2 * rows)
    half = z * math.sqrt(max(0.0, value * (1 - value)) / rows + (z / (2 * rows)) ** 2)
    whole = 1 + z * z / rows
    # Rounding must not leave the value outside.
    low, high = max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def mean_interval(values: Sequence[float]) -> Quality:
    """The mean of one score over seeds, with Student's 95% interval (1908).

    Args:
        values: the score of each seed, at least two.

    Raises:
        DataError: fewer than two values, or one that is no finite number.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < 2:
        raise DataError(
            "One seed tells nothing of the spread between seeds.", fix="run two or more: --seeds 5"
        )
    if not np.isfinite(array).all():
        seed = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(
            f"The score of seed {seed + 1} is {array[seed]}.", fix="leave the failed run out"
        )
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    mean = float(array.mean())
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    half = float(stdtrit(len(array) - 1, (1 + CONFIDENCE) / 2)) * error
    return {"value": mean, "low": mean - half, "high": mean + half}


def intervals_overlap(left: Sequence[float], right: Sequence[float]) -> bool:
    """Whether the intervals of the means of two sets of seeds share a point.

    Where they do not, the difference is more than noise; where they do it may still be.

    Raises:
        DataError: as ``mean_interval``.
    """
    first, second = mean_interval(left), mean_interval(right)
    return first["low"] <= second["high"] and second["low"] <= first["high"]
