"""An objective: what is asked of a batch, and several of them in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bert.data.batches import Batch
from bert.model.packing import Tokens
from bert.training.loop import Outcome


class Score(NamedTuple):
    """The sum of the losses over what was asked, and how many answers were right."""

    loss: Tensor
    correct: Tensor


class Part(Protocol):
    """One objective. Losses are sums, so that the loop can divide by the global count."""

    @property
    def name(self) -> str:
        """What its figures are called."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """Hide what is to be guessed."""
        ...

    def count(self, batch: Batch) -> int:
        """How many answers the batch asks for."""
        ...

    def score(
        self, model: Any, hidden: Tensor, tokens: Tokens, targets: dict[str, Tensor]
    ) -> Score:
        """The loss from the hidden states [T, H]."""
        ...


@dataclass(frozen=True)
class Objective:
    """Several objectives over one pass of the encoder; their mean losses are added."""

    parts: Sequence[Part]

    def prepare(self, batch: Batch) -> Batch:
        """The batch as the model sees it."""
        for part in self.parts:
            batch = part.prepare(batch)
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many answers of each objective the batch asks for."""
        return {part.name: part.count(batch) for part in self.parts}

    def tokens(self, batch: Batch) -> int:
        """Real tokens in the batch."""
        return len(batch.input_ids)

    def losses(self, model: Any, batch: Batch, device: torch.device) -> Outcome:
        """Loss sums and right answers by objective."""
        tokens = Tokens.of(
            batch.input_ids, batch.token_type_ids, batch.position_ids, batch.lengths, device
        )
        targets = {name: torch.as_tensor(value).to(device) for name, value in batch.targets.items()}
        hidden = model.bert.encode(tokens)
        scores = {part.name: part.score(model, hidden, tokens, targets) for part in self.parts}
        return Outcome(
            {name: score.loss for name, score in scores.items()},
            {name: score.correct for name, score in scores.items()},
        )
