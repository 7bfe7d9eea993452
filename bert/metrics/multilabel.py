"""Scores of answers that may hold several labels, from counts that rows add to.

For each label three counts decide: how often it was there and predicted (hits), there
(truths), predicted (guesses). Precision is hits / guesses, recall hits / truths, and F1
2 hits / (truths + guesses). ``micro`` takes the counts of all labels together, ``macro`` is
the plain mean over the labels that occur among the true or the predicted ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bert.errors import DataError
from bert.metrics.intervals import Quality, RowSums, quality, share

KINDS = ("precision", "recall", "f1")


class LabelCounts:
    """Hits, truths and guesses of each label, summed over rows; memory flat in the rows.

    Args:
        names: of the labels; more can be appended while rows are added.
        seed: of the bootstrap over rows.
    """

    def __init__(self, names: Sequence[str] = (), seed: int = 0) -> None:
        self.names = list(names)
        self.rows = 0
        self._sums = RowSums(seed)

    def add(self, counts: NDArray[Any]) -> None:
        """Add rows [n, L, 3]: the hits, truths and guesses of each label in each."""
        self.rows += len(counts)
        self._sums.add(counts.reshape(len(counts), 3 * counts.shape[1]))  # [n, L * 3]

    def figures(self) -> dict[str, Any]:
        """``rows``; ``micro``, ``macro`` and, by name, ``per_label`` (with ``support``).

        Each holds ``precision``, ``recall`` and ``f1`` as ``{"value", "low", "high"}``, 95%
        bootstrap over rows. An undefined score is 0, its interval 0 to 1.

        Raises:
            DataError: no rows were added.
        """
        if not self.rows:
            raise DataError("There are no rows to score.", fix="Give at least one row.")
        draws = self._sums.draws()
        width = 3 * len(self.names)
        scores = _scores(_widen(self._sums.totals[None], width))[:, 0]  # [2 + L, 3]
        drawn = _scores(_widen(draws, width))  # [2 + L, samples, 3]
        found = [
            {
                kind: quality(float(scores[place, number]), drawn[place, :, number])
                for number, kind in enumerate(KINDS)
            }
            for place in range(len(scores))
        ]
        truths = _widen(self._sums.totals[None], width)[0, 1::3]
        return {
            "rows": self.rows,
            "micro": found[0],
            "macro": found[1],
            "per_label": {
                name: {**found[2 + label], "support": round(float(truths[label]))}
                for label, name in enumerate(self.names)
            },
        }


class MultilabelTally:
    """Micro and macro F1, each label's, and the share of rows with all labels right.

    Args:
        names: the L names of the labels.
        seed: of the bootstrap.
    """

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self._counts = LabelCounts(names, seed)
        self._right = 0

    def add(self, truth: ArrayLike, predicted: ArrayLike) -> None:
        """Add rows.

        Args:
            truth: whether each label is there, [n, L] of 0 and 1 (or one row [L]).
            predicted: whether it was predicted, the same shape.

        Raises:
            DataError: other shapes, or other values than 0 and 1.
        """
        there, said = _flags(truth, "truth"), _flags(predicted, "predicted")
        labels = len(self._counts.names)
        if there.shape != said.shape or there.shape[1:] != (labels,):
            raise DataError(
                f"The labels have the shapes {list(there.shape)} and {list(said.shape)}, "
                f"but there are {labels} names.",
                fix="Give one column for each name, for the same rows.",
            )
        self._counts.add(np.stack([there & said, there, said], axis=-1))
        self._right += int((there == said).all(axis=1).sum())

    def figures(self) -> dict[str, Any]:
        """Those of ``LabelCounts``, and ``subset_accuracy``: rows with every label right.

        Raises:
            DataError: no rows were added.
        """
        found = self._counts.figures()
        accuracy: Quality = share(self._right, found["rows"])
        return {**found, "subset_accuracy": accuracy}


def _scores(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Micro, macro and each label's scores of counts [s, L * 3]: [2 + L, s, 3], NaN undefined."""
    table = counts.reshape(len(counts), counts.shape[1] // 3, 3)  # [s, L, 3]
    table = np.concatenate([table.sum(axis=1, keepdims=True), table], axis=1)  # micro first
    hits, truths, guesses = np.moveaxis(table, -1, 0)  # each [s, 1 + L]
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.stack([hits / guesses, hits / truths, 2 * hits / (truths + guesses)], axis=-1)
        occurs = (truths + guesses > 0)[:, 1:, None]  # [s, L, 1]
        filled = np.where(occurs, np.nan_to_num(scores[:, 1:], nan=0.0), 0.0)
        macro = filled.sum(axis=1) / occurs.sum(axis=1)  # [s, 3]
    joined = np.concatenate([scores[:, :1], macro[:, None], scores[:, 1:]], axis=1)
    return np.moveaxis(joined, 1, 0)


def _widen(sums: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Sums [s, W] with zeros for the labels that came after the last row."""
    return np.pad(sums, ((0, 0), (0, width - sums.shape[1])))


def _flags(values: ArrayLike, what: str) -> NDArray[np.bool_]:
    array = np.atleast_2d(np.asarray(values))
    if array.size and not np.isin(array, (0, 1)).all():
        raise DataError(
            f"The {what} labels must be 0 or 1 each.", fix="Compare probabilities to thresholds."
        )
    return array.astype(bool)
