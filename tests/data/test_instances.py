"""Spans and sentence pairs, on corpora whose every token is another number."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from bert.data.batches import Batch, ranges
from bert.data.instances import (
    NO_LABEL,
    Spans,
    cut_spans,
    ordered_batch,
    pair_batch,
    split_held_out,
    text_batch,
)
from bert.data.shards import Shards
from bert.errors import DataError

CLS, SEP, FIRST = 1, 2, 10  # token t of the corpus is the number t + FIRST


def corpus(documents: list[list[int]]) -> Shards:
    """A corpus from the lengths of its documents' sentences."""
    lengths = [length for document in documents for length in document]
    return Shards(
        Path(),
        np.arange(sum(lengths)) + FIRST,
        np.cumsum([0, *lengths]),
        np.cumsum([0, *map(len, documents)]),
    )


def random_corpus(documents: int, sentences: int, seed: int = 0) -> Shards:
    draw = np.random.default_rng(seed)
    return corpus([draw.integers(3, 13, sentences).tolist() for _ in range(documents)])


def everything(shards: Shards, room: int) -> Spans:
    return cut_spans(shards, room, np.arange(len(shards.document_starts) - 1))


def pairs(spans: Spans, samples: object, room: int, epoch: int = 0, seed: int = 1) -> Batch:
    return pair_batch(
        spans, np.asarray(samples), epoch=epoch, seed=seed, room=room, cls_id=CLS, sep_id=SEP
    )


def ordered(spans: Spans, samples: object, epoch: int = 0, seed: int = 1) -> Batch:
    return ordered_batch(spans, np.asarray(samples), epoch=epoch, seed=seed, cls_id=CLS, sep_id=SEP)


def sequences(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    """Numbers, segments and special marks of each sequence."""
    cuts = np.cumsum(batch.lengths)[:-1]
    arrays = (batch.input_ids, batch.token_type_ids, batch.targets["special"])
    return list(zip(*([a.tolist() for a in np.split(x, cuts)] for x in arrays), strict=True))


def segments(ids: list[int]) -> tuple[list[int], list[int]]:
    """A and B of a sequence, without special tokens."""
    end = ids.index(SEP)
    return ids[1:end], [number for number in ids[end + 1 :] if number != SEP]


corpora = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(corpora, st.integers(5, 40))
def test_spans_cover_every_document_once(documents: list[list[int]], room: int) -> None:
    shards = corpus(documents)
    spans = everything(shards, room)
    starts, ends = spans.units[spans.first], spans.units[spans.last]
    assert ((ends - starts) <= room).all()
    assert ((ends - starts) > 0).all()
    covered = ranges(starts, ends - starts)
    assert covered.tolist() == list(range(len(shards.tokens)))
    assert spans.token_count() == len(shards.tokens)
    bounds = np.cumsum([0, *map(sum, documents)])
    for start, end, limit in zip(starts, ends, spans.limit, strict=True):
        document = np.searchsorted(bounds, start, side="right") - 1
        assert bounds[document] <= start < end <= bounds[document + 1] == limit
    # Long sentences are cut; nothing else is.
    assert np.diff(spans.units).max() <= max(room // 2, 1)
    extra = set(spans.units.tolist()) - set(shards.sentence_starts.tolist())
    long = shards.sentence_starts[:-1][np.diff(shards.sentence_starts) > max(room // 2, 1)]
    if not len(long):
        assert not extra


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(5, 40), st.integers(0, 3), st.integers(0, 3))
def test_pairs_are_as_they_say(
    documents: list[list[int]], room: int, epoch: int, seed: int
) -> None:
    shards = corpus(documents)
    spans = everything(shards, room)
    batch = pairs(spans, np.arange(len(spans)), room, epoch, seed)
    bounds = np.cumsum([0, *map(sum, documents)]) + FIRST
    cuttable = spans.last - spans.first > 1
    label = batch.targets["next_sentence"]
    assert (label == NO_LABEL).tolist() == (~cuttable).tolist()
    different = int((label == 1).sum())
    if cuttable.sum() > 1:
        assert abs(different - cuttable.sum() / 2) <= 1
    assert (batch.lengths <= room + 3).all()

    b_starts = []
    for i, (ids, types, special) in enumerate(sequences(batch)):
        a, b = segments(ids)
        start, end = int(spans.units[spans.first[i]]), int(spans.units[spans.last[i]])
        assert a == list(range(start + FIRST, start + FIRST + len(a)))
        assert 0 < len(a) <= end - start
        if not cuttable[i]:
            assert ids == [CLS, *a, SEP]
            assert types == [0] * len(ids)
            assert special == [1, *[0] * len(a), 1]
            assert len(a) == end - start
            continue
        assert ids == [CLS, *a, SEP, *b, SEP]
        assert types == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert special == [1, *[0] * len(a), 1, *[0] * len(b), 1]
        assert len(a) < end - start
        # B is running text of one document, as long as there is room or text.
        assert b == list(range(b[0], b[0] + len(b)))
        limit = bounds[np.searchsorted(bounds, b[0], side="right")]
        assert b[-1] < limit
        assert len(a) + len(b) == room or b[-1] == limit - 1
        b_starts.append(b[0] - FIRST)
        if label[i] == 0:
            assert b[0] == a[-1] + 1
        else:
            assert b[0] != a[-1] + 1
            source = int(np.searchsorted(spans.units[spans.last], b[0] - FIRST, side="right"))
            partner_a, _ = segments(sequences(batch)[source][0])
            assert source != i
            assert b[0] == partner_a[-1] + 1  # what would have followed the partner's A
    assert len(set(b_starts)) == len(b_starts)  # no second part is used twice


def test_exactly_half_are_exchanged_in_every_epoch() -> None:
    for documents in range(3, 12):
        spans = everything(random_corpus(documents, 20), 40)
        n = int((spans.last - spans.first > 1).sum())
        for epoch in range(4):
            label = pairs(spans, np.arange(len(spans)), 40, epoch).targets["next_sentence"]
            assert abs(int((label == 1).sum()) - n / 2) <= 1


def test_a_sample_is_the_same_in_every_batch() -> None:
    spans = everything(random_corpus(10, 30), 40)
    whole = pairs(spans, np.arange(len(spans)), 40, epoch=2)
    everyone = sequences(whole)
    order = np.random.default_rng(1).permutation(len(spans))
    for samples in (order, order[:1], order[3:10], np.array([5, 5])):
        batch = pairs(spans, samples, 40, epoch=2)
        assert sequences(batch) == [everyone[i] for i in samples]
        assert (
            batch.targets["next_sentence"].tolist()
            == whole.targets["next_sentence"][samples].tolist()
        )
        assert batch.samples.tolist() == samples.tolist()


def test_another_epoch_or_seed_is_another_draw() -> None:
    spans = everything(random_corpus(20, 40), 60)
    samples = np.arange(len(spans))
    first = pairs(spans, samples, 60)
    for other in (pairs(spans, samples, 60, epoch=1), pairs(spans, samples, 60, seed=2)):
        mine, new = sequences(first), sequences(other)
        moved = [segments(a[0])[0] != segments(b[0])[0] for a, b in zip(mine, new, strict=True)]
        assert np.mean(moved) > 0.5  # six or so sentences a span: five places to cut
        assert (first.targets["next_sentence"] != other.targets["next_sentence"]).mean() > 0.3


def test_every_cut_is_equally_likely() -> None:
    spans = everything(corpus([[5] * 5] * 4), 25)  # one span of five sentences a document
    assert len(spans) == 4
    cuts = [
        len(segments(ids)[0]) // 5
        for epoch in range(500)
        for ids, _, _ in sequences(pairs(spans, np.arange(4), 25, epoch))
    ]
    counts = np.bincount(cuts, minlength=6)
    assert counts[0] == counts[5] == 0
    assert (abs(counts[1:5] - 500) < 100).all()


def test_length_does_not_give_the_answer_away() -> None:
    spans = everything(random_corpus(30, 300), 60)
    totals, a_lengths, labels = [], [], []
    for epoch in range(4):
        batch = pairs(spans, np.arange(len(spans)), 60, epoch)
        label = batch.targets["next_sentence"]
        kept = label != NO_LABEL
        totals.append(batch.lengths[kept])
        a_lengths.append(np.array([len(segments(ids)[0]) for ids, _, _ in sequences(batch)])[kept])
        labels.append(label[kept])
    total, a_length, label = (np.concatenate(x) for x in (totals, a_lengths, labels))
    true, false = total[label == 0], total[label == 1]
    assert abs(true.mean() - false.mean()) < 0.5  # of 63 tokens
    for values in (total, a_length, total - a_length):
        # The best guess from a length alone: Kolmogorov-Smirnov distance, 0.5 + D / 2 right.
        grid = np.arange(70)
        share = [np.searchsorted(np.sort(values[label == k]), grid) for k in (0, 1)]
        distance = abs(share[0] / len(true) - share[1] / len(false)).max()
        assert distance < 0.05


def test_held_out_documents_are_others() -> None:
    shards = random_corpus(200, 10)
    train, held_out = split_held_out(shards, 40, 0.1, seed=1)
    bounds = shards.sentence_starts[shards.document_starts]

    def of(spans: Spans) -> set[int]:
        return set((np.searchsorted(bounds, spans.units[spans.first], side="right") - 1).tolist())

    assert not of(train) & of(held_out)
    assert of(train) | of(held_out) == set(range(200))
    assert 8 <= len(of(held_out)) <= 35
    again, again_out = split_held_out(shards, 40, 0.1, seed=1)
    assert again.first.tolist() == train.first.tolist()
    assert again_out.first.tolist() == held_out.first.tolist()
    assert of(split_held_out(shards, 40, 0.1, seed=2)[1]) != of(held_out)
    # Pairs of one part use no text of the other.
    batch = pairs(held_out, np.arange(len(held_out)), 40)
    tokens = set(batch.input_ids[batch.targets["special"] == 0].tolist())
    for document in of(train):
        assert not tokens & set(range(bounds[document] + FIRST, bounds[document + 1] + FIRST))


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_two_documents_are_one_each(share: float) -> None:
    train, held_out = split_held_out(random_corpus(2, 10), 40, share, seed=3)
    assert len(train)
    assert len(held_out)


def test_a_single_document_keeps_its_end_back() -> None:
    shards = random_corpus(1, 400)
    train, held_out = split_held_out(shards, 40, 0.1, seed=1)
    assert train.units[train.last].max() == held_out.units[held_out.first].min()
    assert 0.05 < held_out.token_count() / len(shards.tokens) < 0.2
    assert train.token_count() + held_out.token_count() == len(shards.tokens)
    batch = pairs(train, np.arange(len(train)), 40)
    seen = batch.input_ids[batch.targets["special"] == 0]
    assert seen.max() - FIRST < held_out.units[held_out.first].min()  # no held-out text


def test_too_little_text() -> None:
    with pytest.raises(DataError) as caught:
        split_held_out(corpus([[4]]), 40, 0.1, seed=1)
    assert caught.value.exit_code == 3
    assert caught.value.fix


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(5, 40), st.integers(0, 3), st.integers(0, 3))
def test_ordered_pairs_are_the_parts_of_a_span(
    documents: list[list[int]], room: int, epoch: int, seed: int
) -> None:
    spans = everything(corpus(documents), room)
    batch = ordered(spans, np.arange(len(spans)), epoch, seed)
    label = batch.targets["next_sentence"]
    assert (label == NO_LABEL).tolist() == (spans.last - spans.first == 1).tolist()
    assert (batch.lengths <= room + 3).all()
    for i, (ids, types, special) in enumerate(sequences(batch)):
        text = list(range(spans.units[spans.first[i]], spans.units[spans.last[i]]))
        a, b = segments(ids)
        if label[i] == NO_LABEL:
            assert ids == [CLS, *a, SEP]
            assert special == [1, *[0] * len(a), 1]
        else:
            assert a
            assert b
            assert ids == [CLS, *a, SEP, *b, SEP]
            assert types == [0] * (len(a) + 2) + [1] * (len(b) + 1)
            assert special == [1, *[0] * len(a), 1, *[0] * len(b), 1]
        # Nothing is added, nothing lost.
        whole = b + a if label[i] == 1 else a + b
        assert [number - FIRST for number in whole] == text


def test_half_of_the_ordered_pairs_are_swapped_anew_each_epoch() -> None:
    spans = everything(random_corpus(60, 60), 40)
    everyone = [
        ordered(spans, np.arange(len(spans)), epoch).targets["next_sentence"] for epoch in range(4)
    ]
    kept = everyone[0] != NO_LABEL
    for labels in everyone:
        assert abs(labels[kept].mean() - 0.5) < 0.06
    assert 0.4 < (everyone[0] != everyone[1])[kept].mean() < 0.6
    order = np.random.default_rng(1).permutation(len(spans))
    whole = sequences(ordered(spans, np.arange(len(spans))))
    assert sequences(ordered(spans, order[:7])) == [whole[i] for i in order[:7]]


def test_length_does_not_give_the_order_away() -> None:
    # Some sentences are long, some longer than half a sequence, which is then cut.
    draw = np.random.default_rng(0)
    documents = [(3 + draw.exponential(12, 300)).astype(int).tolist() for _ in range(40)]
    spans = everything(corpus(documents), 60)
    batches = [ordered(spans, np.arange(len(spans)), epoch) for epoch in range(6)]
    label = np.concatenate([batch.targets["next_sentence"] for batch in batches])
    parts = [segments(ids) for batch in batches for ids, _, _ in sequences(batch)]
    a_length, b_length = (np.array([len(pair[i]) for pair in parts]) for i in (0, 1))
    for values in (a_length, b_length, a_length + b_length):
        grid = np.arange(values.max() + 1)
        shares = [
            np.searchsorted(np.sort(values[label == side]), grid, side="right")
            / (label == side).sum()
            for side in (0, 1)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 0.05


def test_running_text_is_the_span_alone() -> None:
    spans = everything(random_corpus(5, 30), 40)
    samples = np.array([3, 0, len(spans) - 1])
    batch = text_batch(spans, samples, epoch=2, cls_id=CLS, sep_id=SEP)
    assert set(batch.targets) == {"special"}
    assert (batch.epoch, batch.samples.tolist()) == (2, samples.tolist())
    for sample, (ids, types, special) in zip(samples, sequences(batch), strict=True):
        text = range(spans.units[spans.first[sample]], spans.units[spans.last[sample]])
        assert ids == [CLS, *(number + FIRST for number in text), SEP]
        assert types == [0] * len(ids)
        assert special == [1, *[0] * len(text), 1]
    assert (batch.lengths <= 42).all()
