"""Measuring a classifier on labelled rows, with memory flat in their number."""

from __future__ import annotations

import heapq
import json
import shlex
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bert.data.rows import Example
from bert.errors import DataError, UsageError
from bert.metrics.classify import confusion_matrix, metrics_of_confusion
from bert.predictor import Predictor

ROWS_AT_ONCE = 2048
MOST_WRONG = 100


def evaluate(
    predictor: Predictor, examples: Iterable[Example], out: Path | None = None
) -> dict[str, Any]:
    """Accuracy, precision, recall and F1 with 95% intervals, as ``metrics_of_confusion`` gives.

    Args:
        predictor: of a classification model.
        examples: rows with labels.
        out: a folder for ``predictions_dev.jsonl`` (every row) and ``most_wrong.jsonl`` (the
            wrong rows of which the model was surest).

    Raises:
        UsageError: the model does not classify.
        DataError: a row without label, or with one that the model does not know.
    """
    if predictor.task != "classification":
        raise UsageError(
            f"A model for {predictor.task} cannot be evaluated on labelled rows.",
            where=str(predictor.directory),
            fix="fine-tune it first: bert finetune TRAIN --model "
            + shlex.quote(str(predictor.directory)),
        )
    labels = predictor.labels
    number = {label: i for i, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
    worst: list[tuple[float, int, dict[str, Any]]] = []
    truncated = 0
    source = iter(examples)
    with ExitStack() as stack:
        file = (
            stack.enter_context((out / "predictions_dev.jsonl").open("w", encoding="utf-8"))
            if out is not None
            else None
        )
        row = 0
        while chunk := list(islice(source, ROWS_AT_ONCE)):
            for example in chunk:
                check_label(example, labels)
            answers = predictor([example.texts for example in chunk])
            truth = [number[example.label or ""] for example in chunk]
            predicted = [number[answer["label"]] for answer in answers]
            matrix += confusion_matrix(truth, predicted, len(labels))
            for example, answer in zip(chunk, answers, strict=True):
                row += 1
                truncated += answer["truncated"]
                line = {"where": example.where, "texts": example.texts, "truth": example.label}
                line |= answer
                if file is not None:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                if answer["label"] != example.label:
                    sure = answer["probabilities"][answer["label"]]
                    add = heapq.heappush if len(worst) < MOST_WRONG else heapq.heappushpop
                    add(worst, (sure, -row, line))
    lines = [line for _, _, line in sorted(worst, key=lambda item: item[:2], reverse=True)]
    if out is not None:
        (out / "most_wrong.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
            encoding="utf-8",
        )
    return {
        **metrics_of_confusion(matrix, labels),
        "truncated": truncated,
        "most_wrong": lines,
    }


def check_label(example: Example, labels: Sequence[str]) -> None:
    """Make sure that the model knows a row's label.

    Raises:
        DataError: it does not, or the row has none.
    """
    if example.label in labels:
        return
    listed = ", ".join(labels[:20]) + (" ..." if len(labels) > 20 else "")
    if example.label is None:
        raise DataError(
            "The row has no label.",
            where=example.where,
            fix="fill it in, or leave the row out",
        )
    raise DataError(
        f"The model does not know the label {example.label!r}; it knows {listed}.",
        where=example.where,
        fix="correct the label, or fine-tune with rows that have it",
    )
