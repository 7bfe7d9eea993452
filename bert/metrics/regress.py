"""Scores of numbers: correlations and errors of predicted against true ones.

Pearson's correlation tells how near the pairs lie to a line, Spearman's is Pearson's of the
ranks (equal numbers share their mean rank) and so asks for the right order only.
"""

from __future__ import annotations

import math
from array import array
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bert.errors import DataError
from bert.metrics.intervals import CONFIDENCE, Quality, RowSums, quality


class RegressionTally:
    """Pearson, Spearman, mean absolute and mean squared error; two numbers kept a row.

    Args:
        seed: of the bootstrap.
    """

    def __init__(self, seed: int = 0) -> None:
        self._truth = array("d")
        self._predicted = array("d")
        self._seed = seed

    def add(self, truth: ArrayLike, predicted: ArrayLike) -> None:
        """Add true and predicted numbers [n], or one of each.

        Raises:
            DataError: lengths that differ, or a number that is not finite (names the row).
        """
        true = np.atleast_1d(np.asarray(truth, dtype=np.float64))
        said = np.atleast_1d(np.asarray(predicted, dtype=np.float64))
        if true.shape != said.shape or true.ndim != 1:
            raise DataError(
                f"{true.size} true numbers, but {said.size} predicted ones.",
                fix="Give both for the same rows.",
            )
        wrong = np.flatnonzero(~(np.isfinite(true) & np.isfinite(said)))
        if wrong.size:
            raise DataError(
                f"Not both are finite: true {true[wrong[0]]}, predicted {said[wrong[0]]}.",
                where=f"row {len(self._truth) + wrong[0] + 1}",
                fix="Correct the row; a model that predicts no numbers has to be trained again.",
            )
        self._truth.frombytes(true.tobytes())
        self._predicted.frombytes(said.tobytes())

    def figures(self) -> dict[str, Any]:
        """``rows``, ``pearson``, ``spearman``, ``mean_absolute_error``, ``mean_squared_error``.

        A correlation with a constant is undefined: 0, its interval -1 to 1. The interval of
        Spearman's is Bonett and Wright's (2000), the others are bootstraps over rows.

        Raises:
            DataError: no rows were added.
        """
        if not self._truth:
            raise DataError("There are no rows to score.", fix="Give at least one row.")
        truth = np.frombuffer(self._truth, dtype=np.float64)
        predicted = np.frombuffer(self._predicted, dtype=np.float64)
        error = predicted - truth
        # Correlations do not depend on origin and scale; sums of large squares lose digits.
        x, y = _standard(truth), _standard(predicted)
        sums = RowSums(self._seed)
        for start in range(0, len(x), 65536):
            part = slice(start, start + 65536)
            a, b, e = x[part], y[part], error[part]
            ones = np.ones(len(a))
            sums.add(np.stack([ones, np.abs(e), e * e, a, b, a * a, b * b, a * b], axis=1))
        draws = sums.draws()
        rows, absolute, square = draws[:, :3].T
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = draws / rows[:, None]  # a draw of one row may hold none
            spread = (mean[:, 5] - mean[:, 3] ** 2) * (mean[:, 6] - mean[:, 4] ** 2)
            drawn = (mean[:, 7] - mean[:, 3] * mean[:, 4]) / np.sqrt(
                np.where(spread > 1e-12, spread, np.nan)
            )
            absolute, square = absolute / rows, square / rows
        return {
            "rows": len(truth),
            "pearson": quality(pearson(truth, predicted), np.clip(drawn, -1, 1), (-1.0, 1.0)),
            "spearman": _spearman_quality(spearman(truth, predicted), len(truth)),
            "mean_absolute_error": quality(float(np.abs(error).mean()), absolute),
            "mean_squared_error": quality(float((error**2).mean()), square),
        }


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two arrays [n]; NaN if one of them is constant."""
    product = _standard(np.asarray(x, dtype=np.float64)) @ _standard(np.asarray(y, np.float64))
    return float(np.clip(product / np.size(x), -1, 1)) if np.size(x) else float("nan")


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's correlation of two arrays [n]; NaN if one of them is constant."""
    return pearson(_ranks(np.asarray(x)), _ranks(np.asarray(y)))


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of mean 0 and deviation 1; NaN for a constant."""
    if not values.size or values.min() == values.max():
        return np.full(values.shape, np.nan)
    # Halved first: the difference of two huge numbers would be infinite.
    centred = values / 2 - (values / 2).mean()
    centred = centred / np.abs(centred).max()
    return np.asarray(centred / centred.std(), dtype=np.float64)


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[place], dtype=np.float64)


def _spearman_quality(value: float, rows: int) -> Quality:
    if math.isnan(value):
        return {"value": 0.0, "low": -1.0, "high": 1.0}
    if rows <= 3:
        return {"value": value, "low": -1.0, "high": 1.0}
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt((1 + value**2 / 2) / (rows - 3))
    inside = min(max(value, -1 + 1e-12), 1 - 1e-12)
    low, high = math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half)
    return {"value": value, "low": min(low, value), "high": max(high, value)}
