"""Multi-label: any number of labels for a text or a pair of texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from bert.config import Settings
from bert.data.batches import Batch, Numbers
from bert.data.rows import Example, label_name, sorted_labels
from bert.errors import DataError, ModelError
from bert.metrics import plots
from bert.metrics.calibrate import CalibrationTally, best_thresholds
from bert.metrics.multilabel import MultilabelTally
from bert.tasks.classification import (
    FEWEST_TO_CALIBRATE,
    ROWS_AT_ONCE,
    SPREAD,
    calibration_pictures,
    fit_temper,
    log_odds,
    temper_of,
    unknown_label,
)
from bert.tasks.task import Answer, Mistake, Sample, Targets, Task, row_logits
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed
from bert.training.loop import Outcome

# A string of labels is divided at the first of these that it has.
SEPARATORS = ";|,"
# Held-out rows with a label below which its threshold stays where it is.
FEWEST_TO_TUNE = 5
THRESHOLD = 0.5


class MultilabelOptions(Settings):
    """What only multi-label classification can be told.

    Args:
        class_weights: ``balanced`` makes yes and no of each label count the same in the loss.
        logit_adjustment: tau; in training tau times the log odds of each label's share of the
            rows is added to its logit (Menon et al. 2021); 0 for none.
        focal: gamma of the focal loss (Lin et al. 2017), 0 for plain cross-entropy.
    """

    class_weights: Literal["none", "balanced"] = "none"
    logit_adjustment: float = Field(0.0, ge=0)
    focal: float = Field(0.0, ge=0)


class Multilabel(Task):
    """A sigmoid for each label over a linear map of the pooled first token.

    Of a long text it is the sigmoid of the mean of its windows' logits, in training too.
    """

    kind = "sequence"
    Options = MultilabelOptions
    options: MultilabelOptions
    primary_metric = "micro.f1"
    label_columns = ("labels", "label")
    problem_type = "multi_label_classification"
    demo_rows: ClassVar[Sequence[dict[str, Any]]] = (
        {"text": "the soup was cold and the waiter rude", "labels": ["food", "service"]},
        {"text": "a fine soup", "labels": ["food"]},
        {"text": "the waiter was friendly", "labels": ["service"]},
        {"text": "we came by train on Sunday", "labels": []},
        {
            "text": "great cooking, quick waiters, low prices",
            "labels": ["food", "price", "service"],
        },
        {"text": "far too expensive", "labels": ["price"]},
        {"text": "菜很好吃,但是太贵", "labels": ["food", "price"]},
        {"text": "服务员很热情", "labels": ["service"]},
    )

    _weights: Tensor | None = None  # [2, L] of no and yes of each label in the loss

    @classmethod
    def parse(cls, value: Any, where: str) -> list[str] | None:
        """A list of names, or a string with names between separators -> the names, sorted.

        No value at all is no truth; an empty list is one: that there is no label.

        Raises:
            DataError: something else.
        """
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise DataError(
                    f"The labels {value!r:.60} begin like a JSON list and are none.",
                    where=where,
                    fix='write ["one", "two"], or one;two',
                ) from None
        if isinstance(value, str):
            mark = next((mark for mark in SEPARATORS if mark in value), None)
            parts = value.split(mark) if mark else [value]
            value = [part.strip() for part in parts] if value.strip() else None
        if value is None:
            return None
        if not isinstance(value, list):
            value = [value]
        names = [label_name(name, where) for name in value]
        if None in names:
            raise DataError(
                "One of the labels has no name.", where=where, fix="leave it out of the list"
            )
        return sorted({str(name) for name in names})

    @classmethod
    def names(cls, truth: list[str]) -> list[str]:
        """The labels."""
        return truth

    @classmethod
    def labels_of(cls, examples: Sequence[Example], where: str) -> list[str]:
        """The names that occur, in order."""
        found = {name for example in examples for name in example.truth}
        if not found:
            raise DataError(
                "No row has a label; there is nothing to tell apart.",
                where=where,
                fix="name the column of labels: --label COLUMN",
            )
        return sorted_labels(list(found), where)

    def check(self, example: Example) -> None:
        """The model must know the labels."""
        super().check(example)
        for name in example.truth:
            if name not in self.labels:
                raise unknown_label(example, name, self.labels)

    def samples(self, examples: Sequence[Example]) -> list[Sample]:
        """Rows as they are trained on; the weights are those of these rows."""
        made = super().samples(examples)
        if self.options.class_weights == "balanced" or self.options.logit_adjustment:
            flags = np.concatenate([sample.targets["labels"] for sample in made])  # [R, L]
            yes = flags.sum(axis=0)
            found = np.maximum(np.stack([len(flags) - yes, yes]), 1)  # [2, L]
            self._weights = torch.from_numpy(len(flags) / (2 * found)).float()
        return made

    def targets(self, example: Example, encoded: Windowed) -> Targets:
        """``labels`` [1, L], 1 where a label is there."""
        return {"labels": self._flags(example.truth)[None].astype(np.float32)}

    def _flags(self, names: Sequence[str]) -> Numbers:
        """Whether each label is among the names: [L]."""
        there = set(names)
        return np.array([label in there for label in self.labels])

    def counts(self, batch: Batch) -> dict[str, int]:
        """Decisions: each label of each row is one, so that the loss is their mean."""
        return {"label": batch.targets["labels"].size}

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """Binary cross-entropy, summed over rows and labels."""
        flags = torch.as_tensor(batch.targets["labels"]).to(device)  # [R, L]
        logits = row_logits(model, batch, device)  # [R, L]
        options = self.options
        shifted = logits
        if self._weights is not None:
            no, yes = self._weights.to(logits)
            shifted = logits + options.logit_adjustment * (no.log() - yes.log())
        each = F.binary_cross_entropy_with_logits(shifted, flags, reduction="none")
        if self._weights is not None and options.class_weights == "balanced":
            each = each * torch.where(flags > 0, yes, no)
        if options.focal:
            right = torch.where(flags > 0, shifted, -shifted).sigmoid()
            each = (1 - right) ** options.focal * each
        return Outcome({"label": each.sum()}, {"label": ((logits > 0) == (flags > 0)).sum()})

    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """``{"labels": [names], "probabilities": {name: probability}}``, before thresholds."""
        logits = np.mean(scores, axis=0).astype(np.float64)
        return self._answer(0.5 + 0.5 * np.tanh(logits / 2), {})

    def _answer(self, chances: Numbers, thresholds: Mapping[str, float]) -> Answer:
        row = dict(zip(self.labels, chances.tolist(), strict=True))
        there = [name for name, p in row.items() if p >= thresholds.get(name, THRESHOLD)]
        return {"labels": there, "probabilities": row}

    def decide(self, answer: Answer, calibration: Mapping[str, Any]) -> Answer:
        """Honest probabilities, and the labels whose probability reaches their threshold."""
        chances = np.array(list(answer["probabilities"].values()))
        chances = _tempered(log_odds(chances), *temper_of(calibration))
        return {**answer, **self._answer(chances, thresholds_of(calibration))}

    def calibrate(self, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, Any]:
        """As ``fit_temper``, with ``uncalibrated_error``, and the ``thresholds`` of greatest F1.

        Thresholds are of the honest probabilities, by name.
        """
        if len(answers) < FEWEST_TO_CALIBRATE:
            return {}
        chances = np.array([list(answer["probabilities"].values()) for answer in answers])
        there = np.array([self._flags(example.truth) for example in examples])  # [R, L]
        before = CalibrationTally()
        before.add(chances, there)
        logits = log_odds(chances)
        yes = logits.ravel()  # yes and no are two labels with the logits z and 0
        temper = fit_temper(
            np.stack([np.zeros_like(yes), yes], axis=-1), there.ravel().astype(np.int64)
        )
        found = best_thresholds(_tempered(logits, *temper_of(temper)), there)
        found[there.sum(axis=0) < FEWEST_TO_TUNE] = THRESHOLD
        return {
            **temper,
            "uncalibrated_error": before.figures()["expected_calibration_error"],
            "thresholds": dict(zip(self.labels, found.tolist(), strict=True)),
        }

    def tally(self) -> MultilabelAnswers:
        """Micro and macro F1, each label's, and whether probabilities can be trusted."""
        return MultilabelAnswers(self.labels)

    def constant(self, answers: Sequence[Answer]) -> bool:
        """Whether the labels are the same for all, of probabilities that hardly differ."""
        if len({tuple(answer["labels"]) for answer in answers}) != 1 or len(answers) == 1:
            return False
        chances = np.array([list(answer["probabilities"].values()) for answer in answers])
        return bool(log_odds(chances).std(axis=0).max() < SPREAD)

    def mistake(self, example: Example, answer: Answer) -> Mistake | None:
        """Labels too many or too few; as bad as the surest of them."""
        wrong = set(answer["labels"]) ^ set(example.truth)
        if not wrong:
            return None
        chances = answer["probabilities"]
        badness = max(chances[name] if name in answer["labels"] else 1 - chances[name]
                      for name in wrong)  # fmt: skip
        truth, given = (", ".join(names) or "none" for names in (example.truth, answer["labels"]))
        return Mistake(badness, truth, given, "\n".join(example.parts))

    def pictures(self, figures: Mapping[str, Any], folder: Path) -> Iterable[tuple[Path, str]]:
        """F1 by label, and how far probabilities can be trusted."""
        plots.f1_scores(folder / "f1.png", figures["per_label"], "label")
        yield folder / "f1.png", "F1 by label"
        yield from calibration_pictures(figures, folder)


class MultilabelAnswers:
    """``MultilabelTally`` and ``CalibrationTally`` over answers; a decision is a row and label."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self._labels = MultilabelTally(labels)
        self._calibration = CalibrationTally()
        self._waiting: list[tuple[set[str], Answer]] = []

    def add(self, truth: list[str], answer: Answer) -> None:
        """Count one answer."""
        self._waiting.append((set(truth), answer))
        if len(self._waiting) >= ROWS_AT_ONCE:
            self._count()

    def _count(self) -> None:
        pairs = [(truth, set(answer["labels"])) for truth, answer in self._waiting]
        there, given = (
            np.array([[name in pair[side] for name in self.labels] for pair in pairs])
            for side in (0, 1)
        )
        chances = [list(answer["probabilities"].values()) for _, answer in self._waiting]
        self._labels.add(there, given)
        self._calibration.add(np.array(chances), there)
        self._waiting.clear()

    def figures(self) -> dict[str, Any]:
        """Those of both, without the accuracy of single decisions, which are mostly no."""
        if self._waiting:
            self._count()
        found = self._calibration.figures()
        del found["accuracy"]
        return {**found, **self._labels.figures()}


def _tempered(
    logits: Numbers, temperature: float, exponent: float, highest: float
) -> NDArray[np.float64]:
    """Honest probabilities; yes and no of a label are the two logits of ``tempered``."""
    height = np.clip(np.abs(logits), 1e-6, highest)
    scaled = logits * height ** (exponent - 1) / temperature
    return np.asarray(0.5 + 0.5 * np.tanh(scaled / 2))  # the sigmoid, without overflow


def thresholds_of(calibration: Mapping[str, Any]) -> dict[str, float]:
    """The thresholds in what ``calibrate`` found, which a file may tell.

    Raises:
        ModelError: they are no numbers by name.
    """
    found = calibration.get("thresholds") or {}
    numbers = isinstance(found, dict) and all(isinstance(v, int | float) for v in found.values())
    if not numbers:
        raise ModelError(
            f"The thresholds are {found!r:.60}, not a number for each label.",
            where="calibration in bert.json",
            fix='write "thresholds": {"label": 0.5}, or fine-tune again',
        )
    return dict(found)


TASK = Multilabel
