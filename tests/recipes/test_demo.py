"""The demo: its data is honest, and the whole path runs from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bert.cli import main
from bert.recipes import demo


def rows(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo.write_data(folder)
    return folder


def test_held_out_docstrings_are_neither_learnt_from_nor_in_the_corpus(data: Path) -> None:
    train, held_out = rows(data / "train.csv"), rows(data / "held_out.csv")
    corpus = (data / "corpus.txt").read_text(encoding="utf-8")
    assert len(train) == demo.TRAINING_ROWS
    assert len(held_out) > 1000
    assert not {text for text, _ in train} & {text for text, _ in held_out}
    for text, _ in held_out:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 2:  # a single line may also stand inside another docstring
            assert "\n".join(lines) not in corpus


def test_every_part_of_the_library_is_there_to_learn_and_to_measure(data: Path) -> None:
    for name in ("train.csv", "held_out.csv"):
        assert {label for _, label in rows(data / name)} == set(demo.PARTS)
    modules = [module for part in demo.PARTS.values() for module in part.split()]
    assert len(modules) == len(set(modules))


def test_the_whole_path_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "TRAINING_ROWS", 64)
    monkeypatch.setattr(demo, "HELD_OUT_SHARE", 0.05)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", str(tmp_path / "demo"), "--minutes", "0.05"])
    assert stop.value.code == 0
    said = capsys.readouterr().err
    tuned = tmp_path / "demo" / "finetuned"
    assert f"bert serve {tuned}\n" in said
    assert str(tuned / "report.html") in said
    for run in ("finetuned", "finetuned_untrained"):
        figures = json.loads((tmp_path / "demo" / run / "metrics.json").read_text("utf-8"))
        assert f"{figures['accuracy']['value']:.1%}" in said
    settings = [
        (tmp_path / "demo" / run / "config.yaml").read_text("utf-8").splitlines()
        for run in ("finetuned", "finetuned_untrained")
    ]
    differing = [a for a, b in zip(*settings, strict=True) if a != b]
    assert len(differing) == 1  # the comparison is fair: nothing but the model differs
    assert differing[0].startswith("model:")


def test_a_folder_with_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("dear reader", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert (tmp_path / "letter.txt").read_text(encoding="utf-8") == "dear reader"
    assert "fix:" in capsys.readouterr().err
