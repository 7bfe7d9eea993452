"""Pairs of segments: does B follow A, or do the two stand in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bert.data.batches import Batch
from bert.data.instances import NO_LABEL
from bert.model.packing import Tokens
from bert.objectives.objective import Score


@dataclass(frozen=True)
class NextSentence:
    """Is this pair as it stood in the text; how it differs if not, the batch decides.

    ``pair_batch``: B is from elsewhere (Devlin et al. 2018, section 3.1, task 2).
    ``ordered_batch``: the two have changed places (Lan et al. 2019, section 3.1); named "sop".
    """

    name: str = "nsp"

    def prepare(self, batch: Batch) -> Batch:
        """Nothing: the pairs are made with the batch."""
        return batch

    def count(self, batch: Batch) -> int:
        """Sequences that have two segments."""
        return int((batch.targets["next_sentence"] != NO_LABEL).sum())

    def score(
        self, model: Any, hidden: Tensor, tokens: Tokens, targets: dict[str, Tensor]
    ) -> Score:
        """Cross-entropy over "as it stood" and "not": hidden [T, H] -> [B, 2] -> a sum."""
        labels = targets["next_sentence"]
        logits = model.next_sentence_logits(hidden, tokens).float()
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=NO_LABEL)
        return Score(loss, (logits.argmax(dim=-1) == labels).sum())
