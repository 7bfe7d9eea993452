"""Models beside the baselines, on the same rows, each trained once."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bert.baselines import BASELINES, BiLSTM, TextCNN
from bert.cli import main
from bert.errors import ModelError, UsageError
from bert.metrics.intervals import mean_interval
from bert.recipes import compare as recipe
from bert.recipes.compare import compare
from bert.recipes.finetune import FinetuneSettings


def read(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


@pytest.fixture(scope="module")
def settings(topic_rows: Path) -> FinetuneSettings:
    return FinetuneSettings.of(
        {
            "train": str(topic_rows), "model": "", "precision": "fp32", "held_out": 0.4,
            "epochs": 6, "batch_size": 8, "learning_rate": 2e-3,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(
    settings: FinetuneSettings, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return compare(settings, [str(tiny_model)], tmp_path_factory.mktemp("runs") / "run")


def sentences(count: int, seed: int = 0) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Rows of three labels, told by a word each."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(3, size=count)
    words = np.array(["red", "green", "blue"])
    rows = [
        (" ".join(draw.permutation([*draw.choice(["a", "b", "c", "d"], 6), words[label]])),)
        for label in truth
    ]
    return rows, truth


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_baseline_learns_and_answers_probabilities(name: str) -> None:
    rows, truth = sentences(300)
    fitted = BASELINES[name](rows, truth, 3, 1)
    fresh, wanted = sentences(60, seed=1)
    shares = fitted.answer(fresh)
    assert shares.shape == (60, 3)
    assert shares.sum(axis=1) == pytest.approx(1, abs=1e-5)
    answers = shares.argmax(axis=1)
    if name == "majority":
        assert set(answers) == {np.bincount(truth).argmax()}
    else:
        assert (answers == wanted).mean() > 0.95
    assert fitted.bytes > 0
    # An answer does not depend on the rows beside it, nor training on anything but the seed.
    assert fitted.answer(fresh[:1]) == pytest.approx(shares[:1], abs=1e-5)
    assert BASELINES[name](rows, truth, 3, 1).answer(fresh) == pytest.approx(shares, abs=1e-6)
    fitted.answer([("",), ("word " * 2000,), ("从没见过",)])


@pytest.mark.parametrize("name", ["tf-idf", "textcnn", "bilstm"])
def test_characters_where_there_are_no_spaces(name: str) -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(2, size=200)
    rows = [
        ("".join(draw.permutation([*"这家店的人很多也不远", "好" if label else "差"])),)
        for label in truth
    ]
    shares = BASELINES[name](rows[:150], truth[:150], 2, 1).answer(rows[150:])
    assert (shares.argmax(axis=1) == truth[150:]).mean() > 0.95


def test_pairs_are_compared() -> None:
    draw = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    rows, truth = [], []
    for i in range(400):
        first = draw.choice(words, 5, replace=False)
        second = draw.permutation(first) if i % 2 else draw.choice(words, 5, replace=False)
        rows.append((" ".join(first), " ".join(second)))
        truth.append(i % 2)
    shares = BASELINES["tf-idf"](rows[:300], np.array(truth[:300]), 2, 1).answer(rows[300:])
    assert (shares.argmax(axis=1) == truth[300:]).mean() > 0.9


@pytest.mark.parametrize("network", [TextCNN, BiLSTM])
def test_padding_has_no_say(network: type[TextCNN] | type[BiLSTM]) -> None:
    torch.manual_seed(0)
    model = network(20, 3).eval()
    words = torch.randint(1, 20, (2, 7))
    lengths = torch.tensor([7, 2])
    words[1, 2:] = 0
    alone = model(words[1:, :2], lengths[1:])
    assert torch.allclose(model(words, lengths)[1:], alone, atol=1e-6)
    # A filter sees windows of words: another order gives another answer.
    assert not torch.allclose(
        model(words.flip(1), torch.tensor([7, 7]))[:1], model(words, lengths)[:1]
    )


def test_one_table_of_all(run: Path) -> None:
    lines = read(run / "metrics.json")["contenders"]
    assert {line["name"] for line in lines} == {"tiny", *BASELINES}
    for line in lines:
        assert 0 <= line["score"]["low"] <= line["score"]["value"] <= line["score"]["high"] <= 1
        assert line["seconds"] >= 0
        assert line["milliseconds_a_text"] > 0
        assert line["rows_per_second"] > 0
        assert line["megabytes"] > 0
    values = [line["score"]["value"] for line in lines]
    assert values == sorted(values, reverse=True)
    tiny = next(line for line in lines if line["name"] == "tiny")
    figures = read(run / "tiny" / "metrics.json")
    assert tiny["score"] == figures["accuracy"]
    assert tiny["seconds"] == figures["seconds"]
    weights = run / "tiny" / "model" / "model.safetensors"
    assert tiny["megabytes"] == pytest.approx(weights.stat().st_size / 1e6)
    majority = next(line for line in lines if line["name"] == "majority")
    # Its label is the most frequent one of the training rows, whatever the held-out ones say.
    share = figures["majority_accuracy"]["value"]
    assert min(abs(majority["score"]["value"] - each) for each in (share, 1 - share)) < 1e-9


def test_it_is_written_as_markdown_and_html(run: Path) -> None:
    card = (run / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w-]+) \| (\d\.\d{4}) \|", card, re.MULTILINE)
    assert {name for name, _ in rows} == {"tiny", *BASELINES}
    page = (run / "report.html").read_text(encoding="utf-8")
    for name in ("tiny", *BASELINES):
        assert f"<td>{name}</td>" in page
    assert "than the best baseline" in card
    assert "than the best baseline" in page


def test_what_is_there_is_not_trained_again(
    run: Path,
    settings: FinetuneSettings,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    (moved / "measured" / "bilstm-seed-1.json").unlink()
    trained: list[str] = []

    def noted(settings: FinetuneSettings, out: Path, **options: Any) -> Path:
        trained.append(out.name)
        shutil.copytree(run / "tiny", out)
        return out

    def counted(name: str) -> Any:
        def train(*arguments: Any) -> Any:
            trained.append(name)
            return BASELINES["majority"](*arguments)

        return train

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    monkeypatch.setattr(recipe, "finetune", noted)
    stand_ins = {name: counted(name) for name in BASELINES}
    monkeypatch.setattr(recipe, "BASELINES", stand_ins)
    compare(settings, [str(tiny_model), str(other)], moved, resume=True)
    assert trained == ["other", "bilstm"]
    before = {line["name"]: line for line in read(run / "metrics.json")["contenders"]}
    after = {line["name"]: line for line in read(moved / "metrics.json")["contenders"]}
    for name in ("tiny", "majority", "tf-idf", "textcnn"):
        assert after[name]["score"] == before[name]["score"]


def test_all_are_told_by_one_figure(
    settings: FinetuneSettings,
    run: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the options would have a run itself judged by another."""
    monkeypatch.setattr(recipe, "BASELINES", {"majority": BASELINES["majority"]})
    values = settings.model_dump(exclude_unset=True) | {"epochs": 1, "logit_adjustment": 1.0}
    found = compare(FinetuneSettings.of(values), [str(tiny_model)], tmp_path / "run")
    figures = read(found / "tiny" / "metrics.json")
    assert figures["primary_metric"] != "accuracy"
    scores = {line["name"]: line["score"] for line in read(found / "metrics.json")["contenders"]}
    assert scores["tiny"] == figures["accuracy"]
    before = {line["name"]: line for line in read(run / "metrics.json")["contenders"]}
    assert scores["majority"]["value"] == before["majority"]["score"]["value"]


def test_another_model_of_the_same_name_is_refused(
    run: Path, settings: FinetuneSettings, tiny_model: Path, tmp_path: Path
) -> None:
    moved, other = tmp_path / "run", tmp_path / "elsewhere" / tiny_model.name
    shutil.copytree(run, moved)
    shutil.copytree(tiny_model, other)
    with pytest.raises(UsageError, match="the name of another model"):
        compare(settings, [str(other)], moved, resume=True)


def test_several_seeds(
    settings: FinetuneSettings, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = settings.model_copy(update={"epochs": 3, "learning_rate": 4e-3})
    run = compare(quick, [str(tiny_model)], tmp_path / "run", seeds=2)
    lines = {line["name"]: line for line in read(run / "metrics.json")["contenders"]}
    runs = [read(run / "measured" / f"textcnn-seed-{seed}.json") for seed in (1, 2)]
    values = [each["score"]["value"] for each in runs]
    assert lines["textcnn"]["score"] == pytest.approx(mean_interval(values))
    assert len(list((run / "measured").glob("tf-idf-*"))) == 1
    summary = read(run / "tiny-seeds" / "metrics.json")
    assert lines["tiny"]["score"] == summary["mean"].get("accuracy")
    assert "over 2 seeds" in (run / "README.md").read_text(encoding="utf-8")
    # More seeds later: those that are there stay as they are.
    weights = run / "tiny-seeds" / "seed-2" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    compare(quick, [str(tiny_model)], run, seeds=3, resume=True)
    assert weights.stat().st_mtime_ns == before
    assert read(run / "tiny-seeds" / "metrics.json")["seeds"] == 3
    tiny = next(x for x in read(run / "metrics.json")["contenders"] if x["name"] == "tiny")
    assert tiny["runs"] == 3
    assert tiny["score"] == read(run / "tiny-seeds" / "metrics.json")["mean"]["accuracy"]


def test_names_of_models() -> None:
    assert recipe._names(["runs/base/model", "org/base@main", "/x/base/"]) == {
        "base": "runs/base/model",
        "base@main": "org/base@main",
        "base-2": "/x/base/",
    }
    assert list(recipe._names(["majority", "org/plots"])) == ["majority-2", "plots-2"]
    for models in ([], [""], ["a", ""]):
        with pytest.raises(UsageError, match="No models"):
            recipe._names(models)
    with pytest.raises(UsageError, match="named twice"):
        recipe._names(["a", "b", "a"])


def test_what_cannot_be_read_leaves_nothing(
    settings: FinetuneSettings, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError):
        compare(settings, [str(tiny_model), "nowhere/"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(60):
            writer.writerow([f"we saw the bird {i}", "one"] if i % 2 else [f"us {i}", "other"])
    with pytest.raises(SystemExit) as stop:
        main(
            ["compare", str(path), "--models", str(tiny_model), "--out", str(tmp_path / "run"),
             "epochs=1"]
        )  # fmt: skip
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in ("tiny", *BASELINES, "accuracy", "rows/s"):
        assert name in shown
