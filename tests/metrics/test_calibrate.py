from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, f1_score, precision_recall_curve

from bert.errors import DataError
from bert.metrics.calibrate import (
    CalibrationTally,
    best_thresholds,
    fit_temperature,
    threshold_curve,
)


def world(
    rows: int, labels: int, temperature: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a model that is sure of itself by a known temperature, and the truth."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, labels))
    chances = softmax(logits, axis=1).cumsum(axis=1)
    truth = np.minimum((rng.random((rows, 1)) > chances).sum(axis=1), labels - 1)
    return logits * temperature, truth


def loss(logits: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(truth)), truth].mean())


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("labels", [2, 5])
def test_the_temperature_is_found(temperature: float, labels: int) -> None:
    logits, truth = world(4000, labels, temperature)
    found = fit_temperature(logits, truth)
    assert found == pytest.approx(temperature, rel=0.1)
    best = minimize_scalar(
        lambda t: loss(logits, truth, t),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found == pytest.approx(best.x, rel=1e-4)


def test_the_temperature_of_labels_of_which_several_hold() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 4))
    truth = rng.random((3000, 4)) < expit(logits)
    assert fit_temperature(2.5 * logits, truth) == pytest.approx(2.5, rel=0.1)
    assert fit_temperature(2.5 * logits[:, :1], truth[:, :1]) == pytest.approx(2.5, rel=0.2)


@given(st.integers(1, 12), st.integers(2, 4), st.integers(0, 99), st.sampled_from([0, 1, 1e4]))
@settings(deadline=None, max_examples=40)
def test_the_temperature_is_never_worse_than_one(
    rows: int, labels: int, seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    logits, truth = scale * rng.normal(size=(rows, labels)), rng.integers(0, labels, rows)
    found = fit_temperature(logits, truth)
    assert 0.05 <= found <= 20.01
    assert loss(logits, truth, found) <= loss(logits, truth, 1.0) + 1e-12


def test_scaling_calibrates_held_out_rows() -> None:
    logits, truth = world(4000, 3, 4.0)
    temperature = fit_temperature(logits[:1000], truth[:1000])
    errors = []
    for divisor in (1.0, temperature):
        tally = CalibrationTally()
        tally.add(softmax(logits[1000:] / divisor, axis=1), truth[1000:])
        errors.append(tally.figures()["expected_calibration_error"]["value"])
    assert errors[0] > 0.1
    assert errors[1] <= 0.03


@pytest.mark.parametrize("labels", [2, 5])
def test_figures_are_their_definitions(labels: int) -> None:
    logits, truth = world(1500, labels, 2.0, seed=labels)
    probabilities = softmax(logits, axis=1)
    tally = CalibrationTally()
    for part in np.array_split(np.arange(1500), 7):
        tally.add(probabilities[part], truth[part])
    figures = tally.figures()
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth

    # Guo et al. 2017, equation 5, bin by bin.
    error = 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert figures["expected_calibration_error"]["value"] == pytest.approx(error, abs=1e-3)
    brier = brier_score_loss(truth, probabilities, labels=range(labels), scale_by_half=True)
    assert figures["brier"]["value"] == pytest.approx(brier)
    shares, means = calibration_curve(right, sure, n_bins=15)
    assert [row["accuracy"]["value"] for row in figures["reliability"]] == pytest.approx(shares)
    assert [row["confidence"] for row in figures["reliability"]] == pytest.approx(means)
    assert sum(row["rows"] for row in figures["reliability"]) == 1500
    assert figures["accuracy"]["value"] == pytest.approx(right.mean())

    order = np.argsort(-sure)
    accuracies = np.cumsum(right[order]) / np.arange(1, 1501)
    assert figures["abstain_area"]["value"] == pytest.approx(accuracies.mean(), abs=0.002)
    for row in figures["abstain"]:
        rows = round(1500 * row["coverage"])
        assert row["accuracy"]["value"] == pytest.approx(accuracies[rows - 1], abs=0.005)
        assert (sure >= row["confidence"]).mean() == pytest.approx(row["coverage"], abs=0.01)
    assert figures["abstain"][-1]["accuracy"]["value"] == pytest.approx(right.mean())
    for name in ("expected_calibration_error", "brier", "abstain_area", "accuracy"):
        assert figures[name]["low"] < figures[name]["value"] < figures[name]["high"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_label_that_may_hold_is_a_decision_of_its_own() -> None:
    several, single = CalibrationTally(), CalibrationTally()
    several.add([[0.9, 0.2], [0.4, 0.5]], [[1, 1], [0, 1]])
    single.add_answers([0.9, 0.8, 0.6, 0.5], [True, False, True, True])
    assert several.figures() == single.figures()
    assert several.figures()["brier"]["value"] == pytest.approx((0.01 + 0.64 + 0.16 + 0.25) / 4)


@pytest.mark.parametrize("right", [True, False])
def test_one_answer_and_the_ends_of_the_scale(right: bool) -> None:
    for confidence in (0.0, 1.0, np.float32(1.0000001)):
        tally = CalibrationTally()
        tally.add_answers([confidence], [right])
        figures = tally.figures()
        assert figures["expected_calibration_error"]["value"] == pytest.approx(
            abs(right - confidence), abs=1e-6
        )
        assert figures["abstain_area"]["value"] == right


def test_what_cannot_be_scored_is_told() -> None:
    with pytest.raises(DataError, match="no rows"):
        CalibrationTally().figures()
    with pytest.raises(DataError, match="between 0 and 1"):
        CalibrationTally().add_answers([1.5], [True])
    with pytest.raises(DataError, match="between 0 and 1"):
        CalibrationTally().add_answers([np.nan], [True])
    with pytest.raises(DataError, match="2 confidences"):
        CalibrationTally().add_answers([0.5, 0.5], [True])
    with pytest.raises(DataError, match="do not fit"):
        fit_temperature(np.zeros((3, 2)), [0, 1])
    with pytest.raises(DataError, match="not finite"):
        fit_temperature([[np.inf, 0]], [0])


# Few different probabilities: many are equal.
columns = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.5000001, 0.9, 1.0]), st.booleans()),
    min_size=1,
    max_size=25,
)


@given(columns)
@settings(deadline=None)
def test_thresholds_give_the_best_f1(rows: list[tuple[float, bool]]) -> None:
    chance, there = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    (threshold,) = best_thresholds(chance[:, None], there[:, None])
    if not there.any():
        assert threshold == 0.5
        return
    precision, recall, _ = precision_recall_curve(there, chance)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert f1_score(there, chance >= threshold) == pytest.approx(best)
    if f1_score(there, chance >= 0.5, zero_division=0) == pytest.approx(best):
        assert threshold == 0.5


def test_thresholds_are_each_labels_own() -> None:
    chance = np.array([[0.9, 0.3], [0.8, 0.2], [0.6, 0.05], [0.1, 0.01]])
    truth = [[1, 1], [1, 1], [0, 0], [0, 0]]
    assert best_thresholds(chance, truth) == pytest.approx([0.7, 0.125])


@given(columns)
@settings(deadline=None)
def test_the_curve_is_what_a_threshold_gives(rows: list[tuple[float, bool]]) -> None:
    chance, there = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    curve = threshold_curve(chance, there)
    for place in (0, 30, 50, 90, 100):
        said = chance >= curve["threshold"][place]
        f1 = f1_score(there, said, zero_division=np.nan)
        assert curve["f1"][place] == pytest.approx(f1, nan_ok=True)
        if said.any():
            assert curve["precision"][place] == pytest.approx(there[said].mean())
        else:
            assert np.isnan(curve["precision"][place])
