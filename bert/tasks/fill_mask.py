"""Fill-mask: the likeliest words for every [MASK] in a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from bert.errors import DataError
from bert.model.packing import Tokens
from bert.tasks.task import Answer, Task
from bert.text.tokenizer import Encoded, Texts

SUGGESTIONS = 5


class FillMask(Task):
    """What pretraining taught: a word for each masked place. It is asked, not trained."""

    kind = "masked_lm"

    def encode(self, texts: Sequence[Texts]) -> list[Encoded]:
        """Texts as the model reads them.

        Raises:
            DataError: a text without a mask, or whose mask was cut off.
        """
        encoded = super().encode(texts)
        for i, row in enumerate(encoded):
            if self.tokenizer.mask_id not in row.input_ids:
                mask = self.tokenizer.mask_token
                raise DataError(
                    f"The text has no {mask}"
                    + (f" in its first {self.max_length} tokens." if row.truncated else "."),
                    where=f"text {i + 1}",
                    fix=f'write {mask} for the word to guess: "Paris is the {mask} of France."',
                )
        return encoded

    def answer(self, model: nn.Module, tokens: Tokens) -> list[Answer]:
        """``{"masks": [[{"token": word, "probability": p}, ...], ...]}`` for each sequence."""
        places = torch.eq(tokens.input_ids, self.tokenizer.mask_id).nonzero().flatten()
        hidden = model.bert.encode(tokens)[places]  # type: ignore[operator,union-attr]
        logits: torch.Tensor = model.word_logits(hidden)  # type: ignore[operator]
        best = logits.float().softmax(dim=-1).topk(min(SUGGESTIONS, logits.shape[-1]))
        sequence = np.repeat(np.arange(len(tokens.packed.lengths)), tokens.packed.lengths)
        answers: list[Answer] = [{"masks": []} for _ in tokens.packed.lengths]
        for place, numbers, chances in zip(
            places.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        ):
            answers[sequence[place]]["masks"].append(
                [
                    {"token": self.tokenizer.token(number), "probability": chance}
                    for number, chance in zip(numbers, chances, strict=True)
                ]
            )
        return answers


TASK = FillMask
