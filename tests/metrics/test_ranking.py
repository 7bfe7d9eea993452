from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from bert.errors import DataError
from bert.metrics.ranking import RankingTally, ranks_of


@given(st.lists(st.integers(0, 150), min_size=1, max_size=40))
def test_scores_are_their_definitions(ranks: list[int]) -> None:
    tally = RankingTally()
    tally.add(ranks[:3])
    for rank in ranks[3:]:
        tally.add(rank)
    figures = tally.figures()
    near = [rank for rank in ranks if 1 <= rank <= 10]
    assert figures["mrr@10"]["value"] == pytest.approx(sum(1 / rank for rank in near) / len(ranks))
    for k in (1, 5, 10, 100):
        share = sum(1 <= rank <= k for rank in ranks) / len(ranks)
        assert figures[f"recall@{k}"]["value"] == pytest.approx(share)
    for name, score in figures.items():
        if name != "rows":
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert figures["rows"] == len(ranks)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_ndcg_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((60, 30))
    relevant = rng.integers(0, 30, 60)
    tally = RankingTally()
    tally.add(ranks_of(scores, relevant))
    expected = ndcg_score(np.eye(30)[relevant], scores, k=10)
    assert tally.figures()["ndcg@10"]["value"] == pytest.approx(expected)


def test_equal_scores_find_nothing() -> None:
    assert ranks_of(np.zeros((2, 5)), [0, 4]).tolist() == [5, 5]
    assert ranks_of([[0.5, 0.9, 0.1]], [0]).tolist() == [2]
    assert ranks_of([[np.nan, 0.9, 0.1]], [1]).tolist() == [2]
    assert ranks_of([[np.nan, 0.9, 0.1]], [0]).tolist() == [3]


@pytest.mark.parametrize("ranks", [[-1], [0.5]])
def test_ranks_that_cannot_be_are_refused(ranks: list[float]) -> None:
    with pytest.raises(DataError, match="whole number"):
        RankingTally().add(ranks)


def test_no_queries_are_told() -> None:
    with pytest.raises(DataError, match="no queries"):
        RankingTally().figures()
