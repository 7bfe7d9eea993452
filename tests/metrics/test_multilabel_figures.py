from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from bert.errors import DataError
from bert.metrics.multilabel import KINDS, MultilabelTally

NAMES = ["joy", "愤怒", "fear"]
tables = arrays.arrays(
    np.int64, st.tuples(st.integers(1, 12), st.just(6)), elements=st.integers(0, 1)
)


@given(tables, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_scikit_learn(table: np.ndarray, cut: int) -> None:
    truth, predicted = table[:, :3], table[:, 3:]
    tally = MultilabelTally(NAMES)
    for part in (slice(0, cut), slice(cut, None)):
        tally.add(truth[part], predicted[part])
    figures = tally.figures()
    each = precision_recall_fscore_support(truth, predicted, zero_division=0)
    micro = precision_recall_fscore_support(truth, predicted, average="micro", zero_division=0)
    occur = np.flatnonzero((truth + predicted).any(axis=0))
    for place, kind in enumerate(KINDS):
        for number, name in enumerate(NAMES):
            assert figures["per_label"][name][kind]["value"] == pytest.approx(each[place][number])
            assert figures["per_label"][name]["support"] == each[3][number]
        assert figures["micro"][kind]["value"] == pytest.approx(micro[place])
        macro = each[place][occur].mean() if occur.size else 0
        assert figures["macro"][kind]["value"] == pytest.approx(macro)
    assert figures["subset_accuracy"]["value"] == pytest.approx(accuracy_score(truth, predicted))
    for part in (figures["micro"], figures["macro"], *figures["per_label"].values()):
        for kind in KINDS:
            score = part[kind]
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_rows_one_by_one_give_the_same() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 2, (2, 700, 3))
    together, single = MultilabelTally(NAMES), MultilabelTally(NAMES)
    together.add(truth, predicted)
    for row in range(700):
        single.add(truth[row], predicted[row])
    assert single.figures() == together.figures()


def test_what_cannot_be_scored_is_told() -> None:
    tally = MultilabelTally(NAMES)
    with pytest.raises(DataError, match="no rows"):
        tally.figures()
    with pytest.raises(DataError, match="3 names"):
        tally.add([[1, 0]], [[1, 0]])
    with pytest.raises(DataError, match="shapes"):
        tally.add([[1, 0, 0]], [[1, 0, 0], [0, 0, 0]])
    with pytest.raises(DataError, match="0 or 1"):
        tally.add([[1, 0, 0]], [[0.7, 0, 0]])


def test_many_labels() -> None:
    labels = [str(number) for number in range(200)]
    rng = np.random.default_rng(0)
    tally = MultilabelTally(labels)
    for _ in range(4):
        truth = rng.random((500, 200)) < 0.01
        tally.add(truth, truth ^ (rng.random((500, 200)) < 0.001))
    figures = tally.figures()
    assert 0.9 < figures["micro"]["f1"]["value"] < 1
    assert figures["micro"]["f1"]["high"] - figures["micro"]["f1"]["low"] < 0.02
