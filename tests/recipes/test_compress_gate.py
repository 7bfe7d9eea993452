"""What passes the gate, and how it is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bert.checkpoint import FACTS
from bert.errors import ModelError
from bert.model.precision import default_device, resolve_precision
from bert.predictor import Predictor
from bert.recipes import gate
from bert.recipes.finetune import FinetuneSettings, finetune, read_rows
from bert.recipes.gate import Contender, check, lost, table
from bert.tasks.classification import Classification
from bert.untrusted import read_json


def contender(name: str, value: float, better: bool = True, **figures: Any) -> Contender:
    predictor: Any = SimpleNamespace(task=SimpleNamespace(greater_is_better=better))
    score = {"value": value, "low": value - 0.02, "high": value + 0.02}
    known = {"metric": "accuracy", "score": score, "rows": 1000}
    return Contender(name, predictor, 2_000_000, {**known, **figures})


@pytest.mark.parametrize(
    ("before", "after", "better", "most", "passes"),
    [
        (0.9, 0.895, True, 0.5, True),  # exactly as much as may be
        (0.9, 0.894, True, 0.5, False),
        (0.9, 0.91, True, 0.0, True),
        (0.9, 0.899, True, 0.0, False),
        (0.30, 0.305, False, 0.5, True),  # an error, which shall be small
        (0.30, 0.31, False, 0.5, False),
        (0.30, 0.2, False, 0.0, True),
    ],
)
def test_the_border(before: float, after: float, better: bool, most: float, passes: bool) -> None:
    first, made = contender("original", before, better), contender("int8", after, better)
    assert lost(first, made) == pytest.approx(100 * abs(before - after) * (1 if (
        (after < before) == better) else -1))  # fmt: skip
    if passes:
        check(first, made, most, "here", "do this")
        return
    with pytest.raises(ModelError) as found:
        check(first, made, most, "here", "do this")
    assert f"{before:.4f} to {after:.4f} on 1,000 rows" in found.value.what
    assert (found.value.where, found.value.fix) == ("here", "do this")
    assert found.value.exit_code == 4


def test_the_table_tells_gains_and_losses() -> None:
    first = contender("original", 0.9, milliseconds_a_text=10.0, rows_per_second=100.0)
    made = contender("pruning", 0.896, milliseconds_a_text=4.0, rows_per_second=250.0)
    made.bytes = 1_000_000
    header, quality, size, alone, many = table([first, made])
    assert header == ["", "original", "pruning"]
    assert quality[1] == "0.9000 [0.8800, 0.9200]"
    assert quality[2] == "0.8960 [0.8760, 0.9160] (-0.40 points)"
    assert size[1:] == ["2.0", "1.0 (÷ 2.00)"]
    assert alone[1:] == ["10.00", "4.00 (÷ 2.50)"]
    assert many[1:] == ["100", "250 (× 2.50)"]


@pytest.mark.parametrize(("most", "chosen"), [(0.5, "bf16"), (-0.5, "fp32")])
def test_bf16_is_chosen_where_it_loses_no_more_than_it_may(
    most: float, chosen: str, tiny_model: Path, topic_rows: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = FinetuneSettings.of(
        {"train": str(topic_rows), "model": str(tiny_model), "precision": "fp32",
         "held_out": 0.4, "epochs": 4, "learning_rate": 2e-3}
    )  # fmt: skip
    run = finetune(settings, tmp_path / "run")
    assert "precision" not in read_json(run / "model" / FACTS)  # fp32 was asked for
    monkeypatch.setattr(gate, "MAX_DROP", most)  # below zero: it would have to gain
    gate.choose_precision(run / "model", read_rows(settings, Classification).held_out)
    assert read_json(run / "model" / FACTS)["precision"] == chosen
    usual = resolve_precision("auto", default_device()) if chosen == "bf16" else "fp32"
    assert Predictor(run).precision == usual
