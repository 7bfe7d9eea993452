from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert.errors import DataError
from bert.metrics.answers import AnswerTally, answer_scores, best_threshold, normal, words_of

# Random answers with what SQuAD's evaluate-v1.1.py and evaluate-v2.0.py give for them, and
# CMRC 2018's cmrc2018_evaluate.py with nltk 3.10's word tokenizer.
GOLDEN = json.loads((Path(__file__).parent / "squad_cmrc.json").read_text(encoding="utf-8"))


def test_squad_1_figures_are_the_official_ones() -> None:
    golden = GOLDEN["squad1"]
    tally = AnswerTally()
    for truths, predicted in golden["rows"]:
        tally.add(truths, predicted)
    figures = tally.figures()
    assert 100 * figures["exact_match"]["value"] == pytest.approx(golden["exact_match"], abs=1e-10)
    assert 100 * figures["f1"]["value"] == pytest.approx(golden["f1"], abs=1e-10)
    assert set(figures) == {"rows", "exact_match", "f1"}


@pytest.mark.parametrize(("name", "threshold"), [("at 1.0", 1.0), ("at 0.55", 0.55)])
def test_squad_2_figures_are_the_official_ones(name: str, threshold: float) -> None:
    golden = GOLDEN["squad2"][name]
    tally = AnswerTally(unanswerable=True, threshold=threshold)
    for truths, predicted, score in GOLDEN["squad2"]["rows"]:
        tally.add(truths, predicted, score)
    figures = tally.figures()
    parts = {"": figures, "HasAns_": figures["answerable"], "NoAns_": figures["unanswerable"]}
    for prefix, part in parts.items():
        assert part["rows"] == golden[f"{prefix}total"]
        for ours, theirs in (("exact_match", "exact"), ("f1", "f1")):
            expected = pytest.approx(golden[prefix + theirs], abs=1e-10)
            assert 100 * part[ours]["value"] == expected
            assert part[ours]["low"] <= part[ours]["value"] <= part[ours]["high"]
    best = figures["best"]
    assert 100 * best["exact_match"] == pytest.approx(golden["best_exact"], abs=1e-10)
    assert 100 * best["f1"] == pytest.approx(golden["best_f1"], abs=1e-10)
    assert best["exact_match_threshold"] == golden["best_exact_thresh"]
    assert best["f1_threshold"] == golden["best_f1_thresh"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_chinese_figures_are_the_official_ones() -> None:
    golden = GOLDEN["cmrc"]
    tally = AnswerTally()
    for (truths, predicted), f1 in zip(golden["rows"], golden["row_f1"], strict=True):
        tally.add(truths, predicted)
        assert answer_scores(truths, predicted)[1] == pytest.approx(f1, abs=1e-9)
    figures = tally.figures()
    assert 100 * figures["exact_match"]["value"] == pytest.approx(golden["em"], abs=1e-10)
    assert 100 * figures["f1"]["value"] == pytest.approx(golden["f1"], abs=1e-9)


def test_words() -> None:
    assert words_of("The U.S. Navy's  ships, an") == ["us", "navys", "ships"]
    assert words_of("《北京·大学》 3.5 iPhone", chinese=True) == [*"北京大学", "3.5", "iphone"]
    assert normal(" An “apple” a day ") == "“apple” day"


def test_a_chinese_character_in_an_english_set_changes_nothing() -> None:
    # One true answer of three is Chinese: the row is scored in the English way.
    assert answer_scores(["Yuan Chao", "元朝"], "元 朝") == (False, 0.0)
    assert answer_scores(["元朝"], "元 朝") == (False, pytest.approx(1.0))


@given(st.text(), st.text())
def test_scores_are_shares_and_the_answer_itself_is_right(answer: str, other: str) -> None:
    exact, f1 = answer_scores([answer], answer)
    assert exact
    assert f1 == pytest.approx(1.0 if words_of(answer) else 0.0)
    exact, f1 = answer_scores([answer, other], other)
    assert exact
    for unanswerable in (False, True):
        exact, f1 = answer_scores([answer], other, unanswerable=unanswerable)
        assert 0 <= f1 <= 1
        assert f1 == pytest.approx(answer_scores([answer], other, unanswerable=unanswerable)[1])


rows = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.sampled_from([0, 0.25, 1]), st.integers(-3, 3)),
    min_size=1,
    max_size=12,
)


@given(rows)
def test_no_threshold_is_better_than_the_best(rows: list[tuple[bool, bool, float, int]]) -> None:
    answerable, said, score, no_answer = (np.array(column) for column in zip(*rows, strict=True))
    scores = np.where(said & answerable, score, ~said & ~answerable)

    def mean_at(threshold: float) -> float:
        return float(np.where(no_answer > threshold, ~answerable, scores).mean())

    value, threshold = best_threshold(scores, answerable, said, no_answer.astype(float))
    assert mean_at(threshold) == pytest.approx(value)
    assert value == pytest.approx(max(mean_at(t) for t in range(-4, 4)))


def test_the_threshold_decides_and_its_scale_does_not_matter() -> None:
    tally = AnswerTally(unanswerable=True, threshold=-5)
    tally.add(["Denver"], "denver", -9.0)
    tally.add([], "denver", -1.0)
    figures = tally.figures()
    assert figures["exact_match"]["value"] == 1
    assert figures["best"]["f1"] == 1
    assert figures["best"]["f1_threshold"] == -9


def test_questions_without_any_answer_can_stand_alone() -> None:
    tally = AnswerTally(unanswerable=True)
    tally.add([], "")
    figures = tally.figures()
    assert figures["f1"]["value"] == 1
    assert figures["answerable"]["f1"] == {"value": 0, "low": 0, "high": 1}
    assert "best" not in figures
    assert figures["exact_match"]["low"] < 0.3  # one row proves little


@pytest.mark.parametrize(
    ("arguments", "what"), [(([], "x"), "no true answer"), ((["x"], "x", math.nan), "not a number")]
)
def test_what_cannot_be_scored_names_its_row(arguments: Any, what: str) -> None:
    tally = AnswerTally()
    tally.add(["x"], "x")
    with pytest.raises(DataError, match=what) as error:
        tally.add(*arguments)
    assert error.value.where == "row 2"
    assert tally.figures()["rows"] == 1


def test_no_rows_are_told() -> None:
    with pytest.raises(DataError, match="no rows"):
        AnswerTally().figures()
