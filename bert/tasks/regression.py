"""Regression: a number for a text or a pair of texts, such as how alike two sentences are."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from bert.checkpoint import Checkpoint
from bert.config import Settings
from bert.data.batches import Batch, Numbers
from bert.data.rows import Example
from bert.errors import DataError
from bert.metrics import plots
from bert.metrics.regress import RegressionTally
from bert.tasks.task import Answer, Mistake, Sample, Targets, Task, row_logits
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed
from bert.training.loop import Outcome

# Single precision has room to compute with such a number.
LARGEST = 1e30
# Scores whose deviation is below this share of that of the truth are all the same.
CONSTANT = 0.01


class Regression(Task):
    """One output over the pooled first token is the score; of a long text the mean of its windows'.

    Numbers may have any unit: the head is trained for ``(score - mean) / deviation`` of the
    training rows, and written with both folded into its weights, so that what it gives is the
    score itself.
    """

    kind = "sequence"
    primary_metric = "spearman"
    label_columns = ("score", "label")
    problem_type = "regression"
    demo_rows: ClassVar[Sequence[dict[str, Any]]] = (
        {"text": "five stars, simply perfect", "score": 5},
        {"text": "very good", "score": 4.5},
        {"text": "good, with some flaws", "score": 4},
        {"text": "neither good nor bad", "score": 3},
        {"text": "rather weak", "score": 2},
        {"text": "the worst that I have read", "score": 0.5},
        {"text": "非常好", "score": 4.8},
        {"text": "很差", "score": 1},
    )

    def __init__(self, checkpoint: Checkpoint, options: Settings | None = None) -> None:
        super().__init__(checkpoint, options)
        self._head: nn.Linear = checkpoint.model.classifier  # type: ignore[assignment]
        # What the head gives is (score - mean) / deviation.
        self._mean, self._deviation = 0.0, 1.0

    @classmethod
    def parse(cls, value: Any, where: str) -> float | None:
        """The number in the column; None where it is empty.

        Raises:
            DataError: it is not a finite number, or too large to compute with.
        """
        if value is None or value == "":
            return None
        try:
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise ValueError
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= LARGEST:
            raise DataError(
                f"The score is {value!r:.60}, which is no number from -{LARGEST:g} to {LARGEST:g}.",
                where=where,
                fix="write a number with a point, such as 3.5, or name its column: --label COLUMN",
            )
        return number

    @classmethod
    def labels_of(cls, examples: Sequence[Example], where: str) -> list[str]:
        """The name of the one output."""
        if len({example.truth for example in examples}) < 2:
            raise DataError(
                f"Every row has the same score {examples[0].truth:g}; there is nothing to learn.",
                where=where,
                fix="give rows of different scores, or name their column: --label COLUMN",
            )
        return ["score"]

    def samples(self, examples: Sequence[Example]) -> list[Sample]:
        """Rows as they are trained on; the head is made ready for their mean and deviation."""
        scores = np.array([example.truth for example in examples])
        mean, deviation = float(scores.mean()), float(scores.std()) or 1.0
        with torch.no_grad():
            # A new head, whose bias is zero, is drawn for numbers of this size.
            if self._head.bias.any():
                ratio = self._deviation / deviation
                self._head.weight.mul_(ratio)
                self._head.bias.mul_(ratio).add_((self._mean - mean) / deviation)
        self._mean, self._deviation = mean, deviation
        return super().samples(examples)

    def targets(self, example: Example, encoded: Windowed) -> Targets:
        """``score`` [1], of mean 0 and deviation 1 over the training rows."""
        return {"score": np.array([(example.truth - self._mean) / self._deviation], np.float32)}

    @contextmanager
    def published(self, model: nn.Module) -> Iterator[None]:
        """While it lasts, what the head gives is the score itself."""
        head: nn.Linear = model.classifier  # type: ignore[assignment]
        kept = head.weight.detach().clone(), head.bias.detach().clone()
        with torch.no_grad():
            head.weight.mul_(self._deviation)
            head.bias.mul_(self._deviation).add_(self._mean)
            try:
                yield
            finally:
                head.weight.copy_(kept[0])
                head.bias.copy_(kept[1])

    def counts(self, batch: Batch) -> dict[str, int]:
        """One a row."""
        return {"score": len(batch.samples)}

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """Squared error in units of the variance, summed over rows: the mean is 1 for a constant.

        Rows that are less than half a deviation off count as right.
        """
        scores = torch.as_tensor(batch.targets["score"]).to(device)  # [R]
        error = row_logits(model, batch, device)[:, 0] - scores  # [R]
        return Outcome({"score": (error**2).sum()}, {"score": (error.abs() < 0.5).sum()})

    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """``{"score": number}``."""
        return {"score": float(np.mean(scores)) * self._deviation + self._mean}

    def tally(self) -> RegressionAnswers:
        """Correlations and errors."""
        return RegressionAnswers()

    def constant(self, answers: Sequence[Answer]) -> bool:
        """Whether the scores hardly differ from each other."""
        scores = np.array([answer["score"] for answer in answers])
        return len(scores) > 1 and bool(scores.std() < CONSTANT * self._deviation)

    def mistake(self, example: Example, answer: Answer) -> Mistake | None:
        """How far the score is off."""
        error = abs(answer["score"] - example.truth)
        given = f"{answer['score']:.4g}"
        text = "\n".join(example.parts)
        return Mistake(error, f"{example.truth:g}", given, text) if error else None

    def pictures(self, figures: Mapping[str, Any], folder: Path) -> Iterable[tuple[Path, str]]:
        """The scores given against the true ones."""
        tenths = figures["tenths"]
        plots.scatter(
            folder / "scores.png",
            [tenth["truth"] for tenth in tenths],
            [tenth["score"] for tenth in tenths],
            title="Held-out rows, in tenths by their true score",
            label="score, mean",
        )
        yield folder / "scores.png", "mean score given, against the mean true one"


class RegressionAnswers:
    """``RegressionTally`` over answers; two numbers are kept of each."""

    def __init__(self) -> None:
        self._truth, self._given = array("d"), array("d")

    def add(self, truth: float, answer: Answer) -> None:
        """Count one answer."""
        self._truth.append(truth)
        self._given.append(answer["score"])

    def figures(self) -> dict[str, Any]:
        """Those of ``RegressionTally``; ``tenths`` of the rows: mean ``truth`` and ``score``."""
        truth, given = np.frombuffer(self._truth), np.frombuffer(self._given)
        tally = RegressionTally()
        tally.add(truth, given)
        tenths = np.array_split(np.argsort(truth, kind="stable"), min(10, len(truth)))
        return {
            **tally.figures(),
            "tenths": [
                {"truth": float(truth[rows].mean()), "score": float(given[rows].mean())}
                for rows in tenths
            ],
        }


TASK = Regression
