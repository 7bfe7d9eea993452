"""From a model directory to answers, for any number of texts in constant memory."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import nn

from bert.checkpoint import Checkpoint, read_model
from bert.data.batches import Numbers, pack_sequences
from bert.errors import ModelError, UsageError
from bert.hub import CONFIG, find_model
from bert.inference.int8 import is_int8
from bert.inference.prepare import is_prepared, prepare
from bert.model.precision import arithmetic, default_device, resolve_precision
from bert.tasks.task import Answer, Task, batch_tokens, load_task, task_names
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed

ANSWERED_IN = ("auto", "fp32", "bf16", "int8")
# Texts read ahead, to be sorted by length so that like lengths share a batch.
TEXTS_AT_ONCE = 2048
# Tokens computed at once: on a CPU more bring no speed (measured from 2,048 to 8,192 at a width of
# 256) but memory, 90 MiB at 2,048 and 261 at 8,192.
CPU_TOKENS, ACCELERATOR_TOKENS = 2048, 8192
# The task of a directory that says none, by the head it has.
TASK_OF_HEAD = {
    "pretraining": "fill_mask",
    "masked_lm": "fill_mask",
    "sequence": "classification",
    "token": "tagging",
    "span": "question_answering",
    "choice": "multiple_choice",
    "encoder": "embedding",
}
# And of a directory whose configuration says what its outputs mean.
TASK_OF_PROBLEM = {
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}


class Predictor:
    """Takes texts and gives answers.

    >>> Predictor("runs/finetune-1")("a fine film")["label"]  # doctest: +SKIP

    Args:
        name: a run folder, a model directory or a hub id.
        precision: fp32, whose numbers are the same whatever the batch mates, bf16, int8, or
            ``auto``, the fastest that was measured on the model's own held-out rows: int8 where
            the model was written in it, else what ``precision`` in ``bert.json`` says, else fp32.
        task: another than the model's own, which an encoder does by itself: ``embedding``.

    Raises:
        ModelError: there is no model, or it has a head that answers nothing.
    """

    def __init__(self, name: str | Path, precision: str = "auto", task: str | None = None) -> None:
        directory = find_model(name)
        checkpoint = read_model(directory, kind=load_task(task).kind if task else None)
        task = task or checkpoint.facts.get("task") or _task_of(checkpoint)
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
        if checkpoint.kind not in (kind.kind, "pretraining") or (
            checkpoint.kind == "pretraining" and kind.kind != "masked_lm"
        ):
            raise ModelError(
                f"The task {task} does not go with a {checkpoint.kind} head.",
                where=str(directory / "bert.json"),
                fix="copy the model again, or fine-tune it: bert finetune TRAIN --task "
                f"{task} --model {shlex.quote(str(name))}",
            )
        _check_labels(checkpoint, directory)
        self.directory = directory
        self.facts = checkpoint.facts
        self.device = default_device()
        self.precision = _precision(precision, checkpoint, self.device)
        self.task: Task = kind(checkpoint)
        self.model = prepare(checkpoint.model, self.precision, self.device)
        self.labels = self.task.labels
        self.max_length = self.task.max_length
        self.texts_per_row = self.task.texts_per_row

    def take_pairs(self) -> None:
        """Expect pairs of texts, where the model itself does not say what it takes."""
        self.texts_per_row = self.task.texts_per_row = 2

    @overload
    def __call__(self, texts: str) -> Answer: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, texts: Sequence[Texts | tuple[str, ...]]) -> list[Answer]: ...

    def __call__(self, texts: str | Sequence[Texts | tuple[str, ...]]) -> Answer | list[Answer]:
        """The answer to a text, or the answers to a list of texts or pairs, in their order."""
        if isinstance(texts, str):
            return next(self.stream([texts]))
        return list(self.stream(texts))

    def stream(self, texts: Iterable[Texts | tuple[str, ...]]) -> Iterator[Answer]:
        """Answers one by one, in the order of the texts.

        Each has ``windows``, in how many the text was read, and ``truncated``: whether there
        is a part of it that the model did not see.

        Raises:
            DataError: a text that the task cannot take.
        """
        for answer in answers(self.task, self.model, texts, self.precision, self.device):
            yield self.task.decide(answer, self.task.calibration)

    # The same three steps one by one, for a server that computes texts of several requests at
    # once: ``encode`` in any thread, ``scores`` in one.

    def encode(self, texts: Sequence[Texts | tuple[str, ...]]) -> list[Windowed]:
        """Texts as the model reads them.

        Raises:
            DataError: a text that the task cannot take.
        """
        return self.task.encode(texts)

    def scores(self, encoded: Sequence[Windowed]) -> list[Numbers]:
        """What the network says of every window, in order."""
        return list(_scores(self.task, self.model, encoded, self.precision, self.device))

    def answer(
        self, text: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """The answer to a text from what the network said of each of its windows."""
        answer = _answer(self.task, text, encoded, scores)
        return self.task.decide(answer, self.task.calibration)


def answers(
    task: Task,
    model: nn.Module,
    texts: Iterable[Texts | tuple[str, ...]],
    precision: str,
    device: torch.device,
) -> Iterator[Answer]:
    """The answers to texts, before anything is decided by calibration.

    The model is in evaluation mode while it answers.

    Raises:
        DataError: a text that the task cannot take.
    """
    source = iter(texts)
    while chunk := list(islice(source, TEXTS_AT_ONCE)):
        encoded = task.encode(chunk)
        scores = _scores(task, model, encoded, precision, device)
        for text, row in zip(chunk, encoded, strict=True):
            mine = [next(scores) for _ in row.windows]
            yield _answer(task, text, row, mine)


def _answer(
    task: Task, text: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
) -> Answer:
    return {
        **task.decode(text, encoded, scores),
        "windows": encoded.pieces,
        "truncated": encoded.truncated,
    }


def _scores(
    task: Task, model: nn.Module, encoded: Sequence[Windowed], precision: str, device: torch.device
) -> Iterator[Numbers]:
    """What the network says of every window, in order."""
    windows = [window for row in encoded for window in row.windows]
    found: list[Numbers] = [_NOTHING] * len(windows)
    was_training = model.training
    ready = is_prepared(model)
    if not ready:
        model.eval()
    with torch.inference_mode(), nullcontext() if ready else arithmetic(precision, device):
        most = CPU_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS
        for members in _batches([len(window.input_ids) for window in windows], most):
            batch = pack_sequences(
                [windows[i].input_ids for i in members],
                [windows[i].token_type_ids for i in members],
                members,
            )
            for i, score in zip(
                members, task.scores(model, batch_tokens(batch, device)), strict=True
            ):
                found[i] = score
    if not ready:
        model.train(was_training)
    return iter(found)


_NOTHING = np.zeros(0)


def _precision(precision: str, checkpoint: Checkpoint, device: torch.device) -> str:
    """``auto`` as the fastest that was measured and that this machine is fast in."""
    if precision not in ANSWERED_IN:
        raise UsageError(f"precision is one of {', '.join(ANSWERED_IN)}, not {precision!r}.")
    if precision == "int8" and not is_int8(checkpoint.model):
        raise UsageError(
            "The model has no 8-bit weights, which are chosen by texts of your own.",
            fix="bert compress RUN --to int8 --out DIR",
        )
    if precision == "auto":
        if is_int8(checkpoint.model):
            return "int8"
        measured = checkpoint.facts.get("precision")
        return resolve_precision("auto", device) if measured == "bf16" else "fp32"
    return precision


def _task_of(checkpoint: Checkpoint) -> str | None:
    """The task of a model that others made."""
    if checkpoint.kind == "sequence":
        meaning = str(checkpoint.foreign.get("problem_type"))
        alone = "regression" if len(checkpoint.labels) == 1 else "classification"
        return TASK_OF_PROBLEM.get(meaning, alone)
    return TASK_OF_HEAD.get(checkpoint.kind)


def _check_labels(checkpoint: Checkpoint, directory: Path) -> None:
    """Refuse labels that answers could not tell apart."""
    if len(set(checkpoint.labels)) < len(checkpoint.labels):
        raise ModelError(
            "Two labels of this model have the same name.",
            where=str(directory / CONFIG),
            fix="give every label in id2label a name of its own",
        )


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Row numbers by length, as many at once as have ``most`` tokens, or one."""
    members: list[int] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if members and tokens + lengths[i] > most:
            yield members
            members, tokens = [], 0
        members.append(i)
        tokens += lengths[i]
    if members:
        yield members
