"""What every task can do, and the list of tasks there are.

The way of a row through a task::

    file --read--> Example --encode--> Windowed --targets--> Sample
                                          |                     |
                                       windows                batch --losses--> training
                                          |
         Answer <--decide-- decode <-- scores (of the network, one array a window)
            |
         tally --> figures
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import nn

from bert.checkpoint import Checkpoint
from bert.config import Settings
from bert.data.batches import Batch, Ints, Numbers, pack_sequences
from bert.data.draws import permutation
from bert.data.rows import LABEL_COLUMN, Example, choose_columns, label_name, read_examples
from bert.errors import DataError, ModelError, UsageError
from bert.model.packing import Tokens
from bert.text.files import columns
from bert.text.tokenizer import Texts, Tokenizer
from bert.text.windows import Windowed, in_windows
from bert.training.loop import Outcome

Answer = dict[str, Any]
# What a row is trained on: an array for the row, or a list with one for each window.
Targets = Mapping[str, Numbers | list[Numbers]]

# A longer text shows this many of its windows in an epoch of training, others in the next one.
MOST_WINDOWS = 8


class Sample(NamedTuple):
    """A row as it is trained on."""

    encoded: Windowed
    targets: Targets


@dataclass(frozen=True)
class Mistake:
    """A wrong answer as a person looks at it.

    Args:
        badness: what the worst ones are found by; larger is worse.
        truth: the right answer, in words.
        answer: the model's.
        text: in which it was made.
        sure: the probability that the model gave its answer, if it gave one.
        marks: (begin, end, "truth" or "answer") places of the text, in characters.
    """

    badness: float
    truth: str
    answer: str
    text: str
    sure: float | None = None
    marks: tuple[tuple[int, int, str], ...] = ()


class Tally(Protocol):
    """Figures over answers that come one by one, in memory that does not grow with them."""

    def add(self, truth: Any, answer: Answer) -> None:
        """Count one answer."""
        ...

    def figures(self) -> dict[str, Any]:
        """What was counted; each figure is {"value", "low", "high"}, a 95% interval."""
        ...


class Task(ABC):
    """From texts to answers and, for tasks that are trained, from rows to a loss.

    Class attributes: ``name``, that of its file; ``kind``, the head it needs; ``Options``, its
    own settings, each with a default; ``primary_metric``, the figure that models are compared
    by (empty for a task that is not trained), and ``greater_is_better``, its direction;
    ``label_columns``, the columns taken for answers when none is named; ``whole_batches``,
    whether rows of a batch are compared with each other, so that it must not be divided;
    ``rate_share``, of the usual learning rate, and ``epochs``, in place of the usual ones, where
    none are given; ``problem_type``, what ``transformers`` calls it; ``places``, whether answers
    are places of the text; ``demo_rows``, eight rows for tests and documentation.

    ``remarks`` of an instance are for the data report: what ``samples`` found about the rows.
    """

    kind: ClassVar[str]
    Options: ClassVar[type[Settings]] = Settings
    primary_metric: str = ""  # options may change it
    greater_is_better: ClassVar[bool] = True
    label_columns: ClassVar[Sequence[str]] = (LABEL_COLUMN,)
    problem_type: ClassVar[str | None] = None
    places: ClassVar[bool] = False
    whole_batches: ClassVar[bool] = False
    rate_share: ClassVar[float] = 1.0
    epochs: ClassVar[int | None] = None
    demo_rows: ClassVar[Sequence[dict[str, Any]]] = ()

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.name = cls.__module__.rpartition(".")[2]  # the file's

    def __init__(self, checkpoint: Checkpoint, options: Settings | None = None) -> None:
        if checkpoint.tokenizer is None:
            raise ModelError("The model has no tokenizer.")
        fields = self.Options.model_fields
        stored = checkpoint.facts.get("options") or {}
        known = {name: value for name, value in stored.items() if name in fields}
        self.options = self.Options.of(known) if options is None else options
        self.tokenizer: Tokenizer = checkpoint.tokenizer
        self.labels = checkpoint.labels
        self.max_length = min(
            int(checkpoint.facts.get("max_length") or checkpoint.config.longest_text),
            checkpoint.config.longest_text,
        )
        self.texts_per_row = int(checkpoint.facts.get("texts_per_row") or 1)
        self.remarks: dict[str, Any] = {}
        # What ``calibrate`` found.
        self.calibration: Mapping[str, Any] = checkpoint.facts.get("calibration") or {}

    # ---- reading

    @classmethod
    def read(
        cls, path: Path, text: Sequence[str], label: str | None, *, labelled: bool
    ) -> Iterator[Example]:
        """The rows of a file, one by one.

        Args:
            path: the file.
            text: names given for the columns of texts; empty for the usual ones.
            label: name given for the column of answers.
            labelled: whether the truth is wanted.

        Raises:
            DataError: the file or a row cannot be read; the message names the row.
        """
        label = cls.label_column(path, label) if labelled else label
        return read_examples(path, text, label, cls.parse if labelled else None)

    @classmethod
    def text_columns(cls, path: Path, text: Sequence[str]) -> tuple[str, ...]:
        """The columns of texts in a file; none where the format itself says what is what.

        Raises:
            DataError: the file has no such columns.
        """
        return choose_columns(path, text, None, labelled=False)[0]

    @classmethod
    def label_column(cls, path: Path, label: str | None) -> str:
        """The column of answers: the one named, or the first of the usual ones that is there."""
        there = columns(path) if label is None and len(cls.label_columns) > 1 else ()
        return label or next((n for n in cls.label_columns if n in there), cls.label_columns[0])

    @classmethod
    def parse(cls, value: Any, where: str) -> Any:
        """The value in the column of answers -> the truth, None where there is none."""
        return label_name(value, where)

    @classmethod
    def names(cls, truth: Any) -> list[str]:
        """Labels in a truth, which the data report counts."""
        return []

    @classmethod
    def labels_of(cls, examples: Sequence[Example], where: str) -> list[str]:
        """The labels that a new head is to tell apart.

        Raises:
            DataError: there is nothing to tell apart.
        """
        return []

    @classmethod
    def group(cls, example: Example) -> str:
        """What rows share that must not be trained on and measured on both: their texts."""
        return "\0".join(example.parts)

    def check(self, example: Example) -> None:
        """Make sure that the model can be measured on a row.

        Raises:
            DataError: it cannot; the message names the row.
        """
        if example.truth is None:
            raise DataError(
                "The row has no label.",
                where=example.where,
                fix="fill it in, or leave the row out",
            )

    def takes(self, texts: int) -> bool:
        """Whether a row may have so many texts."""
        return texts == self.texts_per_row

    # ---- training

    def encode(self, texts: Sequence[Texts | tuple[str, ...]]) -> list[Windowed]:
        """Texts or pairs as the model reads them.

        Raises:
            DataError: a text that the task cannot take.
        """
        for i, text in enumerate(texts):
            if not self.takes(1 if isinstance(text, str) else len(text)):
                wanted = "one text" if self.texts_per_row == 1 else "a pair of texts"
                raise DataError(f"The model takes {wanted} a row.", where=f"text {i + 1}")
        pairs = cast(Sequence[Texts], texts)
        return in_windows(self.tokenizer, pairs, self.max_length, places=self.places)

    def targets(self, example: Example, encoded: Windowed) -> Targets:
        """What is wanted of a row: its ``truth`` as arrays for the row or for each window."""
        raise NotImplementedError

    def samples(self, examples: Sequence[Example]) -> list[Sample]:
        """Rows as they are trained on."""
        encoded = self.encode([example.texts for example in examples])
        return [
            Sample(row, self.targets(example, row))
            for example, row in zip(examples, encoded, strict=True)
        ]

    def batch(self, samples: Sequence[Sample], numbers: Ints, epoch: int, seed: int) -> Batch:
        """Samples as one batch of W windows.

        Targets are put one after the other; ``row`` [W] is the row of each window.

        Args:
            samples: R of them.
            numbers: [R] of the samples in the data set.
            epoch: and
            seed: choose the windows of texts that have more than ``MOST_WINDOWS``.
        """
        windows, owner = [], []
        targets: dict[str, list[Numbers]] = {name: [] for name in samples[0].targets}
        for row, (number, sample) in enumerate(zip(numbers, samples, strict=True)):
            chosen = self.shown(sample.encoded, seed, epoch, int(number))
            windows += [sample.encoded.windows[i] for i in chosen]
            owner += [row] * len(chosen)
            for name, value in sample.targets.items():
                mine = [value[i] for i in chosen] if isinstance(value, list) else [value]
                targets[name] += mine
        return pack_sequences(
            [window.input_ids for window in windows],
            [window.token_type_ids for window in windows],
            numbers,
            {
                "row": np.array(owner, dtype=np.int64),
                **{name: np.concatenate(values) for name, values in targets.items()},
            },
        )

    def shown(self, encoded: Windowed, *keys: int) -> Sequence[int]:
        """The numbers of the windows of a row that are trained on at once, drawn by the keys."""
        count = len(encoded.windows)
        if count <= MOST_WINDOWS:
            return range(count)
        return sorted(permutation(count, *keys)[:MOST_WINDOWS].tolist())

    @contextmanager
    def published(self, model: nn.Module) -> Iterator[None]:
        """While it lasts, the weights are those to be written, if others are trained."""
        yield

    def prepare(self, batch: Batch) -> Batch:
        """Nothing is hidden from the model."""
        return batch

    def settle(self, model: nn.Module, device: torch.device) -> None:  # noqa: B027
        """What is left to do with a model in training before it answers: mostly nothing."""

    def tokens(self, batch: Batch) -> int:
        """Real tokens in the batch."""
        return len(batch.input_ids)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Answers that the batch asks for: by default one a row."""
        return {"label": len(batch.samples)}

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """Loss sums over the answers of a batch."""
        raise NotImplementedError

    # ---- answering

    def scores(self, model: nn.Module, tokens: Tokens) -> list[Numbers]:
        """What the network says of each of the B packed sequences: [L], or [S, L] of a token head.

        fp32.
        """
        logits = model.logits(tokens).float().cpu().numpy()  # type: ignore[operator]
        if not model.padded:
            return list(logits)
        return np.split(logits, np.cumsum(tokens.packed.lengths)[:-1])

    @abstractmethod
    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """The answer to a row from what the network said of each of its windows."""

    def decide(self, answer: Answer, calibration: Mapping[str, Any]) -> Answer:
        """The answer with what ``calibrate`` found taken into account."""
        return answer

    def calibrate(self, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, Any]:
        """What held-out rows tell of the answers, such as a temperature or a threshold."""
        return {}

    # ---- measuring

    def tally(self) -> Tally:
        """A new, empty tally."""
        raise NotImplementedError

    def written(self, answer: Answer) -> Answer:
        """What of an answer is written down beside each held-out row."""
        return answer

    def constant(self, answers: Sequence[Answer]) -> bool:
        """Whether answers to different rows are all the same, so that nothing was learnt."""
        return False

    def mistake(self, example: Example, answer: Answer) -> Mistake | None:
        """What is wrong with an answer; None where it is right."""
        raise NotImplementedError

    def pictures(self, figures: Mapping[str, Any], folder: Path) -> Iterable[tuple[Path, str]]:
        """Draw the figures into a folder: each picture with its caption."""
        return ()


def batch_tokens(batch: Batch, device: torch.device) -> Tokens:
    """A batch's tokens on a device."""
    return Tokens.of(
        batch.input_ids, batch.token_type_ids, batch.position_ids, batch.lengths, device
    )


def row_logits(model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """The mean of the logits of each row's windows, in fp32: [R, L]."""
    logits = model.logits(batch_tokens(batch, device)).float()  # type: ignore[operator]  # [W, L]
    rows = torch.as_tensor(batch.targets["row"]).to(device)  # [W]
    if len(rows) == len(batch.samples):
        return logits  # type: ignore[no-any-return]
    sums = logits.new_zeros(len(batch.samples), logits.shape[-1]).index_add(0, rows, logits)
    return sums / rows.bincount(minlength=len(sums))[:, None]  # type: ignore[no-any-return]


def task_names() -> list[str]:
    """The tasks there are: one for each file beside this one."""
    here = Path(__file__)
    return sorted(
        path.stem for path in here.parent.glob("*.py") if path.stem not in ("__init__", here.stem)
    )


def load_task(name: str) -> type[Task]:
    """The task of this name, which may come from an untrusted file.

    Raises:
        UsageError: there is no such task; nothing is imported then.
    """
    names = task_names()
    if name not in names:
        raise UsageError(f"There is no task {name!r}.", fix=f"tasks: {', '.join(names)}")
    task: type[Task] = importlib.import_module(f"bert.tasks.{name}").TASK
    return task
