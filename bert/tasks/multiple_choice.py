"""Multiple choice: which of several texts goes best with a context or a question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from bert.checkpoint import Checkpoint
from bert.config import Settings
from bert.data.batches import Batch, Numbers
from bert.data.draws import permutation
from bert.data.rows import Example, Examples, label_name, text_of
from bert.errors import DataError, UsageError
from bert.metrics.calibrate import CalibrationTally
from bert.tasks.classification import (
    ROWS_AT_ONCE,
    calibration_of,
    calibration_pictures,
    temper_of,
    tempered,
)
from bert.tasks.task import MOST_WINDOWS, Answer, Mistake, Targets, Task, batch_tokens
from bert.text.files import Row, columns, rows
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed, in_windows
from bert.training.loop import Outcome

# Columns taken where none is named: the first of each that is there.
CONTEXT_COLUMNS = ("context", "article", "passage", "premise", "sent1")
QUESTION_COLUMNS = ("question", "sent2")
CHOICES_COLUMNS = ("choices", "options", "endings")
# Or one column for each choice, numbered from 0 or 1.
NUMBERED = re.compile(r"(choice|option|ending)_?(\d{1,2})")
# Choices whose probabilities are nearer to each other than this are all the same.
SAME = 0.01


@dataclass(frozen=True)
class Choices(Windowed):
    """The windows of all choices of a row, one choice after the other.

    Args:
        choice: the number of the choice that each window shows.
    """

    choice: tuple[int, ...] = ()

    @property
    def pieces(self) -> int:
        """In how many windows the context is read, for the longest choice."""
        return max(self.choice.count(number) for number in set(self.choice))

    def of(self, number: int) -> list[int]:
        """The numbers of the windows of a choice."""
        return [i for i, choice in enumerate(self.choice) if choice == number]


class MultipleChoice(Task):
    """Devlin et al. 2018, section 4.4: one output for each choice, and a softmax over them.

    A choice is read as the second text of a pair whose first one is the context; a question
    stands before each choice, so that every window of a long context has it. The output of a
    choice is the mean over its windows, in training too. Rows may have different numbers of
    choices.

    The texts of a row are the context, the question (either may be empty) and the choices.
    """

    kind = "choice"
    primary_metric = "accuracy"
    label_columns = ("label", "answer", "answerKey")
    demo_rows: ClassVar[Sequence[dict[str, Any]]] = (
        {"question": "What do cows eat?", "choices": ["grass", "stones"], "label": 0},
        {"question": "Where do fish live?", "choices": ["in trees", "in water"], "label": 1},
        {
            "context": "Anna was tired after the long walk.",
            "question": "What does she do?",
            "choices": ["she runs on", "she sits down", "she is a bridge"],
            "label": "she sits down",
        },
        {
            "context": "It has rained for two days.",
            "choices": ["The street is wet.", "The street is dry."],
            "label": "A",
        },
        {"question": "Which is a colour?", "choices": ["seven", "loud", "late", "red"], "label": 3},
        {"question": "哪个是水果?", "choices": ["苹果", "桌子"], "label": "苹果"},
        {"question": "太阳从哪边升起?", "choices": ["西边", "东边"], "label": 1},
        {"context": "他很饿。", "choices": ["他去吃饭", "他去洗手", "他睡了"], "label": 0},
    )

    def __init__(self, checkpoint: Checkpoint, options: Settings | None = None) -> None:
        super().__init__(checkpoint, options)
        self.texts_per_row = 4  # at least: a context, a question, two choices

    @classmethod
    def read(
        cls, path: Path, text: Sequence[str], label: str | None, *, labelled: bool
    ) -> Iterator[Example]:
        """The rows of a file, whose columns are known by their names.

        Raises:
            DataError: the file or a row cannot be read; the message names the row.
            UsageError: a column of texts is named.
        """
        cls.text_columns(path, text)
        label = cls.label_column(path, label)
        there = columns(path)
        if labelled and label not in there:
            raise DataError(
                f"There is no column {label!r}; the columns are {', '.join(there)}.",
                where=str(path),
                fix="name the column of answers: --label COLUMN",
            )

        def example(row: Row) -> Example:
            parts = [
                next((name for name in usual if row.values.get(name) is not None), "")
                for usual in (CONTEXT_COLUMNS, QUESTION_COLUMNS)
            ]
            context, question = (text_of(row.values.get(name), name, row.where) for name in parts)
            choices, marks, used = _choices(row)
            value = row.values.get(label) if labelled else None
            others = {*row.values} - {*parts, *used, label}
            return Example(
                (context, question, *choices),
                _answer(value, choices, marks, row.where),
                row.where,
                {name: row.values[name] for name in sorted(others)},
            )

        return Examples(path, rows(path), example)

    @classmethod
    def text_columns(cls, path: Path, text: Sequence[str]) -> tuple[str, ...]:
        """None to name: they are known by their names.

        Raises:
            UsageError: one is named.
        """
        if text:
            raise UsageError(
                "The columns of multiple choice cannot be named.",
                where=f"--text {text[0]}",
                fix="call them context, question and choices",
            )
        return ()

    # ---- training

    def takes(self, texts: int) -> bool:
        """A context, a question, and at least two choices."""
        return texts >= self.texts_per_row

    def encode(self, texts: Sequence[Texts | tuple[str, ...]]) -> list[Windowed]:
        """Rows as the model reads them: ``Choices``.

        Raises:
            DataError: a row has fewer than two choices.
        """
        pairs: list[Texts] = []
        for i, row in enumerate(texts):
            if isinstance(row, str) or not self.takes(len(row)):
                raise DataError(
                    "A row is a context, a question and at least two choices.",
                    where=f"text {i + 1}",
                    fix='("context", "", "one choice", "another choice")',
                )
            context, question, *choices = row
            for choice in choices:
                if context.strip() and question.strip():
                    pairs.append((context, f"{question} {choice}"))
                else:
                    first = context if context.strip() else question
                    pairs.append((first, choice) if first.strip() else choice)
        read = iter(in_windows(self.tokenizer, pairs, self.max_length))
        return [_joined([next(read) for _ in row[2:]]) for row in texts]

    def targets(self, example: Example, encoded: Windowed) -> Targets:
        """``label`` [1], ``choices`` [1], how many there are, and ``choice`` [1] of each window."""
        assert isinstance(encoded, Choices)
        return {
            "label": np.array([example.truth]),
            "choices": np.array([encoded.choice[-1] + 1]),
            "choice": [np.array([number]) for number in encoded.choice],
        }

    def shown(self, encoded: Windowed, *keys: int) -> Sequence[int]:
        """The same places of the context for each choice, and every choice at least once."""
        assert isinstance(encoded, Choices)
        if len(encoded.windows) <= MOST_WINDOWS:
            return range(len(encoded.windows))
        parts = [encoded.of(number) for number in range(encoded.choice[-1] + 1)]
        most = max(map(len, parts))
        drawn = permutation(most, *keys)[: max(MOST_WINDOWS // len(parts), 1)].tolist()
        return sorted({part[i * len(part) // most] for part in parts for i in drawn})

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """Cross-entropy over the choices of each row, summed over rows."""
        logits = model.logits(batch_tokens(batch, device)).float()[:, 0]  # type: ignore[operator]  # [W]
        row, choice, count, label = (
            torch.as_tensor(batch.targets[name]).to(device)
            for name in ("row", "choice", "choices", "label")
        )
        # All choices of all rows stand one after the other: K of them.
        begin = count.cumsum(0) - count  # [R]
        place = begin[row] + choice  # [W]
        total = int(batch.targets["choices"].sum())
        shown = place.bincount(minlength=total)
        scores = logits.new_zeros(total).index_add(0, place, logits) / shown  # [K]
        owner = torch.repeat_interleave(torch.arange(len(count), device=device), count)  # [K]
        best = scores.detach().new_full((len(count),), -torch.inf)
        best = best.scatter_reduce(0, owner, scores.detach(), "amax")  # [R]
        odds = logits.new_zeros(len(count)).index_add(0, owner, (scores - best[owner]).exp())
        right = scores[begin + label]  # [R]
        loss = odds.log() + best - right
        return Outcome({"label": loss.sum()}, {"label": (right >= best).sum()})

    # ---- answering

    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """``{"choice": number, "text": choice, "probabilities": [one for each choice]}``."""
        assert isinstance(encoded, Choices)
        values = np.array(scores, dtype=np.float64)[:, 0]  # [W]
        number = np.array(encoded.choice)
        logits = np.bincount(number, values) / np.bincount(number)
        odds = np.exp(logits - logits.max())
        best = int(logits.argmax())
        return {
            "choice": best,
            "text": texts[2 + best],
            "probabilities": (odds / odds.sum()).tolist(),
        }

    def decide(self, answer: Answer, calibration: Mapping[str, Any]) -> Answer:
        """The answer with probabilities that were made honest; the choice stays."""
        row = tempered(answer["probabilities"], *temper_of(calibration))
        return {**answer, "probabilities": row}

    def calibrate(self, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, Any]:
        """As ``calibration_of`` gives it."""
        chances = [answer["probabilities"] for answer in answers]
        return calibration_of(chances, [example.truth for example in examples])

    # ---- measuring

    def tally(self) -> ChoiceTally:
        """Accuracy, and whether probabilities can be trusted."""
        return ChoiceTally()

    def constant(self, answers: Sequence[Answer]) -> bool:
        """Whether in no row one choice is preferred to another."""
        return all(np.ptp(answer["probabilities"]) < SAME for answer in answers)

    def mistake(self, example: Example, answer: Answer) -> Mistake | None:
        """A wrong choice; the worse, the surer the model was."""
        if answer["choice"] == example.truth:
            return None
        sure = answer["probabilities"][answer["choice"]]
        choices = example.parts[2:]
        text = "\n".join(part for part in example.parts[:2] if part)
        return Mistake(sure, choices[example.truth], answer["text"], text, sure)

    def pictures(self, figures: Mapping[str, Any], folder: Path) -> Iterable[tuple[Path, str]]:
        """How far probabilities can be trusted."""
        return calibration_pictures(figures, folder)


class ChoiceTally:
    """``CalibrationTally`` over answers; what guessing would reach."""

    def __init__(self) -> None:
        self._calibration = CalibrationTally()
        self._waiting: list[tuple[float, bool]] = []
        self._chance = 0.0

    def add(self, truth: int, answer: Answer) -> None:
        """Count one answer."""
        chances = answer["probabilities"]
        self._chance += 1 / len(chances)
        self._waiting.append((chances[answer["choice"]], answer["choice"] == truth))
        if len(self._waiting) >= ROWS_AT_ONCE:
            self._count()

    def _count(self) -> None:
        sure, right = zip(*self._waiting, strict=True)
        self._calibration.add_answers(np.array(sure), np.array(right))
        self._waiting.clear()

    def figures(self) -> dict[str, Any]:
        """Those of ``CalibrationTally``; ``guessing``, the accuracy of a random choice."""
        if self._waiting:
            self._count()
        found = self._calibration.figures()
        return {**found, "guessing": self._chance / found["rows"]}


def _joined(parts: Sequence[Windowed]) -> Choices:
    """The choices of a row as one."""
    return Choices(
        [window for part in parts for window in part.windows],
        parts[0].offsets,
        parts[0].words,
        any(part.truncated for part in parts),
        tuple(number for number, part in enumerate(parts) for _ in part.windows),
    )


def _choices(row: Row) -> tuple[list[str], list[str], list[str]]:
    """The choices of a row, their marks where the data has some, and the columns they stand in.

    Raises:
        DataError: there are fewer than two, or one of them is empty or no text.
    """
    marks: list[str] = []
    name = next((name for name in CHOICES_COLUMNS if row.values.get(name) is not None), None)
    if name is not None:
        used = [name]
        found, marks = _listed(row.values[name], name, row.where)
    else:
        numbered = ((NUMBERED.fullmatch(column), column) for column in row.values)
        used = [column for _, column in sorted((int(m[2]), column) for m, column in numbered if m)]
        found = [row.values[column] for column in used]
        while found and found[-1] in (None, ""):  # a row may have fewer choices than others
            found.pop()
    if not used:
        raise DataError(
            f"The row has no choices; its columns are {', '.join(row.values)}.",
            where=row.where,
            fix="give a list of texts in a column choices, or columns choice1, choice2, ...",
        )
    choices = []
    for number, value in enumerate(found):
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        choices.append(text_of(value, used[0], row.where))
        if not choices[-1].strip():
            raise DataError(
                f"Choice {number}, counted from 0, is empty.",
                where=row.where,
                fix="fill it in, or leave it out",
            )
    if len(choices) < 2:
        raise DataError(
            f"The row has {len(choices)} choices; there is nothing to choose.",
            where=row.where,
            fix="give at least two, or leave the row out",
        )
    return choices, marks, used


def _listed(value: Any, name: str, where: str) -> tuple[list[Any], list[str]]:
    """A list, also as JSON in a string, or with its marks: {"text": [...], "label": [...]}."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    marks: Any = []
    if isinstance(value, dict):
        value, marks = value.get("text"), value.get("label", [])
    if not isinstance(value, list) or not isinstance(marks, list):
        raise DataError(
            f"Column {name!r} is no list of choices.",
            where=where,
            fix='write ["one choice", "another choice"]',
        )
    return value, [str(mark) for mark in marks]


def _answer(value: Any, choices: Sequence[str], marks: Sequence[str], where: str) -> int | None:
    """The number of the right choice: from its mark, its text, its number from 0, or its letter.

    Raises:
        DataError: it is none of them, or may be two.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers in which some are missing
    name = label_name(value, where)
    if name is None:
        return None
    found = {number for number, mark in enumerate(marks) if mark == name}
    if not found:
        if isinstance(value, str):
            found = {number for number, choice in enumerate(choices) if choice == name}
        if re.fullmatch("[0-9]{1,9}", name):
            found.add(int(name))
        elif not found and re.fullmatch("[A-Z]", name):
            found.add(ord(name) - ord("A"))
    inside = sorted(number for number in found if number < len(choices))
    if len(inside) == 1:
        return inside[0]
    several = f"may mean the choices {' or '.join(map(str, inside))}"
    raise DataError(
        f"The answer {name!r:.60} {several if inside else 'is none of the choices'}.",
        where=where,
        fix=f"write the letter of the right one of the {len(choices)} choices, beginning with A",
    )


TASK = MultipleChoice
