"""From a model directory to answers, for any number of texts in constant memory."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import torch

from bert.checkpoint import Checkpoint, read_model
from bert.data.batches import pack_sequences
from bert.errors import ModelError
from bert.hub import CONFIG, find_model
from bert.model.precision import arithmetic, default_device, resolve_precision
from bert.tasks.task import Answer, Task, batch_tokens, load_task, task_names
from bert.text.tokenizer import Encoded, Texts

# Texts read ahead, to be sorted by length so that like lengths share a batch.
TEXTS_AT_ONCE = 2048
BATCH_TOKENS = 8192
# The task of a directory that says none, by the head it has.
TASK_OF_HEAD = {
    "pretraining": "fill_mask",
    "masked_lm": "fill_mask",
    "sequence": "classification",
}


class Predictor:
    """Takes texts and gives answers.

    >>> Predictor("runs/finetune-1")("a fine film")["label"]  # doctest: +SKIP

    Args:
        name: a run folder, a model directory or a hub id.
        precision: fp32 gives the same numbers whatever the batch mates.

    Raises:
        ModelError: there is no model, or it has a head that answers nothing.
    """

    def __init__(self, name: str | Path, precision: str = "fp32") -> None:
        directory = find_model(name)
        checkpoint = read_model(directory)
        task = checkpoint.facts.get("task") or TASK_OF_HEAD.get(checkpoint.kind)
        if task is None:
            raise ModelError(
                f"This model has no head that answers texts; it is of the kind {checkpoint.kind}.",
                where=str(directory),
                fix="fine-tune it first: bert finetune TRAIN --model " + shlex.quote(str(name)),
            )
        if task not in task_names():
            raise ModelError(
                f"The model is for the task {task!r}, which this version does not know.",
                where=str(directory / "bert.json"),
                fix=f"tasks: {', '.join(task_names())}",
            )
        kind = load_task(str(task))
        if kind.kind != checkpoint.kind and TASK_OF_HEAD.get(checkpoint.kind) != task:
            raise ModelError(
                f"The task {task} does not go with a {checkpoint.kind} head.",
                where=str(directory / "bert.json"),
            )
        if kind.kind == "sequence":
            _check_answers(checkpoint, directory)
        self.directory = directory
        self.facts = checkpoint.facts
        self.device = default_device()
        self.precision = resolve_precision(precision, self.device)
        self.model = checkpoint.model.to(self.device).eval()
        self.task = str(task)
        self._task: Task = kind(checkpoint)
        self.labels = self._task.labels
        self.max_length = self._task.max_length
        self.texts_per_row = self._task.texts_per_row

    def take_pairs(self) -> None:
        """Expect pairs of texts, where the model itself does not say what it takes."""
        self.texts_per_row = self._task.texts_per_row = 2

    @overload
    def __call__(self, texts: str) -> Answer: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, texts: Sequence[Texts]) -> list[Answer]: ...

    def __call__(self, texts: str | Sequence[Texts]) -> Answer | list[Answer]:
        """The answer to a text, or the answers to a list of texts or pairs, in their order."""
        if isinstance(texts, str):
            return next(self.stream([texts]))
        return list(self.stream(texts))

    def stream(self, texts: Iterable[Texts]) -> Iterator[Answer]:
        """Answers one by one, in the order of the texts.

        Each has ``truncated``: whether the model saw only the beginning of the text.

        Raises:
            DataError: a text that the task cannot take.
        """
        source = iter(texts)
        while chunk := list(islice(source, TEXTS_AT_ONCE)):
            encoded = self._task.encode(chunk)
            answers: list[Answer] = [{}] * len(chunk)
            for members in _batches([len(row.input_ids) for row in encoded]):
                for i, answer in zip(
                    members, self._answer([encoded[i] for i in members]), strict=True
                ):
                    answers[i] = {**answer, "truncated": encoded[i].truncated}
            yield from answers

    @torch.inference_mode()
    def _answer(self, rows: list[Encoded]) -> list[Answer]:
        batch = pack_sequences(
            [row.input_ids for row in rows], [row.token_type_ids for row in rows], range(len(rows))
        )
        with arithmetic(self.precision, self.device):
            return self._task.answer(self.model, batch_tokens(batch, self.device))


def _check_answers(checkpoint: Checkpoint, directory: Path) -> None:
    """Refuse a head whose numbers are not one probability for each label."""
    labels, meaning = checkpoint.labels, checkpoint.foreign.get("problem_type")
    if meaning in (None, "single_label_classification") and len(set(labels)) == len(labels) > 1:
        return
    if len(labels) == 1 or meaning == "regression":
        what = "The head gives a score, not a label."
    elif len(set(labels)) < len(labels):
        what = "Two labels of this model have the same name."
    else:
        what = "A text may have several labels in this model; here it has one."
    raise ModelError(
        what,
        where=str(directory / CONFIG),
        fix="fine-tune it first: bert finetune TRAIN --model " + shlex.quote(str(directory)),
    )


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers by length, as many at once as ``BATCH_TOKENS`` allow."""
    members: list[int] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if members and tokens + lengths[i] > BATCH_TOKENS:
            yield members
            members, tokens = [], 0
        members.append(i)
        tokens += lengths[i]
    if members:
        yield members
