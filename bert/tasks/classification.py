"""Classification: one of L labels for a text or a pair of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bert.config import Settings
from bert.data.batches import Batch, Numbers
from bert.data.rows import Example, sorted_labels
from bert.errors import DataError
from bert.metrics import plots
from bert.metrics.classify import metrics_of_confusion
from bert.tasks.task import Answer, Mistake, Sample, Targets, Task, row_logits
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed
from bert.training.loop import Outcome


class ClassificationOptions(Settings):
    """What only classification can be told.

    Args:
        class_weights: ``balanced`` makes every label count the same in the loss, however rare.
        focal: gamma of the focal loss (Lin et al. 2017), 0 for plain cross-entropy.
        label_smoothing: share of the truth that is spread over all labels.
    """

    class_weights: Literal["none", "balanced"] = "none"
    focal: float = Field(0.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)


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
        if self.options.class_weights == "balanced":
            found = Counter(example.truth for example in examples)
            counts = torch.tensor([max(found[label], 1) for label in self.labels])
            self._weights = len(examples) / (len(self.labels) * counts)
        return made

    def targets(self, example: Example, encoded: Windowed) -> Targets:
        """``label`` [1], its number."""
        return {"label": np.array([self.labels.index(example.truth)])}

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """Cross-entropy over labels, summed over rows."""
        labels = torch.as_tensor(batch.targets["label"]).to(device)  # [R]
        logits = row_logits(model, batch, device)  # [R, L]
        loss = self._loss(logits, labels)
        return Outcome({"label": loss}, {"label": (logits.argmax(dim=-1) == labels).sum()})

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = None if self._weights is None else self._weights.to(logits)
        each = F.cross_entropy(
            logits,
            labels,
            weight=weights,
            reduction="none",
            label_smoothing=self.options.label_smoothing,
        )
        if self.options.focal:
            right = logits.softmax(dim=-1).gather(1, labels[:, None])[:, 0]
            each = (1 - right) ** self.options.focal * each
        return each.sum()

    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """``{"label": name, "probabilities": {name: probability}}``."""
        return self._answer(np.mean(scores, axis=0))

    def _answer(self, logits: Numbers) -> Answer:
        odds = np.exp(logits.astype(np.float64) - logits.max())
        row = (odds / odds.sum()).tolist()
        return {
            "label": self.labels[int(logits.argmax())],
            "probabilities": dict(zip(self.labels, row, strict=True)),
        }

    def tally(self) -> ClassificationTally:
        """Accuracy, precision, recall and F1."""
        return ClassificationTally(self.labels)

    def constant(self, answers: Sequence[Answer]) -> bool:
        """Whether there is one label for all."""
        return len({answer["label"] for answer in answers}) == 1 < len(answers)

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
        plots.intervals(
            folder / "f1.png",
            {
                name: (score["f1"]["value"], score["f1"]["low"], score["f1"]["high"])
                for name, score in figures["per_label"].items()
            },
            title="F1 by label",
            x_label="F1",
        )
        yield folder / "f1.png", "F1 by label"


class ClassificationTally:
    """The confusion matrix, which holds every figure."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self.number = {label: i for i, label in enumerate(labels)}
        self.matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)

    def add(self, truth: str, answer: Answer) -> None:
        """Count one answer."""
        self.matrix[self.number[truth], self.number[answer["label"]]] += 1

    def figures(self) -> dict[str, Any]:
        """As ``metrics_of_confusion`` gives them."""
        return metrics_of_confusion(self.matrix, self.labels)


def unknown_label(example: Example, label: str, labels: Sequence[str]) -> DataError:
    """The error for a label that the model does not have."""
    listed = ", ".join(labels[:20]) + (" ..." if len(labels) > 20 else "")
    return DataError(
        f"The model does not know the label {label!r}; it knows {listed}.",
        where=example.where,
        fix="correct the label, or fine-tune with rows that have it",
    )


TASK = Classification
