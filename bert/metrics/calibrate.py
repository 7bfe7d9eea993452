"""Whether a model's confidence can be trusted, and how to make it so.

A model is calibrated if of the answers it gives with confidence 0.8, eight in ten are
right. Temperature scaling divides all logits by one number found on held-out rows (Guo et
al. 2017); it changes no answer. Thresholds for labels of which several may hold are found
on held-out rows too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bert.errors import DataError
from bert.metrics.intervals import RowSums, quality, resample_counts, share

BINS = 15
COVERAGES = tuple(step / 20 for step in range(1, 21))
TEMPERATURES = (0.05, 20.0)
# Rows are counted in narrow cells, narrower towards 0 and 1 where confidences crowd. Each
# edge of the 15 bins is an edge of cells, so nothing is lost for the bins.
BIN_EDGES = np.linspace(0, 1, BINS + 1)
EDGES = np.unique(np.concatenate([BIN_EDGES, 1 / (1 + np.exp(-np.linspace(-18, 18, 1441)))]))
BIN_OF_CELL = np.searchsorted(BIN_EDGES, EDGES[1:]) - 1


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """The temperature that makes held-out rows likeliest; never worse on them than 1.

    Args:
        logits: [R, L].
        truth: the label's number [R] where one label holds (softmax), or 0 and 1 [R, L]
            where several may (sigmoid).

    Returns:
        T between 0.05 and 20: probabilities are softmax(logits / T), or sigmoid.

    Raises:
        DataError: no rows, shapes that do not fit, logits that are not finite.
    """
    scores, target = np.asarray(logits, dtype=np.float64), np.asarray(truth)
    if not scores.size or scores.ndim != 2 or target.shape not in (scores.shape, scores.shape[:1]):
        raise DataError(
            f"Logits of the shape {list(scores.shape)} do not fit truth of {list(target.shape)}.",
            fix="Give logits [R, L], and the labels' numbers [R] or 0 and 1 [R, L].",
        )
    if not np.isfinite(scores).all():
        raise DataError("Some logits are not finite.", fix="Train the model again.")
    several = target.ndim == 2
    if several:  # yes and no of each label are two classes with the logits z and 0
        scores = np.stack([np.zeros_like(scores), scores], axis=-1).reshape(-1, 2)
    target = target.reshape(-1).astype(np.int64)[:, None]
    own = np.take_along_axis(scores, target, axis=1)[:, 0]
    best = scores.max(axis=1, keepdims=True)

    def loss_and_slope(inverse: float) -> tuple[float, float]:
        weights = np.exp(inverse * (scores - best))
        sums = weights.sum(axis=1)
        loss = np.log(sums) + inverse * (best[:, 0] - own)
        return float(loss.mean()), float(((weights * scores).sum(axis=1) / sums - own).mean())

    # The loss is convex in 1 / T: halve the interval in which its slope changes sign.
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if loss_and_slope(middle)[1] < 0 else (low, middle)
    inverse = (low * high) ** 0.5
    return 1 / inverse if loss_and_slope(inverse)[0] < loss_and_slope(1.0)[0] else 1.0


def best_thresholds(probabilities: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """For each label the probability from which on predicting it gives the greatest F1.

    Halfway between the two probabilities it has to part; 0.5 where that is as good, and for
    a label without any true row.

    Args:
        probabilities: [R, L].
        truth: 0 or 1 [R, L].
    """
    table, there = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=bool)
    found = np.full(table.shape[1], 0.5)
    for label in range(table.shape[1]):
        order = np.argsort(-table[:, label], kind="stable")
        ranked, hits = table[order, label], np.cumsum(there[order, label])
        if not len(order) or not hits[-1]:
            continue
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + hits[-1])
        f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal probabilities cannot be parted
        best, plain = int(np.argmax(f1)), int((ranked >= 0.5).sum())
        if plain and f1[plain - 1] >= f1[best]:
            continue
        following = ranked[best + 1] if best + 1 < len(order) else 0.0
        middle = (ranked[best] + following) / 2
        found[label] = middle if middle > following else ranked[best]
    return found


def threshold_curve(probabilities: ArrayLike, truth: ArrayLike) -> dict[str, list[float]]:
    """Precision, recall and F1 at the thresholds 0, 0.01 ... 1 of one label, for a plot.

    Args:
        probabilities: [R].
        truth: 0 or 1 [R].

    Returns:
        ``threshold``, ``precision``, ``recall``, ``f1``, each [101]; NaN where undefined.
    """
    chance, there = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=bool)
    thresholds = np.arange(101) / 100
    guesses = len(chance) - np.searchsorted(np.sort(chance), thresholds)
    hits = there.sum() - np.searchsorted(np.sort(chance[there]), thresholds)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = (hits / guesses, hits / there.sum(), 2 * hits / (guesses + there.sum()))
    names = ("threshold", "precision", "recall", "f1")
    return dict(zip(names, (row.tolist() for row in (thresholds, *scores)), strict=True))


class CalibrationTally:
    """Calibration error, Brier score, reliability and abstain curve; memory flat in the rows.

    Args:
        seed: of the bootstrap.
    """

    def __init__(self, seed: int = 0) -> None:
        self._counts = np.zeros((len(EDGES) - 1, 2), dtype=np.int64)  # wrong, right
        self._confidence = np.zeros(len(EDGES) - 1)
        self._brier = RowSums(seed)
        self._seed = seed

    def add(self, probabilities: ArrayLike, truth: ArrayLike) -> None:
        """Add rows with a probability for each label.

        Args:
            probabilities: [n, L].
            truth: the label's number [n], or 0 and 1 [n, L] where several labels may hold;
                each label of each row is then a decision of its own, yes from 0.5 on.
        """
        table, target = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
        if target.ndim == 2:
            chance, there = table.ravel(), target.ravel().astype(bool)
            self.add_answers(np.maximum(chance, 1 - chance), (chance >= 0.5) == there)
            return
        squares = (table - np.eye(table.shape[1])[target]) ** 2
        right = table.argmax(axis=1) == target
        self._add(table.max(axis=1), right, squares.sum(axis=1) / 2)

    def add_answers(self, confidence: ArrayLike, right: ArrayLike) -> None:
        """Add answers [n] of any kind: the confidence of each, and whether it is right."""
        sure = np.atleast_1d(np.asarray(confidence, dtype=np.float64))
        correct = np.atleast_1d(np.asarray(right, dtype=bool))
        self._add(sure, correct, (sure - correct) ** 2)

    def figures(self) -> dict[str, Any]:
        """What was added, ready for JSON; a score is ``{"value", "low", "high"}``.

        Returns:
            ``rows``; ``accuracy``; ``expected_calibration_error`` over 15 bins of equal
            width (Guo et al. 2017); ``brier``, the mean of half the squared distance
            between probabilities and truth, 0 to 1; ``reliability``, for each bin with rows
            ``low``, ``high``, ``rows``, mean ``confidence`` and ``accuracy``; ``abstain``,
            for each coverage (share of rows answered, the surest first) the least
            ``confidence`` and the ``accuracy``; ``abstain_area``, the mean accuracy over
            all coverages.

        Raises:
            DataError: no rows were added.
        """
        rows = int(self._counts.sum())
        if not rows:
            raise DataError("There are no rows to score.", fix="Give at least one row.")
        cell, right = np.nonzero(self._counts)
        mean = self._confidence / np.maximum(self._counts.sum(axis=1), 1)  # of each cell
        counts = self._counts[cell, right]
        drawn = [
            _curve_scores(part, cell, right, mean)
            for part in resample_counts(counts, seed=self._seed)
        ]
        draws = np.concatenate(drawn, axis=1)  # [2, samples]
        error, area = _curve_scores(counts[None], cell, right, mean)[:, 0]
        brier = self._brier.draws()
        with np.errstate(invalid="ignore"):
            brier_draws = brier[:, 1] / brier[:, 0]
        return {
            "rows": rows,
            "accuracy": share(int(self._counts[:, 1].sum()), rows),
            "expected_calibration_error": quality(float(error), draws[0]),
            "brier": quality(float(self._brier.totals[1] / rows), brier_draws),
            "reliability": self._reliability(),
            "abstain": self._abstain(),
            "abstain_area": quality(float(area), draws[1]),
        }

    def _add(
        self, sure: NDArray[np.float64], right: NDArray[np.bool_], squares: NDArray[np.float64]
    ) -> None:
        if sure.shape != right.shape or sure.ndim != 1:
            raise DataError(
                f"{sure.size} confidences, but {right.size} answers.", fix="Give one for each."
            )
        if sure.size and not (sure.min() >= -1e-6 and sure.max() <= 1 + 1e-6):
            raise DataError("A confidence must lie between 0 and 1.", fix="Give probabilities.")
        cell = np.clip(np.searchsorted(EDGES, sure) - 1, 0, len(EDGES) - 2)  # low < sure <= high
        np.add.at(self._counts, (cell, right.astype(np.int64)), 1)
        np.add.at(self._confidence, cell, sure)
        self._brier.add(np.stack([np.ones(len(sure)), squares], axis=1))

    def _reliability(self) -> list[dict[str, Any]]:
        table = []
        for number in range(BINS):
            inside = number == BIN_OF_CELL
            wrong, right = (int(count) for count in self._counts[inside].sum(axis=0))
            if wrong + right:
                table.append(
                    {
                        "low": float(BIN_EDGES[number]),
                        "high": float(BIN_EDGES[number + 1]),
                        "rows": wrong + right,
                        "confidence": float(self._confidence[inside].sum() / (wrong + right)),
                        "accuracy": share(right, wrong + right),
                    }
                )
        return table

    def _abstain(self) -> list[dict[str, Any]]:
        surest = self._counts[::-1]
        answered = np.append(0, np.cumsum(surest.sum(axis=1)))
        right = np.append(0, np.cumsum(surest[:, 1]))
        table = []
        for coverage in COVERAGES:
            rows = coverage * answered[-1]
            cell = int(np.searchsorted(answered, rows)) - 1
            table.append(
                {
                    "coverage": coverage,
                    "confidence": float(EDGES[::-1][cell + 1]),
                    # Rows of one cell are equally sure: they count in proportion.
                    "accuracy": share(float(np.interp(rows, answered, right)), rows),
                }
            )
        return table


def _curve_scores(
    counts: NDArray[np.int64],
    cell: NDArray[np.intp],
    right: NDArray[np.intp],
    mean: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Calibration error and abstain area [2, s] of counts [s, K] of kinds of rows.

    Args:
        counts: of rows in a cell that are right, or wrong.
        cell: of each kind [K], ascending.
        right: 1 or 0 for each kind [K].
        mean: confidence of each cell.
    """
    rows = counts.sum(axis=1)
    gap = counts * (right - mean[cell])  # [s, K]
    starts = np.flatnonzero(np.diff(BIN_OF_CELL[cell], prepend=-1))
    error = np.abs(np.add.reduceat(gap, starts, axis=1)).sum(axis=1) / rows
    # The accuracy of the surest k rows is C(k) / k. Within a cell C grows evenly, by the
    # share r of its rows: the integral of (C0 + r (k - k0)) / k from k0 to k1 is below.
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    inside = np.add.reduceat(counts, starts, axis=1)[:, ::-1].astype(np.float64)
    hits = np.add.reduceat(counts * right, starts, axis=1)[:, ::-1].astype(np.float64)
    k1, c1 = np.cumsum(inside, axis=1), np.cumsum(hits, axis=1)
    k0, c0 = k1 - inside, c1 - hits
    grow = hits / np.maximum(inside, 1)
    ratio = np.where(k0 > 0, k1 / np.maximum(k0, 1), 1.0)
    area = ((c0 - grow * k0) * np.log(ratio) + hits).sum(axis=1) / rows
    return np.stack([error, area])
