"""Which tokens are hidden from the model, and behind what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bert.data.batches import Batch, ranges
from bert.data.draws import hashed, uniform

_CHOOSE, _REPLACE, _WORD = 11, 12, 13


def mask_tokens(batch: Batch, *, rate: float, seed: int, mask_id: int, vocab_size: int) -> Batch:
    """Hide a share of every sequence's tokens (Devlin et al. 2018, section 3.1 and appendix A.2).

    Of the chosen tokens 80% become [MASK], 10% a random word, 10% stay. The choice depends
    on (seed, epoch, sample, place in the sequence) alone.

    Args:
        batch: with the target ``special`` [T], 1 at tokens that are never chosen.
        rate: share of the other tokens that is chosen, at least one a sequence.
        seed: of the run.
        mask_id: number of [MASK].
        vocab_size: random words are below it.

    Returns:
        The batch with tokens replaced and the targets ``masked_places`` [M], ascending among
        the T tokens, and ``masked_words`` [M], the tokens that stood there.
    """
    place = batch.position_ids
    sequence = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
    keys = (seed, batch.epoch, batch.samples[sequence], place)
    free = batch.targets["special"] == 0
    # The lowest draws of each sequence are chosen; special tokens come last.
    order = np.lexsort((uniform(_CHOOSE, *keys) + ~free, sequence))
    available = np.bincount(sequence[free], minlength=len(batch.lengths))
    wanted = np.minimum(np.maximum(np.rint(available * rate), 1), available).astype(np.int64)
    starts = np.cumsum(batch.lengths) - batch.lengths
    chosen = np.sort(order[ranges(starts, wanted)])

    words = batch.input_ids[chosen]
    chosen_keys = (seed, batch.epoch, batch.samples[sequence[chosen]], place[chosen])
    draw = uniform(_REPLACE, *chosen_keys)
    random_words = (hashed(_WORD, *chosen_keys) % np.uint64(vocab_size)).astype(np.int64)
    input_ids = batch.input_ids.copy()
    input_ids[chosen] = np.where(draw < 0.8, mask_id, np.where(draw < 0.9, random_words, words))
    targets = {**batch.targets, "masked_places": chosen, "masked_words": words}
    return replace(batch, input_ids=input_ids, targets=targets)
