"""Masked language modelling: guess the hidden words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bert.data.batches import Batch
from bert.model.packing import Tokens
from bert.objectives.masking import mask_tokens
from bert.objectives.objective import Score


@dataclass(frozen=True)
class MaskedLM:
    """Devlin et al. 2018, section 3.1, task 1. Logits are computed at masked places only."""

    mask_id: int
    vocab_size: int
    seed: int
    rate: float = 0.15
    name: str = "mlm"

    def prepare(self, batch: Batch) -> Batch:
        """Hide words, drawn anew each epoch."""
        return mask_tokens(
            batch,
            rate=self.rate,
            seed=self.seed,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
        )

    def count(self, batch: Batch) -> int:
        """Hidden words."""
        return len(batch.targets["masked_words"])

    def score(
        self, model: Any, hidden: Tensor, tokens: Tokens, targets: dict[str, Tensor]
    ) -> Score:
        """Cross-entropy over the vocabulary: hidden [T, H] -> [M, V] -> a sum."""
        words = targets["masked_words"]
        logits = model.word_logits(hidden[targets["masked_places"]]).float()
        loss = F.cross_entropy(logits, words, reduction="sum")
        return Score(loss, (logits.argmax(dim=-1) == words).sum())
