"""Masked language modelling: guess the hidden words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bert.data.batches import Batch
from bert.model.packing import Tokens
from bert.objectives.masking import Words, mask_tokens
from bert.objectives.objective import Score

# Rows of logits whose softmax is taken at once: few enough to stay in a processor's cache, and
# one pass on an accelerator.
ROWS, ROWS_AT_ONCE = 32, 2**12


@dataclass(frozen=True)
class MaskedLM:
    """Devlin et al. 2018, section 3.1, task 1. Logits are computed at masked places only.

    Args:
        mask_id: number of [MASK].
        vocab_size: words there are.
        seed: of the masks.
        rate: share of the tokens that is hidden.
        rate_end: the share at the end of training, to which ``rate`` moves evenly; None where
            it stays.
        kind: what is chosen: ``token``, ``word`` or ``span``.
        words: what makes a word, for ``word`` and ``span``.
        only_mask: whether every hidden word is behind [MASK], none behind another word.
    """

    mask_id: int
    vocab_size: int
    seed: int
    rate: float = 0.15
    name: str = "mlm"
    rate_end: float | None = None
    kind: str = "token"
    words: Words | None = None
    only_mask: bool = False

    def prepare(self, batch: Batch) -> Batch:
        """Hide words, drawn anew each epoch."""
        end = self.rate if self.rate_end is None else self.rate_end
        return mask_tokens(
            batch,
            rate=self.rate + (end - self.rate) * batch.share,
            seed=self.seed,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            kind=self.kind,
            words=self.words,
            only_mask=self.only_mask,
        )

    def count(self, batch: Batch) -> int:
        """Hidden words."""
        return len(batch.targets["masked_words"])

    def score(
        self, model: Any, hidden: Tensor, tokens: Tokens, targets: dict[str, Tensor]
    ) -> Score:
        """Cross-entropy over the vocabulary: hidden [T, H] -> [M, V] -> a sum."""
        logits = model.word_logits(hidden.index_select(0, targets["masked_places"]))
        return Score(*word_loss(logits, targets["masked_words"]))


def word_loss(logits: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and right guesses: logits [M, V], words [M] -> two sums.

    The logits are used up: their gradient is written over them. So nothing but they is kept
    of [M, V] numbers, in whatever precision they come.
    """
    loss, correct = _WordLoss.apply(logits, words)  # type: ignore[no-untyped-call]
    return loss, correct


def rows_at_once(logits: Tensor) -> int:
    """How many of M rows to take at once where the softmax of [M, V] is needed."""
    return ROWS if logits.device.type == "cpu" else ROWS_AT_ONCE


class _WordLoss(torch.autograd.Function):
    """Summed cross-entropy over a large vocabulary, and how many words were right.

    The gradient, ``softmax(logits) - onehot(word)``, is what the forward pass has computed
    already. The product that made the logits does not need them again.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """logits [M, V], words [M] -> two sums."""
        loss = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        correct = words.new_zeros(())
        size = rows_at_once(logits)
        for part, answers in zip(torch.split(logits, size), torch.split(words, size), strict=True):
            rows = torch.arange(len(answers), device=answers.device)
            chances = torch.softmax(part, dim=-1, dtype=loss.dtype)  # [m, V]
            highest, guesses = part.max(dim=-1)  # [m]
            # log sum exp(l) = max l - log softmax(l)[argmax]: exact where softmax underflows.
            normalizer = highest.to(loss.dtype) - chances[rows, guesses].log()
            loss += (normalizer - part[rows, answers].to(loss.dtype)).sum()
            correct += (guesses == answers).sum()
            chances[rows, answers] -= 1.0
            part.copy_(chances)
        ctx.save_for_backward(logits)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient with respect to the logits [M, V]."""
        (difference,) = ctx.saved_tensors
        return difference.mul_(gradients[0]), None  # used up: there is one backward
