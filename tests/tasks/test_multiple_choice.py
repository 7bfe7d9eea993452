"""Multiple choice: rows as data sets have them, the loss, long contexts, ``transformers``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import demo_texts, tune, write_model, write_rows

from bert.cli import main
from bert.data.rows import Example
from bert.errors import BertError, DataError, UsageError
from bert.predictor import Predictor
from bert.tasks.multiple_choice import Choices, MultipleChoice
from bert.tasks.task import MOST_WINDOWS

ROWS = MultipleChoice.demo_rows
TRUTH = [0, 1, 1, 0, 3, 0, 1, 0]


def texts_of(row: dict[str, Any]) -> tuple[str, ...]:
    return (row.get("context", ""), row.get("question", ""), *row["choices"])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice")
    return tune(folder, "multiple_choice", ROWS, write_model(folder / "base", demo_texts(ROWS)))


def read_one(tmp_path: Path, row: dict[str, Any]) -> Example:
    path = write_rows(tmp_path / "rows.jsonl", [row])
    (example,) = MultipleChoice.read(path, (), None, labelled=True)
    return example


@pytest.mark.parametrize(
    ("row", "texts", "truth", "others"),
    [
        (  # SWAG
            {"sent1": "She sits.", "sent2": "She", "ending0": "eats.", "ending1": "is a car.",
             "ending2": "", "label": 1, "video-id": 7},
            ("She sits.", "She", "eats.", "is a car."), 1, {"video-id": 7},
        ),
        (  # RACE
            {"article": "long", "question": "why?", "options": ["a", "b", "c"], "answer": "C"},
            ("long", "why?", "a", "b", "c"), 2, {},
        ),
        (  # ARC, whose marks are letters in some rows and numbers from 1 in others
            {"question": "why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]},
             "answerKey": "1", "id": "x"},
            ("", "why?", "a", "b"), 0, {"id": "x"},
        ),
        (  # COPA
            {"premise": "It rains.", "choice1": "wet", "choice2": "dry", "label": "0"},
            ("It rains.", "", "wet", "dry"), 0, {},
        ),
        ({"choices": "[\"a\", \"b\"]", "label": "b"}, ("", "", "a", "b"), 1, {}),
        ({"question": "2+2?", "choices": [3, 4], "label": 1.0}, ("", "2+2?", "3", "4"), 1, {}),
        ({"question": "1+1?", "choices": [2, 9], "label": "2"}, ("", "1+1?", "2", "9"), 0, {}),
        ({"question": "q", "choices": ["a", "b"], "label": None}, ("", "q", "a", "b"), None, {}),
    ],
)  # fmt: skip
def test_rows_as_data_sets_have_them(
    tmp_path: Path, row: dict[str, Any], texts: Any, truth: int | None, others: dict[str, Any]
) -> None:
    where = f"{tmp_path / 'rows.jsonl'}:1"
    assert read_one(tmp_path, row) == Example(texts, truth, where, others)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "q", "label": 0}, "no choices"),
        ({"question": "q", "choices": ["a"], "label": 0}, "1 choices"),
        ({"question": "q", "choices": "a, b", "label": 0}, "no list"),
        ({"question": "q", "choices": {"text": "a"}, "label": 0}, "no list"),
        ({"question": "q", "choices": ["a", ""], "label": 0}, "empty"),
        ({"question": "q", "choices": ["a", None], "label": 0}, "empty"),
        ({"question": "q", "choices": ["a", ["b"]], "label": 0}, "not text"),
        ({"question": "q", "choice1": "a", "choice2": "", "choice3": "b", "label": 0}, "empty"),
        ({"question": 5, "choices": ["a", "b"], "label": 0}, "not text"),
        ({"question": "q", "choices": ["a", "b"], "label": 2}, "none of the choices"),
        ({"question": "q", "choices": ["a", "b"], "label": -1}, "none of the choices"),
        ({"question": "q", "choices": ["a", "b"], "label": "C"}, "none of the choices"),
        ({"question": "q", "choices": ["a", "b"], "label": True}, "none of the choices"),
        ({"question": "q", "choices": ["a", "a"], "label": "a"}, "0 or 1"),
        ({"question": "q", "choices": ["1", "0"], "label": "1"}, "0 or 1"),
        ({"question": "q", "choices": ["a", "b"], "label": [0]}, "single"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told) as found:
        read_one(tmp_path, row)
    assert found.value.where == f"{tmp_path / 'rows.jsonl'}:1"
    assert found.value.fix


def test_columns_cannot_be_named_but_that_of_answers(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "q", "choices": ["a", "b"], "y": 1}])
    with pytest.raises(DataError, match="no column 'label'"):
        list(MultipleChoice.read(path, (), None, labelled=True))
    (example,) = MultipleChoice.read(path, (), "y", labelled=True)
    assert example.truth == 1
    with pytest.raises(UsageError, match="cannot be named"):
        list(MultipleChoice.read(path, ("question",), "y", labelled=True))
    empty = tmp_path / "empty.csv"
    empty.write_text("question,choices,label\n", encoding="utf-8")
    with pytest.raises(BertError, match="no rows"):
        list(MultipleChoice.read(empty, (), None, labelled=True))


def test_it_learns_its_demo_rows_by_heart(tuned: Path) -> None:
    answers = Predictor(tuned)([texts_of(row) for row in ROWS])
    assert [answer["choice"] for answer in answers] == TRUTH
    for row, answer in zip(ROWS, answers, strict=True):
        assert answer["text"] == row["choices"][answer["choice"]]
        assert len(answer["probabilities"]) == len(row["choices"])
        assert sum(answer["probabilities"]) == pytest.approx(1)
    figures = json.loads((tuned / "metrics.json").read_text("utf-8"))
    assert figures["accuracy"]["value"] == 1.0
    assert figures["guessing"] == pytest.approx((5 / 2 + 2 / 3 + 1 / 4) / 8)
    assert "('...', '...', '...', '...')" in (tuned / "README.md").read_text("utf-8")


def test_transformers_gives_the_same_logits(tuned: Path) -> None:
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(tuned / "model").eval()
    read = transformers.AutoTokenizer.from_pretrained(tuned / "model")
    for row, answer in zip(ROWS, Predictor(tuned)([texts_of(row) for row in ROWS]), strict=True):
        context, question, *choices = texts_of(row)
        first = context or question
        second = [f"{question} {choice}" if context and question else choice for choice in choices]
        inputs = read([first] * len(choices), second, padding=True, return_tensors="pt")
        with torch.no_grad():
            wanted = theirs(**{name: value[None] for name, value in inputs.items()}).logits
        assert answer["probabilities"] == pytest.approx(wanted[0].softmax(dim=0).tolist(), abs=1e-5)


def test_the_loss_of_rows_with_different_numbers_of_choices(tuned: Path) -> None:
    predictor = Predictor(tuned)
    task = predictor.task
    story = "Anna was tired after the long walk. " * 12
    rows = [*(texts_of(row) for row in ROWS), (story, "", "she runs on", "she sits down")]
    truth = [*TRUTH, 0]
    samples = task.samples([Example(row, t, "x:1") for row, t in zip(rows, truth, strict=True)])
    assert len(samples[-1].encoded.windows) > 4
    batch = task.batch(samples, np.arange(len(rows)), 0, 0)
    with torch.no_grad():
        outcome = task.losses(predictor.model, batch, torch.device("cpu"))
    answers = predictor(rows)
    loss = [-np.log(a["probabilities"][t]) for a, t in zip(answers, truth, strict=True)]
    assert outcome.losses["label"].item() == pytest.approx(sum(loss), rel=1e-4)
    right = sum(a["choice"] == t for a, t in zip(answers, truth, strict=True))
    assert outcome.correct["label"].item() == right
    assert task.counts(batch) == {"label": len(rows)}


def test_gradients_reach_every_choice_and_only_tell_them_apart(tuned: Path) -> None:
    predictor = Predictor(tuned)
    task, model = predictor.task, predictor.model
    row = Example(("", "Which is a colour?", "seven", "loud", "red"), 2, "x:1")
    batch = task.batch(task.samples([row]), np.arange(1), 0, 0)
    model.classifier.requires_grad_(True)
    task.losses(model, batch, torch.device("cpu")).losses["label"].backward()
    head: Any = model.classifier
    assert head.weight.grad.abs().max() > 0
    assert head.bias.grad.abs().max() < 1e-6  # it moves all choices alike


def test_long_contexts_are_read_in_windows_for_each_choice(tuned: Path) -> None:
    predictor = Predictor(tuned)
    row = ("he is tired . " * 40, "What does she do?", "she runs on", "she sits down", "red")
    (encoded,) = predictor.task.encode([row])
    assert isinstance(encoded, Choices)
    answer = predictor([row])[0]
    assert 3 * answer["windows"] == len(encoded.windows) > 3 * 4
    scores = []
    for number in range(3):
        logits = [
            predictor.model(
                torch.tensor([[window.input_ids]]), torch.tensor([[window.token_type_ids]])
            ).item()
            for window in (encoded.windows[i] for i in encoded.of(number))
        ]
        scores.append(np.mean(logits))
    wanted = np.exp(scores) / np.exp(scores).sum()
    assert answer["probabilities"] == pytest.approx(wanted.tolist(), abs=1e-5)
    question = predictor.task.tokenizer.encode(["What does she do?"], 40)[0].input_ids[1:-1]
    for window in encoded.windows:  # the question stands in each
        ids = window.input_ids
        assert any(ids[i : i + len(question)] == question for i in range(len(ids)))


@pytest.mark.parametrize("choices", [2, 3, 12])
def test_no_choice_is_left_out_of_training(tuned: Path, choices: int) -> None:
    task = Predictor(tuned).task
    row = ("he is tired . " * 60, "", *(f"she {word}" for word in "abcdefghijklm"[:choices]))
    (encoded,) = task.encode([row])
    assert isinstance(encoded, Choices)
    seen = set()
    for epoch in range(30):
        shown = task.shown(encoded, 1, epoch, 7)
        assert {encoded.choice[i] for i in shown} == set(range(choices))
        assert len(shown) <= max(MOST_WINDOWS, choices)
        places = [
            [encoded.windows[i].begin for i in shown if encoded.choice[i] == number]
            for number in range(choices)
        ]
        assert all(place == places[0] for place in places)  # the same parts for each
        seen |= set(shown)
    assert seen == set(range(len(encoded.windows)))


def test_rows_that_are_none(tuned: Path, tmp_path: Path) -> None:
    predictor = Predictor(tuned)
    for row in ("text", ("a", "b"), ("a", "b", "c")):
        with pytest.raises(DataError, match="at least two choices"):
            predictor([row])
    path = write_rows(tmp_path / "new.jsonl", [{"question": "What?", "choices": ["a"]}])
    out = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tuned), str(path), "-o", str(out)])
    assert stop.value.code == 3
    assert not out.exists()


def test_predict_and_evaluate_read_the_same_files(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "new.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tuned), str(path), "-o", str(out)])
    assert stop.value.code == 0
    lines = out.read_text("utf-8").splitlines()
    assert [json.loads(line)["choice"] for line in lines] == TRUTH
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tuned), str(path), "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["value"] == 1.0


def test_what_counts_as_nothing_learnt(tuned: Path) -> None:
    task = Predictor(tuned).task
    assert task.constant([{"probabilities": [0.5, 0.5]}, {"probabilities": [0.334, 0.333, 0.333]}])
    assert not task.constant([{"probabilities": [0.5, 0.5]}, {"probabilities": [0.4, 0.6]}])


def test_calibration_of_rows_with_different_numbers_of_choices(tuned: Path) -> None:
    task = Predictor(tuned).task
    draw = np.random.default_rng(0)
    examples, answers = [], []
    for i in range(800):
        logits = draw.normal(size=int(draw.integers(2, 6)))
        chance = np.exp(logits) / np.exp(logits).sum()
        examples.append(Example("x", int(draw.choice(len(chance), p=chance)), f"x:{i}"))
        odds = chance**3  # three times too sure
        row = (odds / odds.sum()).tolist()
        answers.append({"choice": int(odds.argmax()), "text": "x", "probabilities": row})
    found = task.calibrate(examples, answers)
    assert found["temperature"] == pytest.approx(3, rel=0.15)
    tally = task.tally()
    for example, answer in zip(examples, answers, strict=True):
        decided = task.decide(answer, found)
        assert decided["choice"] == answer["choice"]
        tally.add(example.truth, decided)
    assert tally.figures()["expected_calibration_error"]["value"] < 0.05
    assert found["uncalibrated_error"]["value"] > 0.15
