"""``bert evaluate``: figures of a fine-tuned model on a file of labelled rows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bert.bulk import facts_of, kept_answers
from bert.cache import cache_directory, key_of
from bert.data.rows import Example
from bert.errors import UsageError
from bert.evaluation import measure, scores
from bert.predictor import Predictor
from bert.recipes.predict import text_columns
from bert.tasks.task import Task


def evaluate_file(
    name: str,
    file: Path,
    text: Sequence[str],
    label: str | None,
    by: str,
    *,
    as_json: bool,
    precision: str = "auto",
) -> dict[str, Any]:
    """Measure and print.

    Columns that are not named are those the model was fine-tuned on. If the command is
    interrupted, the same command goes on from there.

    Raises:
        ModelError, DataError, UsageError: as their names say.
    """
    predictor = Predictor(name, precision)
    task = predictor.task
    if not task.primary_metric:
        raise UsageError(
            f"A model for {task.name} cannot be evaluated on labelled rows.",
            where=str(predictor.directory),
            fix="fine-tune it first: bert finetune TRAIN --model "
            + shlex.quote(str(predictor.directory)),
        )
    text = text_columns(predictor, file, text)
    label = label or predictor.facts.get("label_column")
    examples = _checked(task, task.read(file, text, label, labelled=True))
    folder = cache_directory() / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    columns = [list(text), label, predictor.precision]
    part = folder / key_of(str(predictor.directory), str(file.resolve()), columns)
    with kept_answers(predictor, examples, part, facts_of(file), columns, strict=True) as kept:
        figures = measure(task, kept.answered, by=by)
    del figures["most_wrong"]
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
    else:
        _print(figures)
    return figures


def _checked(task: Task, examples: Iterable[Example]) -> Iterator[Example]:
    """Rows on which the model can be measured."""
    for example in examples:
        task.check(example)
        yield example


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("figure", "value", "95% interval", title=f"{figures['rows']:,} rows")
    for name, score in scores(figures):
        table.add_row(name, f"{score['value']:.4f}", f"{score['low']:.4f} to {score['high']:.4f}")
    console.print(table)
    if labels := figures.get("per_label"):
        kinds = list(next(iter(labels.values())))
        shown = Table("label", *kinds)
        for name, row in labels.items():
            shown.add_row(name, *(_cell(row[kind]) for kind in kinds))
        console.print(shown)
    if majority := figures.get("majority_accuracy"):
        console.print(f"Always answering {majority['label']}: accuracy {majority['value']:.4f}")
    for kind, parts in figures["parts"].items():
        if len(parts) > 1:
            shown = Table(kind, "value", "95% interval", "rows")
            for name, part in parts.items():
                interval = f"{part['low']:.4f} to {part['high']:.4f}"
                shown.add_row(name, f"{part['value']:.4f}", interval, f"{part['rows']:,}")
            console.print(shown)
    if figures["truncated"]:
        console.print(f"Of {figures['truncated']:,} rows the model did not see all.")


def _cell(value: Any) -> str:
    return f"{value['value']:.4f}" if isinstance(value, dict) else f"{value:,}"
