"""Masked language modelling: guess the hidden words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
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
        logits = model.word_logits(hidden[targets["masked_places"]])
        return Score(*word_loss(logits, words))


def word_loss(logits: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and right guesses: logits [M, V], words [M] -> two sums."""
    loss, correct = _WordLoss.apply(logits, words)  # type: ignore[no-untyped-call]
    return loss, correct


class _WordLoss(torch.autograd.Function):
    """Summed cross-entropy over a large vocabulary, and how many words were right.

    The gradient, ``softmax(logits) - onehot(word)``, is what the forward pass has computed
    already: 7.9 ms instead of 10.9 for 600 words of 8,000 in bf16 on 2 cores, and no clear
    difference on one (``benchmarks/kernels.py``).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """logits [M, V], words [M] -> two sums."""
        chances = torch.softmax(logits, dim=-1, dtype=torch.float32)  # [M, V]
        highest, guesses = logits.max(dim=-1)  # [M]
        rows = torch.arange(len(words), device=words.device)
        # log sum exp(l) = max l - log softmax(l)[argmax]: exact where softmax underflows.
        normalizer = highest.float() - chances[rows, guesses].log()
        loss = (normalizer - logits[rows, words].float()).sum()
        ctx.save_for_backward(chances, words)
        ctx.logits_dtype = logits.dtype
        correct = (guesses == words).sum()
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient with respect to the logits [M, V]."""
        chances, words = ctx.saved_tensors
        rows = torch.arange(len(words), device=words.device)
        chances[rows, words] -= 1.0  # used up: there is one backward
        return (chances * gradients[0]).to(ctx.logits_dtype), None
