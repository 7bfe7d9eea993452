"""Pretraining instances: pairs of segments for next sentence prediction.

A document is cut into spans of whole sentences, about as long as a sequence. In an epoch
every span is cut in two at a sentence boundary drawn anew: the first part is segment A. For
half of the spans segment B is what really follows; the other half exchange their second
parts, so that all text is still used (Devlin et al. 2018, section 3.1, draw B instead)::

    span i:  a a a | b b            A = a a a, B = b b        follows      (0)
    span j:  c c | d d d      or    A = a a a, B = d d d      does not     (1)

Segment B fills the sequence, up to the end of its document, whether it follows or not: its
length must not give the answer away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bert.data.batches import Batch, Ints, ranges
from bert.data.draws import permutation, uniform
from bert.data.shards import Shards
from bert.errors import DataError

# What a draw is for: the first key of every number drawn here.
_SPLIT, _EXCHANGE, _HELD_OUT = 1, 2, 3
NO_LABEL = -100


@dataclass(frozen=True)
class Spans:
    """Spans of a corpus: the samples of an epoch.

    Arrays: ``units`` token offsets at which a span may be cut; ``first`` and ``last``
    [spans] numbers in ``units`` where a span starts and ends; ``limit`` [spans] the token at
    which the span's document ends.
    """

    tokens: NDArray[np.integer]
    units: Ints
    first: Ints
    last: Ints
    limit: Ints

    def __len__(self) -> int:
        return len(self.first)

    def token_count(self) -> int:
        """Tokens in all spans."""
        return int((self.units[self.last] - self.units[self.first]).sum())


def cut_spans(shards: Shards, room: int, documents: NDArray[np.int64]) -> Spans:
    """The spans of these documents, each at most ``room`` tokens long."""
    units = _units(shards.sentence_starts, max(room // 2, 1))
    # Document boundaries are sentence boundaries, and those are all in ``units``.
    token_starts = shards.sentence_starts[shards.document_starts]
    unit_starts = np.searchsorted(units, token_starts)
    first, last, limit = [], [], []
    for document in documents:
        unit, end = int(unit_starts[document]), int(unit_starts[document + 1])
        while unit < end:
            reach = int(np.searchsorted(units, units[unit] + room, side="right")) - 1
            stop = min(max(reach, unit + 1), end)
            first.append(unit)
            last.append(stop)
            limit.append(int(token_starts[document + 1]))
            unit = stop
    return Spans(shards.tokens, units, np.array(first), np.array(last), np.array(limit))


def _units(sentence_starts: NDArray[np.int64], longest: int) -> Ints:
    """Sentence boundaries, with more inside sentences longer than ``longest`` tokens."""
    lengths = np.diff(sentence_starts)
    parts = -(-lengths // longest)
    starts = np.repeat(sentence_starts[:-1], parts)
    offsets = ranges(np.zeros_like(parts), parts) * longest
    return np.append(starts + offsets, sentence_starts[-1])


def split_held_out(shards: Shards, room: int, share: float, seed: int) -> tuple[Spans, Spans]:
    """Spans to train on and spans held out: whole documents, chosen by the seed.

    A corpus of a single document keeps its last spans back instead.

    Raises:
        DataError: there is too little text to hold any out.
    """
    count = len(shards.document_starts) - 1
    everything = np.arange(count)
    if count > 1:
        out = uniform(_HELD_OUT, seed, everything) < share
        if not out.any() or out.all():
            out = everything == int(np.argmin(uniform(_HELD_OUT, seed, everything)))
        train = cut_spans(shards, room, everything[~out])
        held_out = cut_spans(shards, room, everything[out])
    else:
        spans = cut_spans(shards, room, everything)
        cut = min(int(len(spans) * (1 - share)), len(spans) - 1)
        train, held_out = (
            Spans(spans.tokens, spans.units, spans.first[part], spans.last[part], spans.limit[part])
            for part in (slice(cut), slice(cut, None))
        )
        # No B reaches into what is held out.
        train.limit[:] = train.units[held_out.first[0]]
    if not len(train) or not len(held_out):
        raise DataError(
            f"The corpus has only {len(shards.tokens):,} tokens, too few to train on.",
            fix="give a corpus with more text",
        )
    return train, held_out


@lru_cache(maxsize=2)
def _partners(seed: int, epoch: int, count: int, cuttable: bytes) -> Ints:
    """Whose second part each span is given: half of those that can be cut exchange theirs."""
    partner = np.arange(count)
    candidates = np.flatnonzero(np.frombuffer(cuttable, dtype=bool))
    shuffled = candidates[permutation(len(candidates), _EXCHANGE, seed, epoch)]
    pairs = shuffled[: len(shuffled) // 2 * 2].reshape(-1, 2)
    exchanged = pairs[: (len(pairs) + 1) // 2]
    partner[exchanged[:, 0]] = exchanged[:, 1]
    partner[exchanged[:, 1]] = exchanged[:, 0]
    return partner


def pair_batch(
    spans: Spans, samples: Ints, *, epoch: int, seed: int, room: int, cls_id: int, sep_id: int
) -> Batch:
    """``[CLS] A [SEP] B [SEP]`` for these samples of an epoch, at most ``room + 3`` tokens.

    Targets: ``next_sentence`` [B]: 0 where B follows A, 1 where it does not, ``NO_LABEL`` for
    a span of a single sentence, which has no B. ``special`` [T]: 1 at [CLS] and [SEP].
    """
    cuttable = spans.last - spans.first > 1
    partner = _partners(seed, epoch, len(spans), cuttable.tobytes())[samples]
    a_start, a_end = spans.units[spans.first[samples]], _cut(spans, samples, epoch, seed)
    a_length = a_end - a_start
    b_start = _cut(spans, partner, epoch, seed)
    paired = cuttable[samples]
    b_length = np.where(paired, np.minimum(spans.limit[partner] - b_start, room - a_length), 0)

    lengths = a_length + b_length + 2 + paired
    input_ids = np.full(int(lengths.sum()), sep_id, dtype=np.int64)
    token_type_ids = np.zeros_like(input_ids)
    special = np.ones_like(input_ids)
    starts = np.cumsum(lengths) - lengths
    input_ids[starts] = cls_id
    for place, source, length in (
        (starts + 1, a_start, a_length),
        (starts + a_length + 2, b_start, b_length),
    ):
        where = ranges(place, length)
        input_ids[where] = spans.tokens[ranges(source, length)]
        special[where] = 0
    segment_b = lengths - a_length - 2
    token_type_ids[ranges(starts + a_length + 2, segment_b)] = 1
    label = np.where(paired, (partner != samples).astype(np.int64), NO_LABEL)
    return Batch(
        input_ids,
        token_type_ids,
        lengths,
        np.asarray(samples),
        epoch,
        {"next_sentence": label, "special": special},
    )


def _cut(spans: Spans, samples: Ints, epoch: int, seed: int) -> Ints:
    """The token at which each span is cut in two; its end where it cannot be."""
    parts = spans.last[samples] - spans.first[samples]
    draw = uniform(_SPLIT, seed, epoch, samples)
    step = np.where(parts > 1, 1 + (draw * (parts - 1)).astype(np.int64), parts)
    return spans.units[spans.first[samples] + step]
