"""The gate: what a model loses by being compressed, and what is gained, on the same rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bert import log
from bert.checkpoint import FACTS
from bert.data.rows import Example
from bert.errors import ModelError
from bert.evaluation import calibrated, measure, primary, primary_name
from bert.predictor import Predictor, answers

# Texts answered one at a time for the latency, and together for the rate, so often.
ALONE, TOGETHER, ROUNDS = 50, 512, 3
POINTS = 100  # of a metric that is 1 at best
# Points that may be lost where nothing else is said, and rows that choose a precision.
MAX_DROP = 0.5
MOST_COMPARED = 2000
_ROUNDING = 1e-9


@dataclass
class Contender:
    """A model that is measured: the original, or what was made of it.

    Args:
        name: in the table.
        predictor: answers.
        bytes: of its weights on the disk.
        figures: its primary metric as ``score``; ``rows``; ``milliseconds_a_text``, the median
            for one text alone; ``rows_per_second``, many texts at once.
        calibration: what the rows told of its answers.
        kept: matrix products that are not in 8 bits, of a model in int8.
    """

    name: str
    predictor: Predictor
    bytes: int
    figures: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    @property
    def value(self) -> float:
        """The primary metric."""
        return float(self.figures["score"]["value"])


def judge(contender: Contender, examples: Sequence[Example]) -> None:
    """Measure the quality of a model on rows with answers.

    Temperature and thresholds are those that these rows tell, of each half from the other.
    """
    predictor = contender.predictor
    task = predictor.task
    texts = [example.texts for example in examples]
    given = list(answers(task, predictor.model, texts, predictor.precision, predictor.device))
    contender.calibration, decided = calibrated(task, examples, given)
    figures = measure(task, zip(examples, decided, strict=True))
    contender.figures |= {
        "metric": primary_name(task, figures),
        "score": primary(task, figures),
        "rows": len(examples),
    }


def choose_precision(directory: Path, examples: Sequence[Example]) -> None:
    """Write down that a model answers in bf16, where this machine is quick in it and it may.

    It may where it loses no more of the primary metric than ``MAX_DROP``, beside fp32.

    Args:
        directory: of a model that was written; ``precision`` in its ``bert.json`` is set.
        examples: labelled rows that it has not seen, of which at most ``MOST_COMPARED`` are read.
    """
    some = examples[:: -(-len(examples) // MOST_COMPARED)]
    contenders = [
        Contender(precision, Predictor(directory, precision), 0) for precision in ("fp32", "bf16")
    ]
    for contender in contenders:
        judge(contender, some)
    known = {**contenders[0].predictor.facts, "precision": "fp32"}
    if lost(*contenders) <= MAX_DROP + _ROUNDING:
        known["precision"] = "bf16"
    log.write_json(directory / FACTS, known)


def time_all(contenders: Sequence[Contender], examples: Sequence[Example]) -> None:
    """Measure latency and rate of models in turn, so that a busy machine is fair to all."""
    texts = [example.texts for example in examples[:TOGETHER]]
    alone: list[list[float]] = [[] for _ in contenders]
    together: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender.predictor(texts[:3])
    for text in texts[:ALONE]:
        for times, contender in zip(alone, contenders, strict=True):
            times.append(_seconds(contender.predictor, [text]))
    for _ in range(ROUNDS):
        for times, contender in zip(together, contenders, strict=True):
            times.append(_seconds(contender.predictor, texts))
    for contender, one, many in zip(contenders, alone, together, strict=True):
        contender.figures |= {
            "milliseconds_a_text": 1e3 * statistics.median(one),
            "rows_per_second": len(texts) / min(many),
        }


def _seconds(predictor: Predictor, texts: Sequence[Any]) -> float:
    started = time.perf_counter()
    predictor(texts)
    return time.perf_counter() - started


def lost(original: Contender, made: Contender) -> float:
    """The points of the primary metric that were lost; below zero where it became better."""
    better = original.value - made.value
    return POINTS * (better if original.predictor.task.greater_is_better else -better)


def check(original: Contender, made: Contender, max_drop: float, where: str, fix: str) -> None:
    """Let a model pass that loses no more than it may.

    Args:
        original: judged.
        made: of it, judged on the same rows.
        max_drop: points that may be lost.
        where: the original's place.
        fix: what may help.

    Raises:
        ModelError: it loses more.
    """
    if (drop := lost(original, made)) > max_drop + _ROUNDING:
        raise ModelError(
            f"By {made.name} the model loses {drop:.2f} points of {made.figures['metric']}, from "
            f"{original.value:.4f} to {made.value:.4f} on {made.figures['rows']:,} rows; "
            f"{max_drop:g} may be lost, so nothing is written.",
            where=where,
            fix=fix,
        )


def table(contenders: Sequence[Contender]) -> list[list[str]]:
    """The original beside what was made of it: a header and a line for each figure."""
    first = contenders[0].figures

    def line(name: str, values: Sequence[float], form: str) -> list[str]:
        shown = [f"{values[0]:{form}}"]
        for value in values[1:]:
            times = max(value, values[0]) / max(min(value, values[0]), 1e-12)
            shown.append(f"{value:{form}} ({'×' if value >= values[0] else '÷'} {times:.2f})")
        return [name, *shown]

    return [
        ["", *(contender.name for contender in contenders)],
        [f"{first['metric']}, 95% interval", *(_quality(c, contenders[0]) for c in contenders)],
        line("size, MB", [c.bytes / 1e6 for c in contenders], ",.1f"),
        line("one text, ms", [c.figures["milliseconds_a_text"] for c in contenders], ",.2f"),
        line("texts/s", [c.figures["rows_per_second"] for c in contenders], ",.0f"),
    ]


def _quality(contender: Contender, original: Contender) -> str:
    score: Mapping[str, float] = contender.figures["score"]
    shown = f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}]"
    change = -lost(original, contender)
    return shown if contender is original else f"{shown} ({change:+.2f} points)"


def facts(contender: Contender) -> dict[str, Any]:
    """What is written down of a model that was measured."""
    return {**contender.figures, "bytes": contender.bytes}
