from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bert.errors import DataError
from bert.metrics.intervals import (
    POISSON,
    RowSums,
    bootstrap,
    intervals_overlap,
    mean_interval,
    quality,
    share,
)


@given(st.integers(1, 400).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_shares_have_wilsons_interval(case: tuple[int, int]) -> None:
    hits, rows = case
    found = share(hits, rows)
    expected = stats.binomtest(hits, rows).proportion_ci(method="wilson")
    assert found["value"] == hits / rows
    assert found["low"] == pytest.approx(expected.low, abs=1e-12)
    assert found["high"] == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


def test_a_share_of_nothing_is_unknown() -> None:
    assert share(0, 0) == {"value": 0, "low": 0, "high": 1}


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_the_mean_of_seeds_has_students_interval(values: list[float]) -> None:
    found = mean_interval(values)
    error = stats.sem(values)
    assert found["value"] == pytest.approx(np.mean(values))
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert found["low"] == pytest.approx(low)
        assert found["high"] == pytest.approx(high)


def test_seeds_overlap_or_do_not() -> None:
    assert intervals_overlap([0.90, 0.91, 0.92], [0.91, 0.92, 0.93])
    assert not intervals_overlap([0.90, 0.91, 0.92], [0.95, 0.96, 0.97])
    assert not intervals_overlap([0.95, 0.96, 0.97], [0.90, 0.91, 0.92])
    assert intervals_overlap([0.5, 0.5], [0.5, 0.5])


@pytest.mark.parametrize("values", [[], [0.5], [0.5, math.nan], [0.5, math.inf]])
def test_seeds_that_tell_no_interval_are_refused(values: list[float]) -> None:
    with pytest.raises(DataError) as error:
        mean_interval(values)
    assert error.value.fix


def test_weights_are_those_of_a_poisson_variable() -> None:
    assert len(POISSON) == 65536
    for count in range(9):
        assert (count == POISSON).mean() == pytest.approx(stats.poisson.pmf(count, 1), abs=2e-5)


@given(st.lists(st.integers(0, 400), max_size=4))
@settings(deadline=None, max_examples=20)
def test_the_draws_do_not_depend_on_how_rows_are_grouped(cuts: list[int]) -> None:
    rows = np.random.default_rng(0).integers(0, 5, (600, 3))
    whole, parts = RowSums(seed=3), RowSums(seed=3)
    whole.add(rows)
    for part in np.split(rows, sorted(cuts)):
        parts.add(part)
        if len(part) % 2:
            parts.draws()  # looking changes nothing
    assert (whole.draws() == parts.draws()).all()
    assert whole.totals.tolist() == parts.totals.tolist() == rows.sum(axis=0).tolist()


def test_columns_may_come_later() -> None:
    sums = RowSums()
    sums.add([[1]])
    sums.add([[1, 1]])
    assert sums.draws().shape == (1000, 2)
    assert sums.totals.tolist() == [2, 1]


def test_drawing_sums_is_drawing_rows() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(size=500)
    sums = RowSums()
    sums.add(np.stack([np.ones(500), values], axis=1))
    draws = sums.draws()
    found = quality(float(values.mean()), draws[:, 1] / draws[:, 0])
    low, high = bootstrap(lambda drawn: float(drawn.mean()), [values], samples=2000)
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.02)


def test_an_undefined_score_is_unknown() -> None:
    assert quality(math.nan, np.full(9, math.nan), (-1, 1)) == {"value": 0, "low": -1, "high": 1}
