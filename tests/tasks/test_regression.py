"""Regression: numbers of any size, equality with ``transformers``, and models of others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import demo_texts, tune, write_model, write_rows

from bert.checkpoint import read_model
from bert.cli import main
from bert.data.rows import Example
from bert.errors import DataError
from bert.metrics.regress import spearman
from bert.predictor import Predictor
from bert.tasks.regression import Regression

ROWS = Regression.demo_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("regression") / "base", demo_texts(ROWS))


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(tmp_path_factory.mktemp("tuned"), "regression", ROWS, base)


def scaled(mean: float, deviation: float) -> list[dict[str, Any]]:
    """The demo rows with other units."""
    scores = np.array([row["score"] for row in ROWS], dtype=float)
    standard = (scores - scores.mean()) / scores.std()
    return [
        {**row, "score": float(mean + deviation * score)}
        for row, score in zip(ROWS, standard, strict=True)
    ]


@pytest.mark.parametrize(
    ("mean", "deviation"), [(0.5, 0.3), (50_000.0, 30_000.0), (1e-6, 1e-7), (2000.0, 5.0)]
)
def test_it_learns_numbers_of_any_size(
    base: Path, tmp_path: Path, mean: float, deviation: float
) -> None:
    rows = scaled(mean, deviation)
    run = tune(tmp_path, "regression", rows, base)
    answers = Predictor(run)([row["text"] for row in rows])
    error = [abs(answer["score"] - row["score"]) for answer, row in zip(answers, rows, strict=True)]
    assert max(error) < 0.3 * deviation
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [line["score_loss"] for line in lines if "score_loss" in line]
    assert 0.3 < losses[0] < 3  # in units of the variance
    figures = json.loads((run / "metrics.json").read_text("utf-8"))
    assert figures["mean_absolute_error"]["value"] == pytest.approx(np.mean(error), rel=1e-4)


def test_it_learns_its_demo_rows_by_heart(tuned: Path) -> None:
    answers = Predictor(tuned)([row["text"] for row in ROWS])
    scores = [answer["score"] for answer in answers]
    truth = [row["score"] for row in ROWS]
    assert scores == pytest.approx(truth, abs=0.4)
    figures = json.loads((tuned / "metrics.json").read_text("utf-8"))
    assert figures["pearson"]["value"] > 0.98
    assert figures["spearman"]["value"] == pytest.approx(spearman(truth, scores))
    assert figures["tenths"][0] == {"truth": 0.5, "score": pytest.approx(scores[5], abs=1e-4)}
    assert (tuned / "plots" / "scores.png").is_file()


def test_transformers_gives_the_score_as_its_logit(tuned: Path) -> None:
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tuned / "model").eval()
    read = transformers.AutoTokenizer.from_pretrained(tuned / "model")
    assert theirs.config.problem_type == "regression"
    assert theirs.config.num_labels == 1
    texts = [row["text"] for row in ROWS]
    truth = torch.tensor([float(row["score"]) for row in ROWS])
    inputs = read(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**inputs, labels=truth)
    scores = [answer["score"] for answer in Predictor(tuned)(texts)]
    assert scores == pytest.approx(wanted.logits[:, 0].tolist(), abs=1e-5)
    figures = json.loads((tuned / "metrics.json").read_text("utf-8"))
    assert figures["mean_squared_error"]["value"] == pytest.approx(wanted.loss.item(), rel=1e-3)


def test_what_is_trained_and_what_is_written(tuned: Path) -> None:
    checkpoint = read_model(tuned / "model", kind="sequence")
    head: Any = checkpoint.model.classifier
    published = head.weight.clone(), head.bias.clone()
    task = Regression(checkpoint)
    texts = [row["text"] for row in ROWS]
    for rows in (scaled(700.0, 20.0), scaled(-3.0, 0.1)):  # from one unit to another
        examples = [Example(row["text"], row["score"], "x:1") for row in rows]
        samples = task.samples(examples)
        assert np.mean([sample.targets["score"] for sample in samples]) == pytest.approx(
            0, abs=1e-5
        )
        assert np.std([sample.targets["score"] for sample in samples]) == pytest.approx(1, abs=1e-5)
        trained = head.weight.clone(), head.bias.clone()
        with task.published(checkpoint.model):
            assert torch.allclose(head.weight, published[0], rtol=1e-4)
            assert torch.allclose(head.bias, published[1], rtol=1e-3)
        assert torch.equal(head.weight, trained[0])
        assert torch.equal(head.bias, trained[1])
        logits = checkpoint.model(torch.tensor([task.encode(texts)[0].windows[0].input_ids]))
        answer = task.decode(texts[0], task.encode(texts)[0], [logits[0].detach().numpy()])
        assert answer["score"] == pytest.approx(Predictor(tuned)(texts[0])["score"], rel=1e-3)


def test_a_model_of_others_with_one_output_gives_scores(base: Path, tmp_path: Path) -> None:
    words = demo_texts(ROWS)
    model = write_model(tmp_path / "theirs", words, "BertForSequenceClassification", num_labels=1)
    predictor = Predictor(model)
    assert predictor.task.name == "regression"
    predictor.take_pairs()
    (answer,) = predictor([("very good", "rather weak")])
    read = transformers.AutoTokenizer.from_pretrained(model)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        wanted = theirs(**read("very good", "rather weak", return_tensors="pt")).logits.item()
    assert answer["score"] == pytest.approx(wanted, abs=1e-6)


def test_a_long_text_is_the_mean_of_its_windows(tuned: Path) -> None:
    predictor = Predictor(tuned)
    text = " ".join(str(row["text"]) for row in ROWS) * 4
    answer = predictor(text)
    assert answer["windows"] > 2
    logits = [
        predictor.model(torch.tensor([window.input_ids])).item()
        for window in predictor.task.encode([text])[0].windows
    ]
    assert answer["score"] == pytest.approx(np.mean(logits), abs=1e-5)


@pytest.mark.parametrize(
    ("value", "number"),
    [(None, None), ("", None), (3, 3.0), ("3.5", 3.5), (" -1e3 ", -1000.0), (0, 0.0)],
)
def test_how_numbers_may_be_written(value: Any, number: float | None) -> None:
    assert Regression.parse(value, "x:1") == number


@pytest.mark.parametrize(
    "value",
    ["good", "3,5", "nan", "inf", float("nan"), float("-inf"), True, [1], {}, 10**400, "1e31"],
)
def test_what_is_no_number_is_named_with_its_row(value: Any) -> None:
    with pytest.raises(DataError, match="no number") as found:
        Regression.parse(value, "rows.csv:3")
    assert found.value.where == "rows.csv:3"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"text": "a", "score": 1}, {"text": "b", "score": "high"}], "rows.jsonl:2"),
        ([{"text": "a", "score": 1}, {"text": "b", "score": 1}], "nothing to learn"),
        ([{"text": "a", "score": None}], "has both"),
        ([{"text": "a"}], "no column 'score'"),
    ],
)
def test_malformed_files_end_the_run_before_it_begins(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    told: str,
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["finetune", str(path), "--task", "regression", "--model", str(base),
              "--out", str(out)])  # fmt: skip
    assert stop.value.code == 3
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_scores_that_are_all_the_same_are_a_failure(tuned: Path) -> None:
    task = Predictor(tuned).task
    assert task.constant([{"score": 2.0}, {"score": 2.001}])
    assert not task.constant([{"score": 2.0}, {"score": 3.0}])


def test_it_can_be_trained_again_from_its_own_model(tuned: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tuned / "model", tmp_path / "model")
    run = tune(tmp_path, "regression", ROWS, model, epochs=1, learning_rate=1e-6)
    figures = json.loads((run / "metrics.json").read_text("utf-8"))
    assert figures["pearson"]["value"] > 0.98
    assert figures["mean_absolute_error"]["value"] < 0.3
