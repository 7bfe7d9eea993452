"""Classification: what imbalance asks of the loss, long texts, and runs that learn nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from sklearn.utils.class_weight import compute_class_weight
from tiny import demo_texts, tune, write_model, write_rows

from bert.cli import main
from bert.predictor import Predictor
from bert.tasks.classification import (
    Classification,
    ClassificationOptions,
    balanced_weights,
    label_loss,
)

ROWS = Classification.demo_rows


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classification")
    model = write_model(folder / "base", demo_texts(ROWS))
    return tune(folder, "classification", ROWS, model, class_weights="balanced")


def test_it_learns_its_demo_rows_by_heart(tuned: Path) -> None:
    answers = Predictor(tuned)([row["text"] for row in ROWS])
    assert [answer["label"] for answer in answers] == [row["label"] for row in ROWS]
    figures = json.loads((tuned / "metrics.json").read_text("utf-8"))
    assert figures["accuracy"]["value"] == figures["macro"]["f1"]["value"] == 1.0
    assert figures["expected_calibration_error"]["value"] < 0.2
    assert figures["abstain"][-1]["accuracy"]["value"] == 1.0
    for name in ("confusion", "f1", "reliability", "abstain"):
        assert (tuned / "plots" / f"{name}.png").is_file()


def test_balanced_weights_choose_the_best_model_by_macro_f1(tuned: Path) -> None:
    assert Classification.primary_metric == "accuracy"
    assert Predictor(tuned).task.primary_metric == "macro.f1"
    lines = (tuned / "metrics.jsonl").read_text("utf-8").splitlines()
    assert any("held_out_macro.f1" in json.loads(line) for line in lines)


def test_a_long_text_is_the_mean_of_its_windows(tuned: Path) -> None:
    predictor = Predictor(tuned)
    text = " ".join(str(row["text"]) for row in ROWS) * 3
    (encoded,) = predictor.task.encode([text])
    assert len(encoded.windows) > 3
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tuned / "model")
    with torch.no_grad():
        logits = [theirs.eval()(torch.tensor([w.input_ids])).logits for w in encoded.windows]
    wanted = torch.cat(logits).mean(dim=0).softmax(dim=0).tolist()
    answer = predictor(text)
    assert answer["windows"] == len(encoded.windows)
    assert not answer["truncated"]
    assert list(answer["probabilities"].values()) == pytest.approx(wanted, abs=1e-5)


def test_label_loss_against_its_formula() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4), torch.randint(0, 4, (50,))
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])

    def loss(weights: torch.Tensor | None = None, **options: float | str) -> torch.Tensor:
        return label_loss(logits, labels, ClassificationOptions.of(options), weights)

    chance = logits.softmax(dim=-1)[range(50), labels]
    assert torch.allclose(loss(), F.cross_entropy(logits, labels, reduction="sum"))
    weighted = loss(weights, class_weights="balanced")
    assert torch.allclose(weighted, (-chance.log() * weights[labels]).sum())
    assert torch.allclose(loss(focal=2.0), (-((1 - chance) ** 2) * chance.log()).sum())
    smooth = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    assert torch.allclose(loss(label_smoothing=0.1), smooth)
    shares = (1 / weights) / (1 / weights).sum()
    adjusted = F.cross_entropy(logits + 0.7 * shares.log(), labels, reduction="sum")
    assert torch.allclose(loss(weights, logit_adjustment=0.7), adjusted)


@pytest.mark.parametrize("option", [{}, {"logit_adjustment": 1.0}])
def test_adjusted_logits_do_not_know_how_rare_a_label_is(
    tmp_path: Path, option: dict[str, float]
) -> None:
    """Of texts that say nothing, 1 in 10 is rare: only plain training takes that for knowledge."""
    rows = [{"text": "same", "label": "rare" if i % 10 == 0 else "usual"} for i in range(40)]
    model = write_model(tmp_path / "base", ["same"])
    run = tune(tmp_path, "classification", rows, model, epochs=15, batch_size=40, **option)
    chance = Predictor(run)("same")["probabilities"]["rare"]
    assert chance == pytest.approx(0.5 if option else 0.1, abs=0.05)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.random.default_rng(0).choice(3, p=[0.9, 0.08, 0.02], size=500)
    found = balanced_weights(labels, 3).numpy()
    assert found == pytest.approx(
        compute_class_weight("balanced", classes=np.arange(3), y=labels), rel=1e-6
    )
    assert found[labels].mean() == pytest.approx(1.0, rel=1e-6)
    assert np.isfinite(balanced_weights(np.array([0, 0]), 2).numpy()).all()


@pytest.mark.parametrize(
    ("chances", "constant"),
    [
        ([0.51, 0.52, 0.50, 0.53], True),  # stuck at chance
        ([0.55, 0.60, 0.80, 0.95], True),  # one label for rows that are not so one-sided
        ([0.980, 0.981, 0.980, 0.979], True),  # the share of the frequent label, whatever the row
        ([0.95, 0.999, 0.9999, 0.97], False),  # a rare label: rows are told apart
        ([0.30, 0.60, 0.70, 0.80], False),  # two labels
    ],
)
def test_what_counts_as_nothing_learnt(chances: list[float], constant: bool) -> None:
    answers = [{"label": "ab"[p < 0.5], "probabilities": {"a": p, "b": 1 - p}} for p in chances]
    task = SimpleNamespace()
    assert Classification.constant(task, answers) is constant  # type: ignore[arg-type]
    assert not Classification.constant(task, answers[:1])  # type: ignore[arg-type]


def test_a_one_sided_run_ends_well(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    rows = [
        {"text": " ".join(draw.choice(words, 6)), "label": "rare" if i % 51 == 0 else "usual"}
        for i in range(204)
    ]
    model = write_model(tmp_path / "base", words)
    run = tune(tmp_path, "classification", rows, model, epochs=1, evaluations=1)
    figures = json.loads((run / "metrics.json").read_text("utf-8"))
    assert figures["accuracy"]["value"] > 0.97
    assert figures["learnt"] is False
    assert (run / "report.html").is_file()


def test_a_label_that_the_model_lacks_is_named_with_its_row(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "new.jsonl", [{"text": "dull", "label": "mediocre"}])
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tuned), str(path)])
    assert stop.value.code == 3
    told = capsys.readouterr().err
    assert "'mediocre'" in told
    assert f"{path}:1" in told
