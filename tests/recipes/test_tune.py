"""The search for settings: each trial an ordinary run, resumable, its winner an exact command."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import bert
from bert.cli import main
from bert.config import parse_assignments
from bert.errors import BertError, Interrupted, UsageError
from bert.recipes import tune as recipe
from bert.recipes.finetune import FinetuneSettings, usual_rate
from bert.recipes.tune import finetune_command, tune
from bert.tasks.task import load_task

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def settings(tiny_model: Path, topic_rows: Path) -> FinetuneSettings:
    return FinetuneSettings.of(
        {
            "train": str(topic_rows), "model": str(tiny_model), "precision": "fp32",
            "held_out": 0.3, "label_smoothing": 0.05,
        }
    )  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


class Runs:
    """Stands in for fine-tuning: the score is a function of the settings."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float, int, int, bool]] = []
        self.stops_at: str | None = None
        self.fails_at: str | None = None

    def __call__(
        self, settings: FinetuneSettings, out: Path, *, resume: bool, restarts: int
    ) -> Path:
        assert restarts == 0
        assert settings.learning_rate is not None
        found = (settings.learning_rate, settings.batch_size, settings.epochs)
        self.asked.append((out.name, *found, resume))
        out.mkdir(exist_ok=True)
        (out / "config.yaml").write_text(settings.to_yaml(), encoding="utf-8")
        if out.name == self.stops_at:
            self.stops_at = None
            raise Interrupted(15)
        if out.name == self.fails_at:
            raise BertError("The loss was not finite 10 steps in a row.")
        value = 1 / (1 + abs(settings.learning_rate - 2e-3) * 100) + settings.epochs / 100
        score = {"value": value, "low": value - 0.1, "high": value + 0.1}
        figures = {"accuracy": score, "learnt": value > 0.3, "seconds": 1.0, "restarts": 0}
        (out / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
        (out / "model").mkdir(exist_ok=True)
        (out / "README.md").write_text("done", encoding="utf-8")
        return out


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stand_in = Runs()
    monkeypatch.setattr(recipe, "finetune", stand_in)
    monkeypatch.setattr(recipe, "_report", lambda *more: None)
    return stand_in


@pytest.mark.parametrize("name", ["classification", "embedding", "few_shot"])
def test_the_usual_is_that_of_the_task(name: str) -> None:
    kind = load_task(name)
    usual = recipe._usual(kind, 384, 64)
    assert usual["learning_rate"] == kind.rate_share * usual_rate(384)
    assert usual["epochs"] == (kind.epochs or 10)


def test_the_first_trial_is_the_usual_run(
    settings: FinetuneSettings, tmp_path: Path, runs: Runs
) -> None:
    tune(settings, tmp_path / "run", trials=12)
    assert len(runs.asked) == 12
    # 5e-5 * 768 / 32, and as many epochs as so few rows are given
    assert runs.asked[0] == ("trial-1", 1.2e-3, 32, 10, False)
    for _, rate, batch_size, epochs, _ in runs.asked:
        assert 1.2e-3 / 4 <= rate <= 1.2e-3 * 4
        assert rate == float(f"{rate:.3g}")
        assert batch_size in (16, 32, 64)
        assert 2 <= epochs <= 10
    assert len({asked[1:4] for asked in runs.asked}) == 12
    summary = read(tmp_path / "run" / "metrics.json")
    values = {row["trial"]: row["value"] for row in summary["trials"]}
    assert values[summary["best"]] == max(values.values()) > values[1]


def test_an_interrupted_search_goes_on_as_if_nothing_had_been(
    settings: FinetuneSettings, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(settings, tmp_path / "whole", trials=9)
    whole, runs.asked = runs.asked, []
    for number in ("trial-1", "trial-3", "trial-8"):
        runs.stops_at = number
        with pytest.raises(Interrupted):
            tune(settings, tmp_path / "run", trials=9, resume=(tmp_path / "run").exists())
    tune(settings, tmp_path / "run", trials=9, resume=True)
    repeated = [asked for asked in runs.asked if asked[-1]]
    assert [asked[0] for asked in repeated] == ["trial-1", "trial-3", "trial-8"]
    assert [(*asked[:4], False) for asked in runs.asked if asked not in repeated] == whole
    assert {asked[:4] for asked in repeated} <= {asked[:4] for asked in whole}
    asked = len(runs.asked)
    tune(settings, tmp_path / "run", trials=9, resume=True)
    assert len(runs.asked) == asked
    tune(settings, tmp_path / "run", trials=10, resume=True)
    assert len(runs.asked) == asked + 1
    with pytest.raises(UsageError, match="seed"):
        tune(settings.model_copy(update={"seed": 3}), tmp_path / "run", resume=True)


def test_what_is_given_is_not_searched(
    settings: FinetuneSettings, tmp_path: Path, runs: Runs
) -> None:
    given = FinetuneSettings.of(
        {**settings.model_dump(exclude_unset=True), "epochs": 4, "batch_size": 8}
    )
    tune(given, tmp_path / "run", trials=3)
    assert {asked[2:4] for asked in runs.asked} == {(8, 4)}
    assert len({asked[1] for asked in runs.asked}) == 3
    everything = FinetuneSettings.of(
        {**given.model_dump(exclude_unset=True), "learning_rate": 1e-3}
    )
    with pytest.raises(UsageError, match="nothing to search"):
        tune(everything, tmp_path / "none", trials=3)
    assert not (tmp_path / "none").exists()


def test_a_trial_that_fails_is_told_and_passed_over(
    settings: FinetuneSettings,
    tmp_path: Path,
    runs: Runs,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs.fails_at = "trial-2"
    tune(settings, tmp_path / "run", trials=3)
    assert "The trial failed: The loss was not finite" in capsys.readouterr().err
    rows = read(tmp_path / "run" / "metrics.json")["trials"]
    assert [row["trial"] for row in rows if "value" not in row] == [2]
    assert len(rows) == 3


def test_no_trial_is_begun_after_the_time(
    settings: FinetuneSettings, tmp_path: Path, runs: Runs
) -> None:
    tune(settings, tmp_path / "run", minutes=0.002)
    assert 1 <= len(runs.asked) < 60
    with pytest.raises(BertError, match="None of the 0 trials"):
        tune(settings, tmp_path / "none", minutes=1e-9)


def test_without_optuna(
    settings: FinetuneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError) as error:
        tune(settings, tmp_path / "run")
    assert error.value.fix == "pip install 'bertsmith[tune]'"
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_was_given() -> None:
    settings = FinetuneSettings.of(
        {
            "train": "my rows.csv", "model": "m", "text": ["a b", "c"], "task": "classification",
            "learning_rate": 2e-5, "deterministic": True, "patience": None, "slices": "kind",
        }
    )  # fmt: skip
    assert finetune_command(settings) == (
        "bert finetune 'my rows.csv' --model m --task classification --text 'a b' --text c "
        "learning_rate=2e-05 slices=kind deterministic=true"
    )


def test_a_real_search_and_its_command(
    settings: FinetuneSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = FinetuneSettings.of(
        {**settings.model_dump(exclude_unset=True), "epochs": 6, "batch_size": 8}
    )
    run = tune(given, tmp_path / "run", trials=2)
    command = capsys.readouterr().out.strip()
    summary = read(run / "metrics.json")
    assert summary["command"] == command
    assert bert.Predictor(run)("we saw the bird")["label"] in ("animal", "weather")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image/png" in page
    words = shlex.split(command)
    assert parse_assignments([word for word in words if "=" in word])["label_smoothing"] == 0.05
    with pytest.raises(SystemExit) as stop:
        main([*words[1:], "--out", str(tmp_path / "again")])
    assert stop.value.code == 0
    again = read(tmp_path / "again" / "metrics.json")
    best = next(row for row in summary["trials"] if row["trial"] == summary["best"])
    assert again["accuracy"]["value"] == best["value"]
    best_weights = run / f"trial-{summary['best']}" / "model" / "model.safetensors"
    for path in (run, tmp_path / "again"):
        assert (path / "model" / "model.safetensors").read_bytes() == best_weights.read_bytes()


def test_a_trial_that_learnt_nothing_does_not_win(
    settings: FinetuneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs
) -> None:
    run = tune(settings, tmp_path / "run", trials=3)
    for path in run.glob("trial-*/metrics.json"):
        figures = read(path)
        path.write_text(json.dumps({**figures, "learnt": path.parent.name == "trial-1"}))
    tune(settings, run, trials=3, resume=True)
    assert read(run / "metrics.json")["best"] == 1
    (run / "trial-1" / "metrics.json").write_text(
        json.dumps({**read(run / "trial-1" / "metrics.json"), "learnt": False})
    )
    with pytest.raises(BertError, match="has learnt anything"):
        tune(settings, run, trials=3, resume=True)
