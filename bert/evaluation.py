"""Measuring a model on rows whose answers are known, with memory flat in their number."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert.data.draws import uniform
from bert.data.rows import Example
from bert.tasks.task import Answer, Mistake, Tally, Task

MOST_WRONG = 100
MOST_PARTS = 20  # of the data, for which figures are given one by one
FEWEST_IN_PART = 20
# Characters of a row, up to which it is among the short ones of its kind.
LENGTHS = (50, 200, 1000, 4000)


def measure(
    task: Task,
    answered: Iterable[tuple[Example, Answer]],
    out: Path | None = None,
    by: str = "",
) -> dict[str, Any]:
    """Figures over answers: those of the task's tally, and of parts of the data.

    Args:
        task: of the model.
        answered: rows with their truth, and the answers to them.
        out: a folder for ``predictions_dev.jsonl`` (every row) and ``most_wrong.jsonl`` (the
            worst mistakes).
        by: a column by whose values figures are given too.

    Returns:
        The tally's figures, with ``rows``; ``truncated`` and ``in_windows``, rows of which
        the model did not see all, or not all at once; ``parts``, the primary metric by length
        and by the values of a column; ``most_wrong``.
    """
    whole, parts = task.tally(), _Parts(task, by)
    worst: list[tuple[float, int, Example, Mistake]] = []
    rows = truncated = in_windows = 0
    with ExitStack() as stack:
        file = (
            stack.enter_context((out / "predictions_dev.jsonl").open("w", encoding="utf-8"))
            if out is not None
            else None
        )
        for example, answer in answered:
            rows += 1
            truncated += answer["truncated"]
            in_windows += answer["windows"] > 1
            whole.add(example.truth, answer)
            parts.add(example, answer)
            if file is not None:
                line = {"where": example.where, "texts": example.texts, "truth": example.truth}
                file.write(json.dumps(line | task.written(answer), ensure_ascii=False) + "\n")
            if (mistake := task.mistake(example, answer)) is not None:
                add = heapq.heappush if len(worst) < MOST_WRONG else heapq.heappushpop
                add(worst, (mistake.badness, -rows, example, mistake))
    worst.sort(key=lambda item: item[:2], reverse=True)
    mistakes = [{"where": example.where, **asdict(found)} for _, _, example, found in worst]
    if out is not None:
        (out / "most_wrong.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in mistakes),
            encoding="utf-8",
        )
    return {
        **whole.figures(),
        "rows": rows,
        "truncated": truncated,
        "in_windows": in_windows,
        "parts": parts.figures(),
        "most_wrong": mistakes,
    }


class _Parts:
    """Tallies of parts of the data: by length, and by the values of a column."""

    def __init__(self, task: Task, by: str) -> None:
        self.task = task
        self.by = by
        self.tallies: dict[str, dict[str, Tally]] = {}
        self.rows: dict[tuple[str, str], int] = {}

    def add(self, example: Example, answer: Answer) -> None:
        characters = sum(map(len, example.parts))
        bound = next((f"up to {most:,}" for most in LENGTHS if characters <= most), "longer")
        self._add("characters", bound, example, answer)
        if self.by:
            self._add(self.by, str(example.columns.get(self.by)), example, answer)

    def _add(self, kind: str, value: str, example: Example, answer: Answer) -> None:
        tallies = self.tallies.setdefault(kind, {})
        if value not in tallies:
            if len(tallies) >= MOST_PARTS:
                value = "others"
            tallies.setdefault(value, self.task.tally())
        tallies[value].add(example.truth, answer)
        self.rows[kind, value] = self.rows.get((kind, value), 0) + 1

    def figures(self) -> dict[str, dict[str, Any]]:
        """Kind of part -> its value -> the primary metric, and ``rows``."""
        return {
            kind: {
                value: {**primary(self.task, tally.figures()), "rows": self.rows[kind, value]}
                for value, tally in tallies.items()
                if self.rows[kind, value] >= FEWEST_IN_PART
            }
            for kind, tallies in self.tallies.items()
        }


def primary(task: Task | type[Task], figures: Mapping[str, Any]) -> dict[str, float]:
    """The figure that models are compared by: {"value", "low", "high"}."""
    found: Any = figures
    for step in _primary(task, figures).split("."):
        found = found[step]
    return dict(found)


def primary_name(task: Task | type[Task], figures: Mapping[str, Any]) -> str:
    """What that figure is called."""
    return _primary(task, figures).replace(".", " ")


def _primary(task: Task | type[Task], figures: Mapping[str, Any]) -> str:
    # A run's options may have chosen another one than its task has.
    return str(figures.get("primary_metric", task.primary_metric))


def scores(figures: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """All figures with an interval, by name; those of a group with its name before theirs."""
    for name, value in figures.items():
        if not isinstance(value, Mapping) or name in ("per_label", "parts", "test"):
            continue
        if value.keys() >= {"value", "low", "high"}:
            yield f"{group} {name}".strip(), dict(value)
        elif not group:
            yield from scores(value, name)


def calibrated(
    task: Task, examples: Sequence[Example], answers: Sequence[Answer]
) -> tuple[dict[str, Any], list[Answer]]:
    """What held-out rows tell of the answers, and those answers with it taken into account.

    What is returned of a row was decided by what the other half of the rows told, so that
    figures over those answers are not flattered; what is kept for use is told by all rows.
    """
    found = task.calibrate(examples, answers)
    if not found:
        return {}, list(answers)
    half = uniform(0, range(len(examples))) < 0.5
    decided: list[Answer] = [{}] * len(answers)
    for side in (True, False):
        tell = [i for i in range(len(answers)) if half[i] != side]
        told = task.calibrate([examples[i] for i in tell], [answers[i] for i in tell])
        for i in itertools.compress(range(len(answers)), half == side):
            decided[i] = task.decide(answers[i], told)
    return found, decided
