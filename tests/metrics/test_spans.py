from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert.errors import DataError
from bert.metrics.multilabel import LabelCounts
from bert.metrics.spans import SpanTally, spans_of_tags, tags_of_spans

# What conlleval.pl (version 2004-01-26, the script of the CoNLL-2003 task) printed for
# random tags, well- and ill-formed, in five ways of tagging.
GOLDEN = json.loads((Path(__file__).parent / "conlleval.json").read_text(encoding="utf-8"))
LINE = re.compile(r"precision: +([\d.]+)%; recall: +([\d.]+)%; FB1: +([\d.]+)")


def percent(scores: dict[str, Any]) -> list[str]:
    return [f"{100 * scores[kind]['value']:.2f}" for kind in ("precision", "recall", "f1")]


@pytest.mark.parametrize("name", GOLDEN)
def test_figures_are_those_that_conlleval_prints(name: str) -> None:
    tally = SpanTally()
    for truth, predicted in GOLDEN[name]["rows"]:
        tally.add(spans_of_tags(truth.split()), spans_of_tags(predicted.split()))
    figures = tally.figures()
    counted, overall, *types = GOLDEN[name]["printed"]
    assert f"{sum(row['support'] for row in figures['per_label'].values())} phrases" in counted
    found = LINE.search(overall)
    assert found
    assert percent(figures["micro"]) == list(found.groups())
    printed = {}
    for line in types:
        kind, _, scores = line.partition(": ")
        found = LINE.search(scores)
        assert found
        printed[kind.strip()] = list(found.groups())
    assert {kind: percent(row) for kind, row in figures["per_label"].items()} == printed
    assert figures["rows"] == len(GOLDEN[name]["rows"])


def test_the_example_of_the_conll_2000_page() -> None:
    # "459 phrases; found: 539 phrases; correct: 371": 68.83%, 80.83%, 74.35.
    counts = LabelCounts(["any"])
    counts.add(np.array([[[371, 459, 539]]]))
    assert percent(counts.figures()["micro"]) == ["68.83", "80.83", "74.35"]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", [(0, 2, "PER"), (3, 4, "LOC")]),  # BIO
        ("I-PER I-PER B-PER O I-LOC", [(0, 2, "PER"), (2, 3, "PER"), (4, 5, "LOC")]),  # IOB1
        ("B-PER I-PER E-PER S-PER S-LOC", [(0, 3, "PER"), (3, 4, "PER"), (4, 5, "LOC")]),  # BIOES
        ("B-PER L-PER B-PER L-PER U-LOC", [(0, 2, "PER"), (2, 4, "PER"), (4, 5, "LOC")]),  # BILOU
        ("B-人 M-人 E-人 S-地", [(0, 3, "人"), (3, 4, "地")]),  # BMES
        ("PER PER O LOC PER", [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "PER")]),  # IO, bare
        ("B I I B O I", [(0, 3, ""), (3, 4, ""), (5, 6, "")]),  # one type without a name
        ("O I-PER I-LOC I-LOC", [(1, 2, "PER"), (2, 4, "LOC")]),  # ill-formed from here
        ("B-PER I-LOC", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("E-PER E-PER I-PER", [(0, 1, "PER"), (1, 2, "PER"), (2, 3, "PER")]),
        ("S-PER I-PER O L-PER", [(0, 1, "PER"), (1, 2, "PER"), (3, 4, "PER")]),
        ("B-PER S-PER I-PER", [(0, 1, "PER"), (1, 2, "PER"), (2, 3, "PER")]),
        ("B-a-b I-a-b I-a", [(0, 2, "a-b"), (2, 3, "a")]),
        ("", []),
    ],
)
def test_tags_of_every_kind_are_read(tags: str, spans: list[Any]) -> None:
    assert spans_of_tags(tags.split()) == spans


@st.composite
def spans_in_order(draw: st.DrawFn) -> tuple[list[tuple[int, int, str]], int]:
    """Spans that do not overlap, and how many tokens there are."""
    spans, place = [], 0
    for gap, length, kind in draw(
        st.lists(
            st.tuples(
                st.integers(0, 2), st.integers(1, 3), st.text(min_size=1, max_size=4) | st.just("")
            ),
            max_size=6,
        )
    ):
        spans.append((place + gap, place + gap + length, kind))
        place += gap + length
    return spans, place + draw(st.integers(0, 2))


@given(spans_in_order())
def test_spans_come_back_from_their_tags(case: tuple[list[tuple[int, int, str]], int]) -> None:
    spans, length = case
    tags = tags_of_spans(reversed(spans), length)
    assert len(tags) == length
    assert spans_of_tags(tags) == spans


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "E-x", "S-x", "L-y", "U-y", "I-y", "z", "B"])))
def test_any_tags_give_spans_in_order_that_cover_all_but_the_outside(tags: list[str]) -> None:
    spans = spans_of_tags(tags)
    inside = [place for start, end, _ in spans for place in range(start, end)]
    assert inside == [place for place, tag in enumerate(tags) if tag != "O"]
    assert spans_of_tags(tags_of_spans(spans, len(tags))) == spans


@pytest.mark.parametrize("span", [(0, 0, "x"), (-1, 1, "x"), (2, 4, "x"), (1, 2, "x")])
def test_spans_that_cannot_be_tags_are_refused(span: tuple[int, int, str]) -> None:
    with pytest.raises(DataError, match="span") as error:
        tags_of_spans([(0, 2, "y"), span], 3)
    assert error.value.fix


def test_a_span_counts_only_where_all_three_are_equal() -> None:
    tally = SpanTally(["never"])
    tally.add([(0, 2, "a"), (3, 4, "a")], [(0, 2, "b"), (3, 4, "a"), (3, 4, "a"), (3, 5, "a")])
    tally.add([], [])
    figures = tally.figures()
    assert figures["per_label"]["a"]["precision"]["value"] == 0.5
    assert figures["per_label"]["a"]["recall"]["value"] == 0.5
    assert figures["per_label"]["b"]["f1"]["value"] == 0
    assert figures["per_label"]["never"]["f1"] == {"value": 0, "low": 0, "high": 1}
    assert figures["micro"]["precision"]["value"] == pytest.approx(1 / 3)
    assert figures["rows"] == 2
    assert list(figures["per_label"]) == ["a", "b", "never"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_type_that_comes_late_is_scored_as_if_it_had_been_known() -> None:
    rng = np.random.default_rng(0)
    rows = [
        [(int(start), int(start) + 1, "early" if row < 300 else "late") for start in starts]
        for row, starts in enumerate(rng.integers(0, 9, (400, 3)))
    ]
    told, untold = SpanTally(["early", "late"]), SpanTally()
    for tally in (told, untold):
        for truth, predicted in zip(rows, rows[1:] + rows[:1], strict=True):
            tally.add(truth, predicted)
    assert told.figures() == untold.figures()


def test_intervals_of_spans_cover_the_truth() -> None:
    # A world in which half of the rows find their spans with a chance of 0.9, half with 0.5.
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        tally = SpanTally(seed=seed)
        for row in range(120):
            found = rng.random(2) < (0.9 if row % 2 else 0.5)
            truth = [(0, 1, "x"), (2, 3, "x")]
            tally.add(truth, [span for span, hit in zip(truth, found, strict=True) if hit])
        recall = tally.figures()["micro"]["recall"]
        covered += recall["low"] <= 0.7 <= recall["high"]
    assert covered >= 51


def test_rows_without_any_span_prove_nothing() -> None:
    tally = SpanTally()
    tally.add([], [])
    assert tally.figures()["micro"]["f1"] == {"value": 0, "low": 0, "high": 1}
    assert tally.figures()["per_label"] == {}


def test_no_rows_are_told() -> None:
    with pytest.raises(DataError, match="no rows"):
        SpanTally().figures()
