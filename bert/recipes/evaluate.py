"""``bert evaluate``: figures of a fine-tuned model on a file of labelled rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert.data.rows import read_examples
from bert.evaluation import evaluate
from bert.predictor import Predictor
from bert.recipes.predict import text_columns


def evaluate_file(
    name: str, file: Path, text: Sequence[str], label: str | None, *, as_json: bool
) -> dict[str, Any]:
    """Measure and print.

    Columns that are not named are those the model was fine-tuned on.

    Raises:
        ModelError, DataError, UsageError: as their names say.
    """
    predictor = Predictor(name)
    if predictor.task == "classification":  # else ``evaluate`` tells what is wrong
        text = text_columns(predictor, file, text)
    label = label or predictor.facts.get("label_column")
    figures = evaluate(predictor, read_examples(file, text, label, labelled=True))
    del figures["most_wrong"]
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
    else:
        _print(figures)
    return figures


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("figure", "value", "95% interval", title=f"{figures['rows']:,} rows")
    scores = {"accuracy": figures["accuracy"]} | {
        f"{mean} {part}": score
        for mean in ("macro", "weighted")
        for part, score in figures[mean].items()
    }
    for name, score in scores.items():
        interval = f"{score['low']:.4f} to {score['high']:.4f}"
        table.add_row(name, f"{score['value']:.4f}", interval)
    console.print(table)
    labels = Table("label", "precision", "recall", "F1", "rows")
    for name, score in figures["per_label"].items():
        parts = (f"{score[part]['value']:.4f}" for part in ("precision", "recall", "f1"))
        labels.add_row(name, *parts, f"{score['support']:,}")
    console.print(labels)
    majority = figures["majority_accuracy"]
    console.print(f"Always answering {majority['label']}: accuracy {majority['value']:.4f}")
    if figures["truncated"]:
        console.print(f"{figures['truncated']:,} texts were cut at the model's limit.")
