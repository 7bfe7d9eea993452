"""Scores of single-label classification, all from the confusion matrix.

The matrix [L, L] holds everything: rows are true labels, columns predicted ones. It can
be summed over batches, so memory stays flat however many rows are scored::

    matrix = sum(confusion_matrix(truth, predicted, len(names)) for truth, predicted in batches)
    metrics = metrics_of_confusion(matrix, names)

Precision is the share of a label's predictions that are right, recall the share of its
true rows that are found, F1 their harmonic mean; each is 0 where nothing was predicted,
or nothing was there to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bert.errors import DataError
from bert.metrics.intervals import percentiles, resample_counts

KINDS = ("precision", "recall", "f1")


def classification_metrics(
    truth: ArrayLike, predicted: ArrayLike, names: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Accuracy, precision, recall and F1 with 95% intervals, ready for JSON.

    The same as ``metrics_of_confusion(confusion_matrix(truth, predicted, L), names)``,
    where what is returned is told.

    Args:
        truth: label numbers [n], each in 0 .. L - 1.
        predicted: label numbers [n].
        names: the L names of the labels, in order of their numbers.
        seed: of the bootstrap.

    Raises:
        DataError: no rows, lengths that differ, a number that is no label.
    """
    return metrics_of_confusion(confusion_matrix(truth, predicted, len(names)), names, seed=seed)


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, labels: int) -> NDArray[np.int64]:
    """How often each true label (row) was given each predicted label (column).

    Args:
        truth: label numbers [n], each in 0 .. labels - 1.
        predicted: label numbers [n].
        labels: L, how many labels there are.

    Returns:
        Counts [L, L]; all zero for no rows, so that batches can be summed.

    Raises:
        DataError: lengths that differ, a number that is no label (names the row).
    """
    rows = _label_numbers(truth, "truth", labels)
    columns = _label_numbers(predicted, "predicted", labels)
    if len(rows) != len(columns):
        raise DataError(
            f"{len(rows)} true labels, but {len(columns)} predicted ones.",
            fix="Give both for the same rows.",
        )
    return np.bincount(rows * labels + columns, minlength=labels * labels).reshape(labels, labels)


def metrics_of_confusion(
    confusion: ArrayLike, names: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Every score that a confusion matrix holds, with 95% intervals, ready for JSON.

    ``macro`` is the plain mean over the labels that occur among the true or the predicted
    ones (scikit-learn's default too), not over names that never occur. ``weighted`` is the
    mean weighted by support. ``majority_accuracy`` is what always answering the most
    frequent true label would score: the number to beat.

    The intervals are 95% percentile bootstraps over rows, 1,000 draws. They tell the noise
    of these rows only, and cannot tell it for a score of exactly 0 or 1, whose every draw
    is the same: look at the support. Where a score is undefined (the recall of a label
    with no rows) its value is 0 and the interval 0 to 1: nothing is known.

    Args:
        confusion: counts [L, L], rows true, columns predicted.
        names: the L names of the labels.
        seed: of the bootstrap.

    Returns:
        ``rows``; ``accuracy``; ``macro`` and ``weighted``, each with ``precision``,
        ``recall`` and ``f1``; ``per_label``, by name, with those three and ``support``;
        ``majority_accuracy`` with ``label`` and ``value``; ``confusion`` as lists. A score
        is ``{"value", "low", "high"}``.

    Raises:
        DataError: no rows, a matrix that does not fit the names, two equal names.
    """
    matrix = np.asarray(confusion, dtype=np.int64)
    _check(matrix, names)

    # Only cells that hold rows can be drawn: K of the L * L, row by row.
    row, column = np.nonzero(matrix)
    cells = matrix[row, column]
    truths, guesses = matrix.sum(axis=1), matrix.sum(axis=0)
    per_label, overall = _scores(np.diagonal(matrix), truths, guesses)

    label_draws, overall_draws = [], []
    for counts in resample_counts(cells, seed=seed):
        scores = _scores(
            _sum_cells(np.where(row == column, counts, 0), row, len(names)),
            _sum_cells(counts, row, len(names)),
            _sum_cells(counts, column, len(names)),
        )
        label_draws.append(scores[0])
        overall_draws.append(scores[1])
    label_low, label_high = percentiles(np.concatenate(label_draws), per_label)
    overall_low, overall_high = percentiles(np.concatenate(overall_draws), overall)
    undefined = np.isnan(per_label)
    per_label = np.where(undefined, 0.0, per_label)
    label_low = np.where(undefined, 0.0, label_low)
    label_high = np.where(undefined, 1.0, label_high)

    averages = [
        {"value": float(value), "low": float(low), "high": float(high)}
        for value, low, high in zip(overall, overall_low, overall_high, strict=True)
    ]
    majority = int(truths.argmax())
    return {
        "rows": int(matrix.sum()),
        "accuracy": averages[0],
        "macro": dict(zip(KINDS, averages[1:4], strict=True)),
        "weighted": dict(zip(KINDS, averages[4:7], strict=True)),
        "per_label": {
            name: {
                **{
                    kind: {
                        "value": float(per_label[score, label]),
                        "low": float(label_low[score, label]),
                        "high": float(label_high[score, label]),
                    }
                    for score, kind in enumerate(KINDS)
                },
                "support": int(truths[label]),
            }
            for label, name in enumerate(names)
        },
        "majority_accuracy": {
            "label": names[majority],
            "value": float(truths[majority] / matrix.sum()),
        },
        "confusion": matrix.tolist(),
    }


def _scores(
    hits: NDArray[np.int64], truths: NDArray[np.int64], guesses: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of right, true and predicted counts per label, each [..., L].

    Returns:
        Precision, recall and F1 per label [..., 3, L], NaN where undefined; and
        [..., 7]: accuracy, the three macro averages, the three weighted ones.
    """
    per_label = np.stack(
        [_divide(hits, guesses), _divide(hits, truths), _divide(2 * hits, truths + guesses)],
        axis=-2,
    )  # [..., 3, L]
    filled = np.nan_to_num(per_label, nan=0.0)
    rows = truths.sum(axis=-1)  # [...]
    occurs = truths + guesses > 0  # [..., L]
    accuracy = hits.sum(axis=-1) / rows
    macro = (filled * occurs[..., None, :]).sum(axis=-1) / occurs.sum(axis=-1)[..., None]
    weighted = (filled * truths[..., None, :]).sum(axis=-1) / rows[..., None]
    return per_label, np.concatenate([accuracy[..., None], macro, weighted], axis=-1)


def _divide(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """``part / whole``, NaN where the whole is nothing."""
    share = np.full(part.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share


def _sum_cells(
    counts: NDArray[np.int64], label: NDArray[np.int64], labels: int
) -> NDArray[np.int64]:
    """Counts [s, K] summed over the cells of the same label: [s, L]."""
    order = np.argsort(label, kind="stable")
    present, starts = np.unique(label[order], return_index=True)
    sums = np.zeros((len(counts), labels), dtype=np.int64)
    sums[:, present] = np.add.reduceat(counts[:, order], starts, axis=1)
    return sums


def _label_numbers(values: ArrayLike, what: str, labels: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(
            f"The {what} labels must be a list of whole numbers, "
            f"not {array.dtype} of shape {list(array.shape)}.",
            fix="Give each label as its number, the place of its name in the list of names.",
        )
    numbers = array.astype(np.int64)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= labels))
    if wrong.size:
        raise DataError(
            f"The {what} label {numbers[wrong[0]]} is none of 0 to {labels - 1}.",
            where=f"row {wrong[0] + 1}",
            fix="Use the list of names that the labels were numbered with.",
        )
    return numbers


def _check(matrix: NDArray[np.int64], names: Sequence[str]) -> None:
    if matrix.shape != (len(names), len(names)):
        raise DataError(
            f"The confusion matrix has the shape {list(matrix.shape)}, "
            f"but there are {len(names)} names.",
            fix="Give one name for each row and column.",
        )
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise DataError(
            f"The label name {repeated[0]!r} is given twice.",
            fix="Give every label its own name.",
        )
    if (matrix < 0).any():
        raise DataError(
            "The confusion matrix has negative counts.", fix="Give counts of rows, from 0 up."
        )
    if matrix.sum() == 0:
        raise DataError(
            "There are no rows to score.", fix="Give at least one row with a true label."
        )
