"""Pretraining instances: pairs of segments, in one of two ways, or running text alone.

A document is cut into spans of whole sentences, about as long as a sequence. In an epoch
every span is cut in two at a sentence boundary drawn anew: the first part is segment A. For
half of the spans segment B is what really follows; the other half exchange their second
parts, so that all text is still used (Devlin et al. 2018, section 3.1, draw B instead)::

    span i:  a a a | b b            A = a a a, B = b b        follows      (0)
    span j:  c c | d d d      or    A = a a a, B = d d d      does not     (1)

Segment B fills the sequence, up to the end of its document, whether it follows or not: its
length must not give the answer away.

For sentence order prediction (Lan et al. 2019, section 3.1) both parts of a span are kept and
stand in the wrong order in every other sample; nothing is added to either::

    span i:  a a a | b b            A = a a a, B = b b        in order     (0)
                              or    A = b b, B = a a a        swapped      (1)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bert.data.batches import Batch, Ints, ranges
from bert.data.draws import permutation, uniform
from bert.data.shards import Shards
from bert.errors import DataError

# What a draw is for: the first key of every number drawn here.
_SPLIT, _EXCHANGE, _HELD_OUT, _SWAP = 1, 2, 3, 4
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
    """The spans of these documents, each at most ``room`` tokens long.

    The sentence that a span had no room for is longer than most, and begins the next one. So
    that this cannot tell a first part from a second, every other document is cut from its end.
    """
    units = _units(shards.sentence_starts, max(room // 2, 1))
    # Document boundaries are sentence boundaries, and those are all in ``units``.
    token_starts = shards.sentence_starts[shards.document_starts]
    unit_starts = np.searchsorted(units, token_starts)
    first, last, limit = [], [], []
    for document in documents:
        start, end = int(unit_starts[document]), int(unit_starts[document + 1])
        edges = [end if document % 2 else start]
        while document % 2 and edges[-1] > start:
            reach = int(np.searchsorted(units, units[edges[-1]] - room))
            edges.append(max(min(reach, edges[-1] - 1), start))
        while not document % 2 and edges[-1] < end:
            reach = int(np.searchsorted(units, units[edges[-1]] + room, side="right")) - 1
            edges.append(min(max(reach, edges[-1] + 1), end))
        edges.sort()
        first += edges[:-1]
        last += edges[1:]
        limit += [int(token_starts[document + 1])] * (len(edges) - 1)
    return Spans(shards.tokens, units, np.array(first), np.array(last), np.array(limit))


def _units(sentence_starts: NDArray[np.int64], longest: int) -> Ints:
    """Sentence boundaries, with more, evenly, inside sentences longer than ``longest`` tokens."""
    lengths = np.diff(sentence_starts)
    parts = -(-lengths // longest)
    starts = np.repeat(sentence_starts[:-1], parts)
    number = ranges(np.zeros_like(parts), parts)
    offsets = number * np.repeat(lengths, parts) // np.repeat(parts, parts)
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

    label = np.where(paired, (partner != samples).astype(np.int64), NO_LABEL)
    batch = _packed(spans, samples, (a_start, a_length), (b_start, b_length), cls_id, sep_id)
    return replace(batch, epoch=epoch, targets={**batch.targets, "next_sentence": label})


def ordered_batch(
    spans: Spans, samples: Ints, *, epoch: int, seed: int, cls_id: int, sep_id: int
) -> Batch:
    """``[CLS] A [SEP] B [SEP]``, A and B the two parts of a span in either order.

    At most 3 tokens longer than a span. Targets as of ``pair_batch``, but ``next_sentence`` is
    0 where A comes first in the text and 1 where it comes second.
    """
    start, end = spans.units[spans.first[samples]], spans.units[spans.last[samples]]
    cut = _cut(spans, samples, epoch, seed)
    paired = cut < end
    swapped = paired & (uniform(_SWAP, seed, epoch, samples) < 0.5)
    label = np.where(paired, swapped.astype(np.int64), NO_LABEL)
    first, second = (start, cut - start), (cut, end - cut)
    a = np.where(swapped, second, first)  # [2, B]: where it starts, how long it is
    b = np.where(swapped, first, second)
    batch = _packed(spans, samples, (a[0], a[1]), (b[0], b[1]), cls_id, sep_id)
    return replace(batch, epoch=epoch, targets={**batch.targets, "next_sentence": label})


def text_batch(spans: Spans, samples: Ints, *, epoch: int, cls_id: int, sep_id: int) -> Batch:
    """``[CLS] span [SEP]`` in one segment, at most 2 tokens longer than a span.

    Whole sentences of one document (Liu et al. 2019, section 4.2, DOC-SENTENCES), for masked
    words alone. Targets: ``special`` [T]; no ``next_sentence``, because there is no pair.
    """
    start, end = spans.units[spans.first[samples]], spans.units[spans.last[samples]]
    nothing = np.zeros_like(start)
    batch = _packed(spans, samples, (start, end - start), (start, nothing), cls_id, sep_id)
    return replace(batch, epoch=epoch)


def _packed(
    spans: Spans,
    samples: Ints,
    a: tuple[Ints, Ints],
    b: tuple[Ints, Ints],
    cls_id: int,
    sep_id: int,
) -> Batch:
    """Sequences of segments A and B, each given by where it starts and how long it is, [B].

    A segment B of length 0 is left out with its [SEP].
    """
    (a_start, a_length), (b_start, b_length) = a, b
    lengths = a_length + b_length + 2 + (b_length > 0)
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
    return Batch(
        input_ids, token_type_ids, lengths, np.asarray(samples), targets={"special": special}
    )


def _cut(spans: Spans, samples: Ints, epoch: int, seed: int) -> Ints:
    """The token at which each span is cut in two; its end where it cannot be."""
    parts = spans.last[samples] - spans.first[samples]
    draw = uniform(_SPLIT, seed, epoch, samples)
    step = np.where(parts > 1, 1 + (draw * (parts - 1)).astype(np.int64), parts)
    return spans.units[spans.first[samples] + step]
