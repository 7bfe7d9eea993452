from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from bert.errors import DataError
from bert.metrics.classify import classification_metrics, confusion_matrix, metrics_of_confusion
from bert.metrics.intervals import bootstrap, percentiles, resample_counts

KINDS = ("precision", "recall", "f1")


@st.composite
def label_pairs(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """True and predicted labels of the same rows; not every label need occur."""
    labels = draw(st.integers(1, 6))
    pairs = draw(
        st.lists(
            st.tuples(st.integers(0, labels - 1), st.integers(0, labels - 1)),
            min_size=1,
            max_size=40,
        )
    )
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs], labels


def names_of(labels: int) -> list[str]:
    return [f"label {number}" for number in range(labels)]


def values_of(node: Any) -> list[dict[str, float]]:
    """Every score with an interval, however deep."""
    if not isinstance(node, dict):
        return []
    if set(node) == {"value", "low", "high"}:
        return [node]
    return [found for child in node.values() for found in values_of(child)]


@given(label_pairs())
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_scikit_learn(case: tuple[list[int], list[int], int]) -> None:
    truth, predicted, labels = case
    metrics = classification_metrics(truth, predicted, names_of(labels))

    each = precision_recall_fscore_support(truth, predicted, labels=range(labels), zero_division=0)
    for number, name in enumerate(names_of(labels)):
        row = metrics["per_label"][name]
        for place, kind in enumerate(KINDS):
            assert row[kind]["value"] == pytest.approx(each[place][number])
        assert row["support"] == each[3][number]
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(
            truth, predicted, average=average, zero_division=0
        )
        for place, kind in enumerate(KINDS):
            assert metrics[average][kind]["value"] == pytest.approx(expected[place])
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["rows"] == len(truth)


@given(label_pairs())
@settings(max_examples=40, deadline=None)
def test_intervals_contain_their_value_and_json_can_hold_them(
    case: tuple[list[int], list[int], int],
) -> None:
    truth, predicted, labels = case
    metrics = classification_metrics(truth, predicted, names_of(labels))
    found = values_of(metrics)
    assert len(found) == 1 + 3 + 3 + 3 * labels
    for score in found:
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@given(label_pairs(), st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_batches_can_be_summed(case: tuple[list[int], list[int], int], cut: int) -> None:
    truth, predicted, labels = case
    summed = confusion_matrix(truth[:cut], predicted[:cut], labels) + confusion_matrix(
        truth[cut:], predicted[cut:], labels
    )
    assert metrics_of_confusion(summed, names_of(labels)) == classification_metrics(
        truth, predicted, names_of(labels)
    )


def test_rows_of_the_matrix_are_true_labels() -> None:
    metrics = classification_metrics([0, 0, 0, 1], [0, 1, 1, 1], ["no", "yes"])
    assert metrics["confusion"] == [[1, 2], [0, 1]]
    assert metrics["majority_accuracy"] == {"label": "no", "value": 0.75}
    assert metrics["per_label"]["no"]["precision"]["value"] == 1
    assert metrics["per_label"]["no"]["recall"]["value"] == pytest.approx(1 / 3)


def test_a_label_that_never_occurs_is_unknown_and_not_averaged() -> None:
    metrics = classification_metrics([0, 1, 1], [0, 1, 1], ["a", "b", "never"])
    assert metrics["macro"]["f1"]["value"] == 1
    assert metrics["per_label"]["never"]["f1"] == {"value": 0, "low": 0, "high": 1}
    assert metrics["per_label"]["never"]["support"] == 0


def test_the_seed_alone_decides_the_intervals() -> None:
    matrix = [[30, 9], [4, 20]]
    first = metrics_of_confusion(matrix, ["a", "b"], seed=3)
    assert metrics_of_confusion(matrix, ["a", "b"], seed=3) == first
    assert metrics_of_confusion(matrix, ["a", "b"], seed=4) != first


def test_drawing_cells_is_drawing_rows() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    predicted = np.where(rng.random(300) < 0.7, truth, rng.integers(0, 3, 300))
    metrics = classification_metrics(truth, predicted, names_of(3))

    def macro_f1(true: np.ndarray, guessed: np.ndarray) -> float:
        matrix = confusion_matrix(true, guessed, 3)
        whole = matrix.sum(axis=0) + matrix.sum(axis=1)
        return float((2 * np.diagonal(matrix) / whole).mean())

    low, high = bootstrap(macro_f1, [truth, predicted], samples=2000)
    assert metrics["macro"]["f1"]["low"] == pytest.approx(low, abs=0.01)
    assert metrics["macro"]["f1"]["high"] == pytest.approx(high, abs=0.01)


def test_draws_do_not_depend_on_the_size_of_blocks() -> None:
    counts = np.array([5, 1, 30, 2])
    whole = np.concatenate(list(resample_counts(counts, 50, seed=1)))
    parts = list(resample_counts(counts, 50, seed=1, chunk_cells=28))
    assert max(map(len, parts)) == 7
    assert (np.concatenate(parts) == whole).all()
    assert (whole.sum(axis=1) == 38).all()


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # A known world: the share of each (true, predicted) pair. Scores of it are the truth.
    world = np.array([[0.35, 0.05, 0.02], [0.08, 0.25, 0.02], [0.03, 0.05, 0.15]])
    f1 = 2 * np.diagonal(world) / (world.sum(axis=0) + world.sum(axis=1))
    truth = {
        "accuracy": np.trace(world),
        "macro f1": f1.mean(),
        "f1": f1[1],
        "recall": world[2, 2] / world[2].sum(),
    }
    rng = np.random.default_rng(0)
    covered = dict.fromkeys(truth, 0)
    for trial in range(200):
        matrix = rng.multinomial(300, world.ravel()).reshape(3, 3)
        metrics = metrics_of_confusion(matrix, ["a", "b", "c"], seed=trial)
        scores = {
            "accuracy": metrics["accuracy"],
            "macro f1": metrics["macro"]["f1"],
            "f1": metrics["per_label"]["b"]["f1"],
            "recall": metrics["per_label"]["c"]["recall"],
        }
        for name, score in scores.items():
            covered[name] += score["low"] <= truth[name] <= score["high"]
    for name, times in covered.items():
        assert 0.88 <= times / 200 <= 0.99, name


def test_a_million_rows_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 36, 1_000_000)
    predicted = np.where(rng.random(1_000_000) < 0.8, truth, rng.integers(0, 36, 1_000_000))
    start = time.perf_counter()
    metrics = classification_metrics(truth, predicted, names_of(36))
    assert time.perf_counter() - start < 5  # 0.15 s when nothing else runs
    assert metrics["accuracy"]["high"] - metrics["accuracy"]["low"] < 0.002


@pytest.mark.parametrize(
    ("truth", "predicted", "names", "what"),
    [
        ([], [], ["a", "b"], "no rows"),
        ([0, 1], [0], ["a", "b"], "2 true labels, but 1"),
        ([0, 1], [0, 2], ["a", "b"], "predicted label 2"),
        ([0, -1], [0, 1], ["a", "b"], "truth label -1"),
        ([0.5], [0], ["a", "b"], "whole numbers"),
        ([[0]], [[0]], ["a", "b"], "shape"),
        ([0], [0], ["same", "same"], "'same' is given twice"),
    ],
)
def test_what_cannot_be_scored_is_told(
    truth: Any, predicted: Any, names: list[str], what: str
) -> None:
    with pytest.raises(DataError, match=what) as error:
        classification_metrics(truth, predicted, names)
    assert error.value.fix


def test_the_wrong_row_is_named() -> None:
    with pytest.raises(DataError, match="row 3"):
        confusion_matrix([0, 1, 7], [0, 1, 1], 2)


@pytest.mark.parametrize("matrix", [[[1, 2]], [[1, -1], [0, 5]], [[0, 0], [0, 0]]])
def test_a_matrix_that_cannot_be_is_refused(matrix: list[list[int]]) -> None:
    with pytest.raises(DataError):
        metrics_of_confusion(matrix, ["a", "b"])


def test_small_integer_types_do_not_overflow() -> None:
    labels = np.full(3, 199, dtype=np.uint8)
    assert confusion_matrix(labels, labels, 200)[199, 199] == 3


def test_bootstrap_of_a_mean_is_about_the_textbook_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap(lambda drawn: float(drawn.mean()), [values])
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)


def test_bootstrap_keeps_rows_together() -> None:
    left = np.arange(50)
    low, high = bootstrap(lambda a, b: float((a == b).mean()), [left, left.copy()], samples=20)
    assert (low, high) == (1, 1)


def test_undefined_draws_are_left_out() -> None:
    def share(values: np.ndarray) -> float:
        return float(values[0]) if values[0] > 1 else float("nan")

    low, high = bootstrap(share, [np.array([3, 0, 1, 2])], samples=200)
    assert (low, high) == (2, 3)
    assert bootstrap(lambda values: 7.0 if len(set(values)) == 40 else np.nan, [np.arange(40)]) == (
        7,
        7,
    )


@pytest.mark.parametrize("arrays", [[], [np.zeros(0)], [np.zeros(2), np.zeros(3)]])
def test_bootstrap_refuses_what_are_no_rows(arrays: list[np.ndarray]) -> None:
    with pytest.raises(DataError):
        bootstrap(lambda *drawn: 0.0, arrays)


def test_a_skewed_interval_is_widened_to_its_value() -> None:
    low, high = percentiles(np.linspace(0, 1, 101), np.array(1.5))
    assert low == pytest.approx(0.025)
    assert high == 1.5
