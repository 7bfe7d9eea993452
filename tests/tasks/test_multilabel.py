"""Multi-label: how labels are written, the loss, thresholds, and equality with ``transformers``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny import demo_texts, tune, write_model, write_rows

from bert.cli import main
from bert.data.rows import Example
from bert.errors import BertError, DataError, ModelError
from bert.evaluation import calibrated
from bert.predictor import Predictor
from bert.tasks.classification import log_odds
from bert.tasks.multilabel import Multilabel, thresholds_of

ROWS = Multilabel.demo_rows
LABELS = ["food", "price", "service"]
NAMES = st.text(
    st.characters(blacklist_characters=";|,[]", blacklist_categories=["Cs", "Cc", "Z"]), min_size=1
)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multilabel")
    model = write_model(folder / "base", demo_texts(ROWS))
    return tune(folder, "multilabel", ROWS, model)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, None),
        ("", None),
        ("  ", None),
        ([], []),
        ("[]", []),
        (["b", "a", "b"], ["a", "b"]),
        ('["b", "a, c"]', ["a, c", "b"]),
        ("b; a", ["a", "b"]),
        ("b|a,c", ["a,c", "b"]),
        ("b,a", ["a", "b"]),
        ("b c", ["b c"]),
        (3, ["3"]),
        ([2, 10], ["10", "2"]),
    ],
)
def test_how_labels_may_be_written(value: Any, names: list[str] | None) -> None:
    assert Multilabel.parse(value, "rows.csv:2") == names


@given(st.lists(NAMES, min_size=1, unique=True), st.sampled_from(";|,"))
def test_lists_and_strings_of_labels_mean_the_same(names: list[str], mark: str) -> None:
    wanted = sorted(names)
    assert Multilabel.parse(names, "x:1") == wanted
    assert Multilabel.parse(json.dumps(names), "x:1") == wanted
    assert Multilabel.parse(f"{mark} ".join(names), "x:1") == wanted


@pytest.mark.parametrize(
    "value", [["a", None], ["a", ""], "a;;b", ";", [["a"]], {"a": 1}, '["a"', "[" * 100_000, "[NaN"]
)
def test_labels_that_cannot_be_are_named_with_their_row(value: Any) -> None:
    with pytest.raises(DataError) as found:
        Multilabel.parse(value, "rows.csv:7")
    assert found.value.where == "rows.csv:7"
    assert found.value.fix


def test_labels_come_from_either_column(tmp_path: Path) -> None:
    for column in ("label", "labels"):
        path = write_rows(tmp_path / f"{column}.jsonl", [{"text": "x", column: ["a"]}])
        (example,) = Multilabel.read(path, (), None, labelled=True)
        assert example == Example("x", ["a"], f"{path}:1", {})
    with pytest.raises(DataError, match="no column 'labels'"):
        list(Multilabel.read(write_rows(tmp_path / "x.jsonl", [{"text": "x"}]), (), None,
                             labelled=True))  # fmt: skip
    with pytest.raises(DataError, match="nothing to tell apart"):
        Multilabel.labels_of([Example("x", [], "x:1")], "x")


def test_it_learns_its_demo_rows_by_heart(tuned: Path) -> None:
    predictor = Predictor(tuned)
    assert predictor.labels == LABELS
    answers = predictor([row["text"] for row in ROWS])
    assert [answer["labels"] for answer in answers] == [row["labels"] for row in ROWS]
    figures = json.loads((tuned / "metrics.json").read_text("utf-8"))
    assert figures["micro"]["f1"]["value"] == figures["subset_accuracy"]["value"] == 1.0
    assert set(figures["per_label"]) == set(LABELS)
    assert json.loads((tuned / "data_report.json").read_text("utf-8"))["train"]["labels"] == {
        "food": 4, "service": 4, "price": 3,
    }  # fmt: skip
    for name in ("f1", "reliability", "abstain"):
        assert (tuned / "plots" / f"{name}.png").is_file()


def test_transformers_gives_the_same_logits_and_the_same_loss(tuned: Path) -> None:
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tuned / "model").eval()
    read = transformers.AutoTokenizer.from_pretrained(tuned / "model")
    assert theirs.config.problem_type == "multi_label_classification"
    predictor = Predictor(tuned)
    examples = [Example(row["text"], row["labels"], f"x:{i}") for i, row in enumerate(ROWS)]
    flags = torch.tensor([[float(name in row["labels"]) for name in LABELS] for row in ROWS])
    inputs = read([row["text"] for row in ROWS], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**inputs, labels=flags)
        task = predictor.task
        batch = task.batch(task.samples(examples), np.arange(len(ROWS)), 0, 0)
        outcome = task.losses(predictor.model, batch, torch.device("cpu"))
    for answer, row in zip(
        predictor([row["text"] for row in ROWS]), wanted.logits.sigmoid().tolist(), strict=True
    ):
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=1e-5)
    assert task.counts(batch) == {"label": 24}
    assert outcome.losses["label"].item() / 24 == pytest.approx(wanted.loss.item(), rel=1e-4)
    assert outcome.correct["label"].item() == 24


def test_balanced_weights_and_focal_loss_against_their_formulas(tuned: Path) -> None:
    predictor = Predictor(tuned)
    examples = [Example(row["text"], row["labels"], f"x:{i}") for i, row in enumerate(ROWS)]
    flags = np.array([[name in row["labels"] for name in LABELS] for row in ROWS])
    task = predictor.task
    task.options = task.Options.of({"class_weights": "balanced", "focal": 2.0})
    with torch.no_grad():
        batch = task.batch(task.samples(examples), np.arange(len(ROWS)), 0, 0)
        found = task.losses(predictor.model, batch, torch.device("cpu")).losses["label"].item()
    rows = predictor([row["text"] for row in ROWS])
    chance = np.array([list(row["probabilities"].values()) for row in rows])
    right = np.where(flags, chance, 1 - chance)
    share = np.where(flags, flags.mean(axis=0), 1 - flags.mean(axis=0))
    wanted = (-np.log(right) * (1 - right) ** 2 / (2 * share)).sum()
    assert found == pytest.approx(wanted, rel=1e-3)


def test_adjusted_logits_against_their_formula(tuned: Path) -> None:
    predictor = Predictor(tuned)
    examples = [Example(row["text"], row["labels"], f"x:{i}") for i, row in enumerate(ROWS)]
    flags = np.array([[name in row["labels"] for name in LABELS] for row in ROWS])
    task = predictor.task
    task.options = task.Options.of({"logit_adjustment": 0.5})
    with torch.no_grad():
        batch = task.batch(task.samples(examples), np.arange(len(ROWS)), 0, 0)
        found = task.losses(predictor.model, batch, torch.device("cpu")).losses["label"].item()
    rows = predictor([row["text"] for row in ROWS])
    logits = log_odds([list(row["probabilities"].values()) for row in rows])
    shifted = logits + 0.5 * log_odds(flags.mean(axis=0))
    wanted = np.log1p(np.exp(np.where(flags, -shifted, shifted))).sum()
    assert found == pytest.approx(wanted, rel=1e-3)


def test_a_long_text_is_read_in_windows(tuned: Path) -> None:
    predictor = Predictor(tuned)
    text = " ".join(str(row["text"]) for row in ROWS) * 3
    answer = predictor(text)
    assert answer["windows"] > 2
    logits = [
        predictor.model(torch.tensor([window.input_ids])).detach().numpy()[0]
        for window in predictor.task.encode([text])[0].windows
    ]
    wanted = 1 / (1 + np.exp(-np.mean(logits, axis=0)))
    assert list(answer["probabilities"].values()) == pytest.approx(wanted.tolist(), abs=1e-5)


def made_up(rows: int, shares: list[float], seed: int) -> tuple[list[Example], list[Any]]:
    """Rows of labels that occur with these shares, and answers that know something of them."""
    draw = np.random.default_rng(seed)
    there = draw.random((rows, len(shares))) < shares
    logits = 3.0 * there - 3.0 + draw.normal(size=there.shape)
    chances = 1 / (1 + np.exp(-2.5 * logits))  # too sure
    examples = [
        Example("x", [name for name, yes in zip(LABELS, row, strict=True) if yes], f"x:{i}")
        for i, row in enumerate(there)
    ]
    answers = [
        {
            "labels": [name for name, p in zip(LABELS, row, strict=True) if p >= 0.5],
            "probabilities": dict(zip(LABELS, row.tolist(), strict=True)),
            "windows": 1,
            "truncated": False,
        }
        for row in chances
    ]
    return examples, answers


def test_thresholds_and_temperature_of_held_out_rows_help_on_others(tuned: Path) -> None:
    task = Predictor(tuned).task
    examples, answers = made_up(1500, [0.3, 0.1, 0.02], seed=1)
    found = task.calibrate(examples, answers)
    assert found["temperature"] > 1.5
    others, given = made_up(1500, [0.3, 0.1, 0.02], seed=2)
    before, after = task.tally(), task.tally()
    for example, answer in zip(others, given, strict=True):
        decided = task.decide(answer, found)
        assert decided["labels"] == [
            name for name, p in decided["probabilities"].items() if p >= found["thresholds"][name]
        ]
        before.add(example.truth, answer)
        after.add(example.truth, decided)
    scores = [tally.figures() for tally in (before, after)]
    assert scores[1]["macro"]["f1"]["value"] > scores[0]["macro"]["f1"]["value"] + 0.03
    error = [score["expected_calibration_error"]["value"] for score in scores]
    assert error[0] > 0.03 > error[1]
    assert found["uncalibrated_error"]["value"] == pytest.approx(error[0], abs=0.01)
    assert calibrated(task, examples, answers)[0] == found


def test_few_rows_move_no_threshold(tuned: Path) -> None:
    task = Predictor(tuned).task
    assert task.calibrate(*made_up(99, [0.3, 0.3, 0.3], seed=3)) == {}
    examples, answers = made_up(400, [0.3, 0.3, 0.0], seed=4)
    assert task.calibrate(examples, answers)["thresholds"]["service"] == 0.5


def test_rows_without_labels_are_no_sign_of_failure(tuned: Path) -> None:
    task = Predictor(tuned).task

    def answers(chances: list[float]) -> list[Any]:
        return [{"labels": [], "probabilities": dict.fromkeys(LABELS, p)} for p in chances]

    assert task.constant(answers([0.050, 0.051, 0.049]))
    assert not task.constant(answers([0.4, 0.01, 0.1]))


@pytest.mark.parametrize("value", ["high", [0.5], {"food": "0.5"}, {"food": None}])
def test_damaged_thresholds(value: Any) -> None:
    with pytest.raises(ModelError, match="thresholds"):
        thresholds_of({"thresholds": value})


def test_malformed_files_name_file_and_row(tuned: Path, tmp_path: Path) -> None:
    for number, (text, row) in enumerate(
        [
            ('text,labels\na,x;y\nb,"[""x"""\n', 3),
            ("text,labels\na,x;y\nb,;;\n", 3),
            ("text,labels\na,food\nb,unheard\n", 3),
        ]
    ):
        path = tmp_path / f"{number}.csv"
        path.write_text(text, encoding="utf-8")
        out = tmp_path / "run"
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(tuned), str(path)])
        assert stop.value.code == 3
        if number < 2:
            with pytest.raises(BertError, match="labels") as found:
                list(Multilabel.read(path, (), None, labelled=True))
            assert found.value.where == f"{path}:{row}"
        assert not out.exists()
