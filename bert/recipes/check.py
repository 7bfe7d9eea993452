"""``bert check``: what training would find in a file of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bert.data.rows import training_examples
from bert.errors import UsageError
from bert.tasks.task import load_task

FEW = 8  # rows below which a label can hardly be learnt


def check_file(
    file: Path, task: str, text: Sequence[str], label: str | None, *, as_json: bool
) -> None:
    """Read every row as training does, and print what is there.

    Raises:
        UsageError: there is no such task.
        DataError: a fault that would stop training, with its row.
    """
    kind = load_task(task)
    if not kind.primary_metric:
        raise UsageError(f"The task {task} is asked, not trained.", fix="--task classification")
    examples, report = training_examples(
        kind.read(file, text, label, labelled=True), kind.names, str(file)
    )
    kind.labels_of(examples, str(file))
    columns = kind.text_columns(file, text)
    label = kind.label_column(file, label) if columns else label
    summary = {"text": list(columns), "label": label, **report.summary()}
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
        return
    named = f"; text: {', '.join(columns)}; label: {summary['label']}" if columns else ""
    print(f"{report.rows:,} rows, {len(examples):,} usable{named}")
    for name, count in sorted(report.labels.items()):
        few = "   few to learn from" if count < FEW else ""
        print(f"  {name}: {count:,} ({count / len(examples):.1%}){few}")
    for reason, rows in report.dropped.items():
        print(f"left out, {reason}: {report.dropped_counts[reason]:,}, such as {rows[0]}")
    if report.duplicates:
        print(f"the same text and label again: {report.duplicates:,} rows")
    if report.contradictions:
        print(f"the same text with another label: {report.contradictions:,} rows")
    if halves := report.half_empty:
        print(f"one text of two is empty: {len(halves):,} rows, such as {halves[0]}")
    characters = summary["characters"]
    print(
        f"characters a row: median {characters['median']:,.0f}, 95% below "
        f"{characters['95%']:,.0f}, longest {characters['longest']:,}"
    )
