"""What every task can do, and the list of tasks there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from bert.checkpoint import Checkpoint
from bert.data.batches import Batch
from bert.errors import DataError, ModelError, UsageError
from bert.model.packing import Tokens
from bert.text.tokenizer import Encoded, Texts, Tokenizer

Answer = dict[str, Any]


class Task(ABC):
    """From texts to answers and, for tasks that are trained, from rows to a loss.

    Class attributes: ``kind``, the head it needs; ``primary_metric``, the figure that
    models are compared by, and ``greater_is_better``, its direction (empty for a task that
    is not trained); ``demo_rows``, eight rows for tests and documentation.
    """

    kind: ClassVar[str]
    primary_metric: ClassVar[str] = ""
    greater_is_better: ClassVar[bool] = True
    demo_rows: ClassVar[Sequence[dict[str, Any]]] = ()

    def __init__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.tokenizer is None:
            raise ModelError("The model has no tokenizer.")
        self.tokenizer: Tokenizer = checkpoint.tokenizer
        self.labels = checkpoint.labels
        self.max_length = min(
            int(checkpoint.facts.get("max_length") or checkpoint.config.longest_text),
            checkpoint.config.longest_text,
        )
        self.texts_per_row = int(checkpoint.facts.get("texts_per_row") or 1)

    def encode(self, texts: Sequence[Texts]) -> list[Encoded]:
        """Texts or pairs as the model reads them.

        Raises:
            DataError: a text that the task cannot take.
        """
        for i, text in enumerate(texts):
            if (1 if isinstance(text, str) else len(text)) != self.texts_per_row:
                wanted = "one text" if self.texts_per_row == 1 else "a pair of texts"
                raise DataError(f"The model takes {wanted} a row.", where=f"text {i + 1}")
        return self.tokenizer.encode(texts, self.max_length)

    @abstractmethod
    def answer(self, model: nn.Module, tokens: Tokens) -> list[Answer]:
        """One answer for each of the B packed sequences."""


def batch_tokens(batch: Batch, device: torch.device) -> Tokens:
    """A batch's tokens on a device."""
    return Tokens.of(
        batch.input_ids, batch.token_type_ids, batch.position_ids, batch.lengths, device
    )


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
