"""Masked words: how many, which, behind what, and their loss."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from bert.data.batches import Batch, pack_sequences
from bert.errors import UsageError
from bert.model.encoder import BERT
from bert.model.heads import BertForPreTraining
from bert.objectives.masking import (
    LONGEST_SPAN,
    Words,
    begins_word,
    mask_tokens,
    vocabulary_words,
)
from bert.objectives.mlm import MaskedLM
from bert.objectives.objective import Objective
from bert.objectives.pairs import NextSentence
from bert.text.tokenizer import Tokenizer

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


# Six tokens in ten begin a word.
WORDS = Words(np.arange(VOCABULARY) % 10 < 6)


def masked(batch: Batch, rate: float = 0.15, seed: int = 1, **how: Any) -> Batch:
    return mask_tokens(
        batch, rate=rate, seed=seed, mask_id=MASK, vocab_size=VOCABULARY, words=WORDS, **how
    )


def words_of(batch: Batch) -> list[range]:
    """The places of each word, found by walking along."""
    special, words = batch.targets["special"], []
    for i, (token, place) in enumerate(zip(batch.input_ids, batch.position_ids, strict=True)):
        if special[i]:
            continue
        if place and not special[i - 1] and not WORDS.begins[token]:
            words[-1] = range(words[-1].start, i + 1)
        else:
            words.append(range(i, i + 1))
    return words


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


@pytest.mark.parametrize("kind", ["token", "word", "span"])
def test_a_sample_is_masked_alike_in_every_batch(kind: str) -> None:
    lengths = [20, 7, 45, 33] * 15
    batch = plain_batch(lengths)
    whole = masked(batch, kind=kind)
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
            ),
            kind=kind,
        )
        assert alone.input_ids.tolist() == np.split(whole.input_ids, cuts)[i].tolist()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.floats(0.01, 0.99),
    st.integers(0, 100),
    st.sampled_from(["word", "span"]),
)
def test_words_are_hidden_whole(lengths: list[int], rate: float, seed: int, kind: str) -> None:
    batch = plain_batch(lengths, seed)
    result = masked(batch, rate, seed, kind=kind)
    places = set(result.targets["masked_places"].tolist())
    hidden = [word for word in words_of(batch) if places & set(word)]
    assert sum(map(len, hidden)) == len(places)
    end = 0
    for length in lengths:
        start, end = end, end + length
        there = [len(word) for word in words_of(batch) if start <= word.start < end]
        taken = [len(word) for word in hidden if start <= word.start < end]
        wanted = max(1, round(sum(there) * rate))
        assert bool(taken) == bool(there)  # at least one word
        # One word more or less than what is wanted.
        if len(taken) > 1:
            assert sum(taken) < wanted + max(taken)
        if len(taken) < len(there):
            assert sum(taken) > wanted - max(there)


@pytest.mark.parametrize("kind", ["word", "span"])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_rate_is_right_on_average(kind: str, rate: float) -> None:
    batch = plain_batch([100] * 2000)
    places = masked(batch, rate, kind=kind).targets["masked_places"]
    free = (batch.targets["special"] == 0).sum()
    assert abs(len(places) / free - rate) < 0.002


def test_long_words_and_short_ones_alike() -> None:
    batch = plain_batch([100] * 3000)
    places = set(masked(batch, kind="word").targets["masked_places"].tolist())
    words = words_of(batch)
    for length in (1, 2, 3):
        chosen = [word.start in places for word in words if len(word) == length]
        assert abs(np.mean(chosen) - 0.15) < 0.02


def test_spans_are_runs_of_words() -> None:
    lengths = [200] * 2000
    batch = plain_batch(lengths)
    batch.targets["special"] = (np.isin(batch.position_ids, [0, 80, 199])).astype(np.int64)
    runs: dict[str, list[int]] = {}
    for kind in ("word", "span"):
        places = set(masked(batch, 0.1, kind=kind).targets["masked_places"].tolist())
        runs[kind], last = [], -1
        for word in words_of(batch):
            if word.start not in places:
                continue
            if word.start == last:
                runs[kind][-1] += 1
            else:
                runs[kind].append(1)
            last = word.stop
    # 3.8 words by Joshi et al.; the last one of a sequence is cut, neighbours may touch.
    assert 3.2 < np.mean(runs["span"]) < 4.6
    assert np.mean(runs["word"]) < 1.3
    assert np.mean(np.array(runs["span"]) > LONGEST_SPAN) < 0.05
    assert np.mean(np.array(runs["span"]) == 10) > 0.01


@pytest.mark.parametrize("kind", ["token", "word", "span"])
def test_nothing_to_hide(kind: str) -> None:
    nothing = np.zeros(0, dtype=np.int64)
    empty = Batch(nothing, nothing, nothing, nothing, 0, {"special": nothing})
    assert len(masked(empty, kind=kind).targets["masked_places"]) == 0
    batch = pack_sequences([[1, 2], [1, 7, 2]], [[0, 0], [0, 0, 0]], [3, 4])
    batch.targets["special"] = np.array([1, 1, 1, 0, 1])
    assert masked(batch, kind=kind).targets["masked_places"].tolist() == [3]


def test_kinds_that_cannot_be() -> None:
    batch = plain_batch([10])
    with pytest.raises(UsageError, match="token, word, span"):
        masked(batch, kind="sentence")
    with pytest.raises(UsageError, match="what makes a word"):
        mask_tokens(batch, rate=0.1, seed=1, mask_id=MASK, vocab_size=VOCABULARY, kind="word")


def test_only_mask() -> None:
    batch = plain_batch([60] * 20)
    mixed, only = masked(batch), masked(batch, only_mask=True)
    assert mixed.targets["masked_places"].tolist() == only.targets["masked_places"].tolist()
    assert set(only.input_ids[only.targets["masked_places"]]) == {MASK}
    assert len(set(mixed.input_ids[mixed.targets["masked_places"]])) > 20


def test_the_rate_moves_with_the_training() -> None:
    objective = MaskedLM(MASK, VOCABULARY, 1, 0.3, rate_end=0.15)
    batch = plain_batch([100] * 50)
    free = (batch.targets["special"] == 0).sum()
    for share, rate in ((0.0, 0.3), (0.5, 0.225), (1.0, 0.15)):
        count = objective.count(objective.prepare(replace(batch, share=share)))
        assert count / free == pytest.approx(rate, abs=0.01)


def test_which_tokens_begin_a_word(tokenizer: Tokenizer) -> None:
    begins = begins_word(tokenizer)
    assert begins.shape == (tokenizer.vocab_size,)
    for number, begin in enumerate(begins):
        token = tokenizer.token(number)
        # Chinese characters inside words are marked so too, and begin one all the same.
        assert begin == (not token.startswith("##") or "\u4e00" <= token[-1] <= "\u9fff"), token
    assert not begins.all()


@pytest.mark.parametrize(
    ("kind", "tokens", "expected"),
    [
        ("BPE", ["<s>", "Ġthe", "re", ".", "Ċ"], [True, True, False, False, False]),
        ("Unigram", ["<s>", "▁the", "re", "▁", "天"], [True, True, False, True, True]),
        ("WordPiece", ["<s>", "the", "##re", "天", "##天"], [True, True, False, True, True]),
    ],
)
def test_marks_of_words_by_kind_of_model(
    kind: str, tokens: list[str], expected: list[bool]
) -> None:
    toy: Any = SimpleNamespace(
        vocab_size=len(tokens),
        token=tokens.__getitem__,
        special_tokens={"cls_token": "<s>"},
        backend=SimpleNamespace(model=type(kind, (), {})()),
    )
    assert begins_word(toy).tolist() == expected


CHINESE = "我们去北京大学很好"


def chinese(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> Words:
    """Words of a toy vocabulary, cut by a stand-in that knows two of them."""

    def cut(text: str) -> list[str]:
        for word in ("北京大学", "我们"):
            text = text.replace(word, f"|{word}|")
        parts = [part for part in text.split("|") if part]
        known = {"北京大学", "我们"}
        return [x for part in parts for x in ([part] if part in known else part)]

    monkeypatch.setitem(sys.modules, "rjieba", SimpleNamespace(cut=cut))
    return vocabulary_words(tokenizer, chinese_words=True)


def toy_chinese() -> Any:
    tokens = ["[PAD]", "[CLS]", "[SEP]", "the", "##re", *CHINESE]
    return SimpleNamespace(
        vocab_size=len(tokens),
        token=tokens.__getitem__,
        special_tokens={"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
        backend=SimpleNamespace(model=type("WordPiece", (), {})()),
    )


def test_chinese_characters_are_joined_to_words(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = toy_chinese()
    words = chinese(monkeypatch, toy)
    number = {toy.token(i): i for i in range(toy.vocab_size)}
    texts = ["我们 the ##re 去 北 京 大 学".replace("我们", "我 们"), "们 北 京", "大 学 我 们"]
    rows = [[1, *(number[token] for token in text.split()), 2] for text in texts]
    batch = pack_sequences(rows, [[0] * len(row) for row in rows], [0, 1, 2])
    starts = words.starts(batch)
    shown = "".join(
        "|" * bool(s) + toy.token(i) for s, i in zip(starts, batch.input_ids, strict=True)
    )
    assert shown == (
        "|[CLS]|我们|the##re|去|北京大学|[SEP]"
        "|[CLS]|们|北|京|[SEP]"  # no word goes from one sequence into the next
        "|[CLS]|大|学|我们|[SEP]"
    )
    alone = vocabulary_words(toy).starts(batch)
    assert (alone | starts).tolist() == alone.tolist()
    assert alone.sum() == starts.sum() + 5


def test_chinese_words_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(UsageError) as caught:
        vocabulary_words(toy_chinese(), chinese_words=True)
    assert caught.value.fix == 'pip install "bertsmith[chinese]"'


def test_chinese_words_of_rjieba() -> None:
    pytest.importorskip("rjieba")
    words = vocabulary_words(toy_chinese(), chinese_words=True)
    rows = [[1, *range(5, 5 + len(CHINESE)), 2]]
    starts = words.starts(pack_sequences(rows, [[0] * len(rows[0])], [0]))
    assert starts[1 : 1 + len(CHINESE)].tolist() == [c in "我去北很好" for c in CHINESE]


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
