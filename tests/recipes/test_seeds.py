"""Several seeds: one table, nothing trained twice, nothing hidden."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import bert
from bert.cli import main
from bert.errors import Interrupted, UsageError
from bert.evaluation import scores
from bert.recipes import seeds as recipe
from bert.recipes.finetune import FinetuneSettings, finetune
from bert.recipes.seeds import finetune_seeds, over_seeds
from bert.tasks.classification import Classification

SEEDS = 3


@pytest.fixture(scope="module")
def settings(tiny_model: Path, topic_rows: Path) -> FinetuneSettings:
    # A rate at which the seeds differ.
    return FinetuneSettings(
        train=str(topic_rows), model=str(tiny_model), epochs=8, learning_rate=2e-3,
        batch_size=8, held_out=0.4, precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(settings: FinetuneSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune_seeds(settings, SEEDS, tmp_path_factory.mktemp("runs") / "run")


def read(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def test_mean_interval_and_deviation_of_every_figure(run: Path) -> None:
    runs = [read(run / f"seed-{seed}" / "metrics.json") for seed in range(1, SEEDS + 1)]
    summary = read(run / "metrics.json")
    names = [name for name, _ in scores(runs[0])]
    assert list(summary["mean"]) == names
    assert "accuracy" in names
    for name in names:
        values = [dict(scores(figures))[name]["value"] for figures in runs]
        row = summary["mean"][name]
        assert row["value"] == pytest.approx(statistics.mean(values))
        assert row["standard_deviation"] == pytest.approx(np.std(values, ddof=1))
        if np.std(values):
            wanted = stats.t.interval(0.95, SEEDS - 1, loc=np.mean(values), scale=stats.sem(values))
            assert (row["low"], row["high"]) == pytest.approx(wanted)
    assert any(row["standard_deviation"] for row in summary["mean"].values())
    assert [row["seed"] for row in summary["runs"]] == [1, 2, 3]
    assert summary["counted"] == summary["seeds"] == SEEDS
    assert summary["learnt_nothing"] == summary["restarted"] == []


def test_all_are_measured_on_the_same_rows(run: Path) -> None:
    held_out = {
        tuple(
            json.loads(line)["where"]
            for line in (run / f"seed-{seed}" / "predictions_dev.jsonl").read_text().splitlines()
        )
        for seed in range(1, SEEDS + 1)
    }
    assert len(held_out) == 1


def test_the_model_is_the_best_one(run: Path) -> None:
    summary = read(run / "metrics.json")
    best = max(summary["runs"], key=lambda row: row["value"])
    kept = next(row for row in summary["runs"] if row["seed"] == summary["best"])
    assert kept["value"] == best["value"]
    for path in (run / f"seed-{summary['best']}" / "model").iterdir():
        assert (run / "model" / path.name).read_bytes() == path.read_bytes()
    assert bert.Predictor(run)("we saw the bird")["label"] in ("animal", "weather")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "standard deviation" in page
    assert "data:image/png" in page
    assert "mean of 3 seeds" in (run / "README.md").read_text(encoding="utf-8")


def test_a_seed_is_the_run_of_that_seed(
    run: Path, settings: FinetuneSettings, tmp_path: Path
) -> None:
    alone = finetune(settings.model_copy(update={"seed": 2}), tmp_path / "alone")
    weights = [path / "model" / "model.safetensors" for path in (alone, run / "seed-2")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_is_there_is_not_trained_again(
    run: Path, settings: FinetuneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    shutil.rmtree(moved / "seed-3")
    before = (moved / "seed-1" / "model" / "model.safetensors").stat().st_mtime_ns
    trained = []

    def noted(settings: FinetuneSettings, out: Path, **options: Any) -> Path:
        trained.append((settings.seed, options["resume"]))
        return finetune(settings, out, **options)

    monkeypatch.setattr(recipe, "finetune", noted)
    finetune_seeds(settings, SEEDS + 1, moved, resume=True)
    assert trained == [(3, False), (4, False)]
    assert (moved / "seed-1" / "model" / "model.safetensors").stat().st_mtime_ns == before
    again = read(moved / "metrics.json")
    for row, old in zip(again["runs"], read(run / "metrics.json")["runs"], strict=False):
        assert row["value"] == old["value"]
    assert len(again["runs"]) == SEEDS + 1

    other = settings.model_copy(update={"batch_size": 32})
    with pytest.raises(UsageError, match="batch_size"):
        finetune_seeds(other, SEEDS, moved, resume=True)
    with pytest.raises(UsageError, match="not empty"):
        finetune_seeds(settings, SEEDS, moved)


def test_the_interrupted_one_goes_on(
    run: Path, settings: FinetuneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "run"
    resumed = []

    def stopped(settings: FinetuneSettings, out: Path, **options: Any) -> Path:
        resumed.append((settings.seed, options["resume"]))
        if resumed == [(1, False), (2, False)]:
            out.mkdir()
            (out / "config.yaml").write_text("", encoding="utf-8")
            raise Interrupted(15)
        shutil.copytree(run / f"seed-{settings.seed}", out, dirs_exist_ok=True)
        return out

    monkeypatch.setattr(recipe, "finetune", stopped)
    with pytest.raises(Interrupted) as interrupted:
        finetune_seeds(settings, SEEDS, moved)
    assert "--resume" in str(interrupted.value)
    finetune_seeds(settings, SEEDS, moved, resume=True)
    assert resumed == [(1, False), (2, False), (2, True), (3, False)]
    assert read(moved / "metrics.json") == read(run / "metrics.json")


def test_a_run_that_learnt_nothing_is_named_and_not_counted(
    run: Path, settings: FinetuneSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    summary = read(run / "metrics.json")
    path = moved / f"seed-{summary['best']}" / "metrics.json"
    path.write_text(json.dumps({**read(path), "learnt": False, "restarts": 2}), encoding="utf-8")
    finetune_seeds(settings, SEEDS, moved, resume=True)
    now = read(moved / "metrics.json")
    assert now["learnt_nothing"] == now["restarted"] == [summary["best"]]
    assert now["counted"] == SEEDS - 1
    assert now["seeds"] == SEEDS
    assert now["best"] != summary["best"]
    values = [row["value"] for row in now["runs"] if row["learnt"]]
    assert now["mean"]["accuracy"]["value"] == pytest.approx(statistics.mean(values))
    said = f"Seed {summary['best']} learnt nothing"
    assert said in capsys.readouterr().err
    assert said in (moved / "report.html").read_text(encoding="utf-8")


def test_no_mean_of_fewer_than_two(run: Path) -> None:
    figures = {seed: read(run / f"seed-{seed}" / "metrics.json") for seed in (1, 2)}
    figures[1]["learnt"] = False
    summary = over_seeds(Classification, figures)
    assert summary["mean"] == {}
    assert summary["best"] == 2
    figures[2]["learnt"] = False
    assert over_seeds(Classification, figures)["best"] in (1, 2)


def test_seeds_that_cannot_be(settings: FinetuneSettings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two or more"):
        finetune_seeds(settings, 1, tmp_path / "run")
    with pytest.raises(UsageError, match="seed"):
        finetune_seeds(settings.model_copy(update={"seed": 2**32 - 2}), 3, tmp_path / "run")
    with pytest.raises(bert.ModelError):
        finetune_seeds(settings.model_copy(update={"model": "nowhere/"}), 3, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command(settings: FinetuneSettings, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(
            ["finetune", settings.train, "--model", settings.model, "--seeds", "2",
             "--out", str(tmp_path / "run"), "epochs=1", "batch_size=64"]
        )  # fmt: skip
    assert stop.value.code == 0
    assert read(tmp_path / "run" / "metrics.json")["seeds"] == 2
