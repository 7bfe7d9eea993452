from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bert.errors import DataError
from bert.metrics.regress import RegressionTally, pearson, spearman

# Few different values: many are equal.
pairs = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.1, 5.0, 1e6, -1e6])),
    min_size=2,
    max_size=30,
).filter(lambda rows: all(len({row[side] for row in rows}) > 1 for side in (0, 1)))


@given(pairs)
@settings(deadline=None)
def test_correlations_are_those_of_scipy(rows: list[tuple[int, float]]) -> None:
    x, y = np.array(rows, dtype=float).T
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-9)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)


@given(pairs, st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_figures_of_streamed_rows(rows: list[tuple[int, float]], cut: int) -> None:
    x, y = np.array(rows, dtype=float).T
    whole, parts = RegressionTally(), RegressionTally()
    whole.add(x, y)
    parts.add(x[:cut], y[:cut])
    for a, b in zip(x[cut:], y[cut:], strict=True):
        parts.add(a, b)
    figures = whole.figures()
    assert parts.figures() == figures
    assert figures["mean_absolute_error"]["value"] == pytest.approx(np.abs(x - y).mean())
    assert figures["mean_squared_error"]["value"] == pytest.approx(((x - y) ** 2).mean())
    for name in ("pearson", "spearman"):
        score = figures[name]
        assert -1 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_constant_has_no_correlation() -> None:
    tally = RegressionTally()
    tally.add([1, 2, 3], [0.1, 0.1, 0.1])
    assert tally.figures()["pearson"] == {"value": 0, "low": -1, "high": 1}
    assert tally.figures()["spearman"] == {"value": 0, "low": -1, "high": 1}
    assert np.isnan(pearson([1.0], [2.0]))


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e150, 1e307])
def test_far_and_huge_numbers_keep_their_correlation(scale: float) -> None:
    x = np.arange(20.0) / 20
    assert pearson(x * scale, -x * scale) == pytest.approx(-1)
    assert pearson(1e9 + x, x) == pytest.approx(1)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    true = 0.7
    true_rank = 6 / np.pi * np.arcsin(true / 2)  # of a normal pair
    covered = {"pearson": 0, "spearman": 0, "mean_absolute_error": 0}
    for seed in range(200):
        x = rng.normal(size=200)
        y = true * x + np.sqrt(1 - true**2) * rng.normal(size=200)
        tally = RegressionTally(seed)
        tally.add(x, y)
        figures = tally.figures()
        # x - y is normal of variance 2 - 2 * 0.7
        error = np.sqrt(0.6) * np.sqrt(2 / np.pi)
        for name, value in zip(covered, (true, true_rank, error), strict=True):
            covered[name] += figures[name]["low"] <= value <= figures[name]["high"]
    for name, times in covered.items():
        assert 0.88 <= times / 200 <= 0.99, name


def test_what_cannot_be_scored_is_told() -> None:
    tally = RegressionTally()
    with pytest.raises(DataError, match="no rows"):
        tally.figures()
    tally.add([1, 2], [1, 2])
    with pytest.raises(DataError, match="2 true numbers, but 1"):
        tally.add([1, 2], [1])
    with pytest.raises(DataError, match="row 4"):
        tally.add([1, 2], [1, np.nan])
    assert tally.figures()["rows"] == 2
