"""Masked words: how many, which, behind what, and their loss."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from bert.data.batches import Batch
from bert.model.encoder import BERT
from bert.model.heads import BertForPreTraining
from bert.objectives.masking import mask_tokens
from bert.objectives.mlm import MaskedLM
from bert.objectives.objective import Objective
from bert.objectives.pairs import NextSentence

MASK, VOCABULARY = 4, 1000


def plain_batch(lengths: list[int], seed: int = 0, epoch: int = 0) -> Batch:
    """Sequences of random words, special tokens at both ends and here and there."""
    draw = np.random.default_rng(seed)
    total = sum(lengths)
    special = (draw.random(total) < 0.1).astype(np.int64)
    ends = np.cumsum(lengths)
    special[ends - 1] = special[ends - lengths] = 1
    return Batch(
        np.where(special == 1, 2, draw.integers(5, VOCABULARY, total)),
        np.zeros(total, dtype=np.int64),
        np.array(lengths),
        draw.permutation(len(lengths)) + 100,
        epoch,
        {"special": special, "next_sentence": draw.integers(0, 2, len(lengths))},
    )


def masked(batch: Batch, rate: float = 0.15, seed: int = 1) -> Batch:
    return mask_tokens(batch, rate=rate, seed=seed, mask_id=MASK, vocab_size=VOCABULARY)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.floats(0.01, 0.99),
    st.integers(0, 100),
)
def test_as_many_as_wanted_and_never_a_special_one(
    lengths: list[int], rate: float, seed: int
) -> None:
    batch = plain_batch(lengths, seed)
    original = batch.input_ids.copy()
    result = masked(batch, rate, seed)
    places, words = result.targets["masked_places"], result.targets["masked_words"]
    assert batch.input_ids.tolist() == original.tolist()  # the batch given is left alone
    assert (np.diff(places) > 0).all()
    assert (batch.targets["special"][places] == 0).all()
    assert words.tolist() == original[places].tolist()
    untouched = np.ones(len(original), dtype=bool)
    untouched[places] = False
    assert result.input_ids[untouched].tolist() == original[untouched].tolist()
    end = 0
    for length in lengths:
        start, end = end, end + length
        free = int((batch.targets["special"][start:end] == 0).sum())
        expected = min(max(1, round(free * rate)), free)
        assert int(((places >= start) & (places < end)).sum()) == expected


def test_eighty_ten_ten() -> None:
    batch = plain_batch([128] * 2000)
    result = masked(batch)
    places, words = result.targets["masked_places"], result.targets["masked_words"]
    now = result.input_ids[places]
    n = len(places)
    assert n > 20_000
    assert abs((now == MASK).mean() - 0.8) < 0.01
    assert abs((now == words).mean() - 0.1) < 0.01
    other = now[(now != MASK) & (now != words)]
    assert abs(len(other) / n - 0.1) < 0.01
    # Random words are spread over the vocabulary.
    assert len(np.unique(other)) > 0.8 * VOCABULARY
    assert abs(other.mean() - VOCABULARY / 2) < 30
    # Every place is chosen alike: no first or last place is preferred.
    place = batch.position_ids[places]
    counts = np.bincount(place, minlength=128)[1:127]
    assert counts.min() > 0.7 * counts.mean()
    assert counts.max() < 1.3 * counts.mean()


def test_anew_each_epoch_and_seed() -> None:
    batch = plain_batch([128] * 50)
    first = masked(batch)
    for other in (masked(replace(batch, epoch=1)), masked(batch, seed=2)):
        common = np.intersect1d(first.targets["masked_places"], other.targets["masked_places"])
        assert len(common) / len(first.targets["masked_places"]) < 0.25  # by chance 0.15
    assert masked(batch).input_ids.tolist() == first.input_ids.tolist()


def test_a_sample_is_masked_alike_in_every_batch() -> None:
    lengths = [20, 7, 45, 33]
    batch = plain_batch(lengths)
    whole = masked(batch)
    cuts = np.cumsum(lengths)[:-1]
    for i, length in enumerate(lengths):
        alone = masked(
            Batch(
                np.split(batch.input_ids, cuts)[i],
                np.split(batch.token_type_ids, cuts)[i],
                np.array([length]),
                batch.samples[[i]],
                0,
                {"special": np.split(batch.targets["special"], cuts)[i]},
            )
        )
        assert alone.input_ids.tolist() == np.split(whole.input_ids, cuts)[i].tolist()


def test_loss_is_cross_entropy_of_the_full_logits() -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(
        BERT(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
    ).eval()
    lengths = [20, 7, 45, 33]
    objective = Objective([MaskedLM(MASK, VOCABULARY, 1), NextSentence()])
    batch = objective.prepare(plain_batch(lengths))
    batch.targets["next_sentence"][1] = -100
    places = batch.targets["masked_places"]
    assert objective.counts(batch) == {"mlm": len(places), "nsp": 3}
    assert objective.tokens(batch) == sum(lengths)
    outcome = objective.losses(model, batch, torch.device("cpu"))

    ids = torch.zeros(4, 45, dtype=torch.long)
    labels = torch.full((4, 45), -100)
    mask = torch.zeros(4, 45, dtype=torch.long)
    flat = np.full(sum(lengths), -100)
    flat[places] = batch.targets["masked_words"]
    for i, (row, answer) in enumerate(
        zip(*(np.split(x, np.cumsum(lengths)[:-1]) for x in (batch.input_ids, flat)), strict=True)
    ):
        ids[i, : len(row)] = torch.as_tensor(row)
        labels[i, : len(row)] = torch.as_tensor(answer)
        mask[i, : len(row)] = 1
    logits = model(ids, None, mask)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(outcome.losses["mlm"], expected, atol=1e-3, rtol=1e-5)
    right = (logits.argmax(-1) == labels).sum()
    assert int(outcome.correct["mlm"]) == int(right)
    pooled = torch.tanh(model.bert.pooler(model.bert(ids, None, mask)[:, 0]))
    follows = F.cross_entropy(
        model.next_sentence(pooled),
        torch.as_tensor(batch.targets["next_sentence"]),
        reduction="sum",
    )
    torch.testing.assert_close(outcome.losses["nsp"], follows, atol=1e-4, rtol=1e-5)
    assert int(outcome.correct["nsp"]) <= 3
