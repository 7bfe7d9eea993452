"""Classification: one of L labels for a text or a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor, nn

from bert.checkpoint import Checkpoint
from bert.config import Settings
from bert.data.batches import Batch, Ints, Numbers
from bert.data.rows import Example, sorted_labels
from bert.errors import DataError, ModelError
from bert.metrics import plots
from bert.metrics.calibrate import CalibrationTally, fit_temperature
from bert.metrics.classify import metrics_of_confusion
from bert.tasks.task import Answer, Mistake, Sample, Targets, Task, row_logits
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed
from bert.training.loop import Outcome

# Held-out rows below which nothing is calibrated.
FEWEST_TO_CALIBRATE = 100
# Rows that are counted at once: numpy is slow for one.
ROWS_AT_ONCE = 512
# Probabilities count as this at least where their logarithm is needed.
TINY = 1e-300
LOWEST = math.log(TINY)
# The greatest exponent of a calibration; its inverse is the least.
MOST_BENT = 4.0
# One label for all rows is no sign of failure where the model is so sure of it on average, and
# the logits of rows have so great a standard deviation.
SURE, SPREAD = 0.9, 0.5


class ClassificationOptions(Settings):
    """What only classification can be told.

    Args:
        class_weights: ``balanced`` makes every label count the same in the loss, however rare.
        logit_adjustment: tau; in training tau times the logarithm of each label's share of the
            rows is added to its logit, so that the network itself has to prefer rare labels
            (Menon et al. 2021); 0 for none, 1 for the least balanced error.
        focal: gamma of the focal loss (Lin et al. 2017), 0 for plain cross-entropy.
        label_smoothing: share of the truth that is spread over all labels.
    """

    class_weights: Literal["none", "balanced"] = "none"
    focal: float = Field(0.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    logit_adjustment: float = Field(0.0, ge=0)

    @property
    def balances(self) -> bool:
        """Whether rare labels are to matter as much as frequent ones.

        The loss needs the labels' weights then, and the best model is that of the best macro F1.
        """
        return self.class_weights == "balanced" or self.logit_adjustment > 0


class Classification(Task):
    """Devlin et al. 2018, section 4.1: softmax over a linear map of the pooled first token.

    Of a long text it is the softmax over the mean of its windows' logits, in training too.
    """

    kind = "sequence"
    Options = ClassificationOptions
    options: ClassificationOptions
    primary_metric = "accuracy"
    problem_type = "single_label_classification"
    demo_rows: ClassVar[Sequence[dict[str, Any]]] = (
        {"text": "a warm and funny film", "label": "good"},
        {"text": "I would gladly see it again", "label": "good"},
        {"text": "the best evening of the year", "label": "good"},
        {"text": "这部电影很好看", "label": "good"},
        {"text": "dull from start to end", "label": "bad"},
        {"text": "a waste of two hours", "label": "bad"},
        {"text": "nobody laughed", "label": "bad"},
        {"text": "剧情很无聊", "label": "bad"},
    )

    _weights: Tensor | None = None  # [L] of the labels in the loss

    def __init__(self, checkpoint: Checkpoint, options: Settings | None = None) -> None:
        super().__init__(checkpoint, options)
        if self.options.balances:
            self.primary_metric = "macro.f1"

    @classmethod
    def names(cls, truth: str) -> list[str]:
        """The label."""
        return [truth]

    @classmethod
    def labels_of(cls, examples: Sequence[Example], where: str) -> list[str]:
        """The names that occur, in order."""
        return sorted_labels([example.truth for example in examples], where)

    def check(self, example: Example) -> None:
        """The model must know the label."""
        super().check(example)
        if example.truth not in self.labels:
            raise unknown_label(example, example.truth, self.labels)

    def samples(self, examples: Sequence[Example]) -> list[Sample]:
        """Rows as they are trained on; the weights of the labels are those of these rows."""
        made = super().samples(examples)
        if self.options.balances:
            labels = np.concatenate([sample.targets["label"] for sample in made])
            self._weights = balanced_weights(labels, len(self.labels))
        return made

    def targets(self, example: Example, encoded: Windowed) -> Targets:
        """``label`` [1], its number."""
        return {"label": np.array([self.labels.index(example.truth)])}

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """Cross-entropy over labels, summed over rows."""
        labels = torch.as_tensor(batch.targets["label"]).to(device)  # [R]
        logits = row_logits(model, batch, device)  # [R, L]
        loss = label_loss(logits, labels, self.options, self._weights)
        return Outcome({"label": loss}, {"label": (logits.argmax(dim=-1) == labels).sum()})

    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """``{"label": name, "probabilities": {name: probability}}``."""
        logits = np.mean(scores, axis=0)
        odds = np.exp(logits.astype(np.float64) - logits.max())
        row = (odds / odds.sum()).tolist()
        return {
            "label": self.labels[int(logits.argmax())],
            "probabilities": dict(zip(self.labels, row, strict=True)),
        }

    def decide(self, answer: Answer, calibration: Mapping[str, Any]) -> Answer:
        """The answer with probabilities that were made honest; the label stays."""
        given = answer["probabilities"]
        row = tempered(list(given.values()), *temper_of(calibration))
        return {**answer, "probabilities": dict(zip(given, row, strict=True))}

    def calibrate(self, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, Any]:
        """As ``calibration_of`` gives it."""
        rows = [list(answer["probabilities"].values()) for answer in answers]
        return calibration_of(rows, [self.labels.index(example.truth) for example in examples])

    def tally(self) -> ClassificationTally:
        """Accuracy, precision, recall, F1, and whether probabilities can be trusted."""
        return ClassificationTally(self.labels)

    def constant(self, answers: Sequence[Answer]) -> bool:
        """Whether there is one label for all, of probabilities that hardly differ.

        Where one label is rare a model may tell rows apart and still give all the other label.
        """
        if len({answer["label"] for answer in answers}) != 1 or len(answers) == 1:
            return False
        sure = np.array([answer["probabilities"][answer["label"]] for answer in answers])
        return bool(sure.mean() < SURE or log_odds(sure).std() < SPREAD)

    def mistake(self, example: Example, answer: Answer) -> Mistake | None:
        """A wrong label; the worse, the surer the model was."""
        if answer["label"] == example.truth:
            return None
        sure = answer["probabilities"][answer["label"]]
        return Mistake(sure, example.truth, answer["label"], "\n".join(example.parts), sure)

    def pictures(self, figures: Mapping[str, Any], folder: Path) -> Iterable[tuple[Path, str]]:
        """Which label is taken for which, and F1 by label."""
        names = list(figures["per_label"])
        plots.confusion(
            folder / "confusion.png", figures["confusion"], names, title="Held-out rows"
        )
        yield folder / "confusion.png", "what is taken for what"
        plots.f1_scores(folder / "f1.png", figures["per_label"], "label")
        yield folder / "f1.png", "F1 by label"
        yield from calibration_pictures(figures, folder)


class ClassificationTally:
    """The confusion matrix, and the counts of ``CalibrationTally``."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self.number = {label: i for i, label in enumerate(labels)}
        self.matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
        self._calibration = CalibrationTally()
        self._waiting: list[tuple[list[float], int]] = []

    def add(self, truth: str, answer: Answer) -> None:
        """Count one answer."""
        number = self.number[truth]
        self.matrix[number, self.number[answer["label"]]] += 1
        self._waiting.append((list(answer["probabilities"].values()), number))
        if len(self._waiting) * len(self.labels) >= 2 * ROWS_AT_ONCE:
            self._count()

    def _count(self) -> None:
        rows, truth = zip(*self._waiting, strict=True)
        self._calibration.add(np.array(rows), np.array(truth))
        self._waiting.clear()

    def figures(self) -> dict[str, Any]:
        """As ``metrics_of_confusion`` and ``CalibrationTally`` give them."""
        if self._waiting:
            self._count()
        return {**self._calibration.figures(), **metrics_of_confusion(self.matrix, self.labels)}


def temperature_of(calibration: Mapping[str, Any]) -> float:
    """The temperature in what ``calibrate`` found, which a file may tell; 1 where there is none.

    Raises:
        ModelError: it is no temperature.
    """
    return _positive(calibration, "temperature", 1.0)


def temper_of(calibration: Mapping[str, Any]) -> tuple[float, float, float]:
    """What ``tempered`` needs beside the probabilities, from what ``calibrate`` found.

    Raises:
        ModelError: it is damaged.
    """
    return (
        temperature_of(calibration),
        _positive(calibration, "exponent", 1.0),
        _positive(calibration, "highest", -LOWEST),
    )


def _positive(calibration: Mapping[str, Any], name: str, usual: float) -> float:
    value = calibration.get(name, usual)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(
            f"The {name} is {value!r:.60}, not a number above zero.",
            where="calibration in bert.json",
            fix=f'write "{name}": 1.0, or fine-tune again',
        )
    return float(value)


def tempered(
    probabilities: Sequence[float],
    temperature: float,
    exponent: float = 1.0,
    highest: float = -LOWEST,
) -> list[float]:
    """Probabilities [L] whose logits are divided by a temperature: p^(1/T), made to sum to 1.

    With an exponent d the temperature depends on how high the best logit stands above the mean
    of the others, h: it is T h^(1 - d), so that where there are two labels h becomes h^d / T.

    Args:
        probabilities: of one choice among several.
        temperature: T, at h = 1.
        exponent: d.
        highest: h counts as this at most: what is higher was never seen.
    """
    if temperature == exponent == 1.0:
        return list(probabilities)
    logits = np.log(np.maximum(probabilities, TINY))
    logits *= np.minimum(_heights(logits), highest) ** (exponent - 1) / temperature
    odds = np.exp(logits - logits.max())
    row: list[float] = (odds / odds.sum()).tolist()
    return row


def calibration_of(rows: Sequence[Sequence[float]], truth: Sequence[int]) -> dict[str, Any]:
    """What held-out rows tell of the probabilities of one choice among several.

    Args:
        rows: probabilities of each row, not necessarily equally many in all.
        truth: the number of the right one [R].

    Returns:
        As ``fit_temper``, and ``uncalibrated_error``, the expected calibration error without
        it; nothing where there are fewer than ``FEWEST_TO_CALIBRATE`` rows.
    """
    if len(rows) < FEWEST_TO_CALIBRATE:
        return {}
    table = np.zeros((len(rows), max(map(len, rows))))
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    before = CalibrationTally()
    before.add(table, np.array(truth))
    return {
        **fit_temper(np.log(np.maximum(table, TINY)), truth),
        "uncalibrated_error": before.figures()["expected_calibration_error"],
    }


def fit_temper(logits: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """What makes the rows, and one more whose answer is wrong, likeliest.

    That none of R answers is wrong does not say that none ever will be: without the additional
    row, which is as sure as the median, probabilities would go to 1.

    Args:
        logits: [R, L]; what is at ``LOWEST`` is not there.
        truth: the label's number [R].

    Returns:
        ``temperature`` as ``fit_temperature``; where a temperature that depends on the row makes
        the rows so much likelier that one more parameter is worth it (Schwarz 1978), also
        ``exponent`` and ``highest`` as ``tempered`` takes them.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    scores, target = np.asarray(logits, dtype=np.float64), np.asarray(truth, dtype=np.int64)
    best_two = np.sort(scores, axis=1)[:, -2:]
    usual = scores[np.argsort(best_two[:, 1] - best_two[:, 0])[len(scores) // 2]]
    scores = np.vstack([scores, usual])
    target = np.append(target, np.argsort(usual)[-2])
    temperature = fit_temperature(scores, target)

    height = np.log(_heights(scores))[:, 0]  # [R + 1]
    shifted = scores - scores.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, target[:, None], axis=1)[:, 0]

    def loss_and_slope(point: Numbers) -> tuple[float, Numbers]:
        """The loss where the logits are multiplied by ``exp(point[0]) h^(exp(point[1]) - 1)``."""
        scale = np.exp(point[0] + np.expm1(point[1]) * height)
        odds = np.exp(scale[:, None] * shifted)
        sums = odds.sum(axis=1)
        slope = ((odds * shifted).sum(axis=1) / sums - own) * scale
        loss = np.log(sums) - scale * own
        return float(loss.sum()), np.array([slope.sum(), slope @ height * np.exp(point[1])])

    start = np.array([-math.log(temperature), 0.0])
    bounds = [(start[0] - 5, start[0] + 5), (-math.log(MOST_BENT), math.log(MOST_BENT))]
    found = minimize(loss_and_slope, start, jac=True, method="L-BFGS-B", bounds=bounds)
    if loss_and_slope(start)[0] - found.fun <= math.log(len(target)) / 2:
        return {"temperature": temperature}
    return {
        "temperature": math.exp(-found.x[0]),
        "exponent": math.exp(found.x[1]),
        "highest": math.exp(height.max()),
    }


def _heights(logits: Numbers) -> Numbers:
    """How high the best logit stands above the mean of the others: [..., L] -> [..., 1]."""
    there = logits > LOWEST
    best = logits.max(axis=-1, keepdims=True)
    others = np.where(there, logits, 0.0).sum(axis=-1, keepdims=True) - best
    count = there.sum(axis=-1, keepdims=True) - 1
    height = np.where(count > 0, best - others / np.maximum(count, 1), -LOWEST)
    return np.asarray(np.maximum(height, 1e-6))


def log_odds(probabilities: ArrayLike) -> Numbers:
    """The logit of each probability."""
    chance = np.asarray(probabilities, dtype=np.float64)
    return np.log(np.maximum(chance, TINY)) - np.log(np.maximum(1 - chance, TINY))


def calibration_pictures(figures: Mapping[str, Any], folder: Path) -> Iterable[tuple[Path, str]]:
    """How far probabilities can be trusted, from the figures of a ``CalibrationTally``."""
    plots.reliability(
        folder / "reliability.png", figures["reliability"], title="Are probabilities honest?"
    )
    yield folder / "reliability.png", "how often answers are right, by how sure the model was"
    plots.abstain(folder / "abstain.png", figures["abstain"], title="Answering the surest rows")
    yield folder / "abstain.png", "accuracy where the model may decline to answer"


def label_loss(
    logits: Tensor, labels: Tensor, options: ClassificationOptions, weights: Tensor | None
) -> Tensor:
    """Cross-entropy of the right labels, summed, as the options shape it.

    Args:
        logits: [R, L].
        labels: their numbers [R].
        options: of the loss.
        weights: of the labels [L], as ``balanced_weights`` gives them; they are needed where
            ``options.balances``.
    """
    scale = None if weights is None else weights.to(logits)
    if options.logit_adjustment and scale is not None:
        logits = logits - options.logit_adjustment * scale.log()  # weights are 1 / share
    each = F.cross_entropy(
        logits,
        labels,
        weight=scale if options.class_weights == "balanced" else None,
        reduction="none",
        label_smoothing=options.label_smoothing,
    )
    if options.focal:
        right = logits.softmax(dim=-1).gather(1, labels[:, None])[:, 0]
        each = (1 - right) ** options.focal * each
    return each.sum()


def balanced_weights(labels: Ints, count: int) -> Tensor:
    """Weights that make every label count the same in a loss, and the mean weight of a row 1.

    Args:
        labels: numbers of the labels that are trained on, of any shape.
        count: L, how many labels there are.

    Returns:
        ``rows / (L * rows of the label)`` [L], fp32.
    """
    found = torch.from_numpy(np.bincount(labels.ravel(), minlength=count)).clamp(min=1)
    return (labels.size / (count * found)).float()


def unknown_label(example: Example, label: str, labels: Sequence[str]) -> DataError:
    """The error for a label that the model does not have."""
    listed = ", ".join(labels[:20]) + (" ..." if len(labels) > 20 else "")
    return DataError(
        f"The model does not know the label {label!r}; it knows {listed}.",
        where=example.where,
        fix="correct the label, or fine-tune with rows that have it",
    )


TASK = Classification
