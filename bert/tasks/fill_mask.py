"""Fill-mask: the likeliest words for every [MASK] in a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from bert.data.batches import Numbers
from bert.errors import DataError
from bert.model.packing import Tokens
from bert.tasks.task import Answer, Task
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed

SUGGESTIONS = 5


class FillMask(Task):
    """What pretraining taught: a word for each masked place. It is asked, not trained.

    A mask in a long text is guessed in the window in which it has most text to both sides.
    """

    kind = "masked_lm"
    places = True

    def encode(self, texts: Sequence[Texts | tuple[str, ...]]) -> list[Windowed]:
        """Texts as the model reads them.

        Raises:
            DataError: a text without a mask.
        """
        encoded = super().encode(texts)
        mask, token = self.tokenizer.mask_id, self.tokenizer.mask_token
        for i, row in enumerate(encoded):
            if not any(mask in window.input_ids for window in row.windows):
                raise DataError(
                    f"The text has no {token}.",
                    where=f"text {i + 1}",
                    fix=f'write {token} for the word to guess: "Paris is the {token} of France."',
                )
        return encoded

    def scores(self, model: nn.Module, tokens: Tokens) -> list[Numbers]:
        """[S, 2 * SUGGESTIONS] of each sequence: at masks words and their chances, else -1."""
        places = torch.eq(tokens.input_ids, self.tokenizer.mask_id).nonzero().flatten()
        hidden = model.bert.encode(tokens)[places]  # type: ignore[operator,union-attr]
        logits: torch.Tensor = model.word_logits(hidden)  # type: ignore[operator]
        best = logits.float().softmax(dim=-1).topk(min(SUGGESTIONS, logits.shape[-1]))
        found = np.full((len(tokens.input_ids), 2 * best.values.shape[-1]), -1.0)
        found[places.cpu().numpy()] = torch.cat((best.indices, best.values), dim=-1).cpu().numpy()
        return np.split(found, np.cumsum(tokens.packed.lengths)[:-1])

    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """``{"masks": [[{"token": word, "probability": p}, ...], ...]}``."""
        rows = scores[0] if len(scores) == 1 else encoded.merged(scores)
        return {
            "masks": [
                [
                    {"token": self.tokenizer.token(int(number)), "probability": float(chance)}
                    for number, chance in zip(*np.split(row, 2), strict=True)
                ]
                for row in rows
                if row[0] >= 0
            ]
        }


TASK = FillMask
