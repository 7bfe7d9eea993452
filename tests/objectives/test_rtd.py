"""Replaced token detection: what is shared, what is drawn, and that transformers agrees."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bert.checkpoint import Checkpoint, write_model
from bert.data.batches import Batch, pack_sequences
from bert.errors import ModelError
from bert.families.family import load_family
from bert.model.config import BertConfig
from bert.objectives.mlm import MaskedLM
from bert.objectives.rtd import (
    Electra,
    ReplacedTokens,
    SharedEmbedding,
    draw_words,
    generator_config,
    new_electra,
)

CPU = torch.device("cpu")
V, MASK = 40, 4
CONFIG = BertConfig(
    vocab_size=V,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=24,
    embedding_size=20,
    dropout_rate=0.0,
    initializer_range=0.3,
)
OBJECTIVE = ReplacedTokens(MaskedLM(MASK, V, 1, 0.3, only_mask=True))


def batch(count: int = 6, seed: int = 0) -> Batch:
    draw = np.random.default_rng(seed)
    rows = [[1, *draw.integers(5, V, draw.integers(1, 20)), 2] for _ in range(count)]
    result = pack_sequences(rows, [[0] * len(row) for row in rows], np.arange(count) + 10)
    result.targets["special"] = np.isin(result.input_ids, [1, 2]).astype(np.int64)
    return result


def electra() -> Electra:
    torch.manual_seed(0)
    return new_electra(CONFIG)


def test_the_generator_is_a_share_of_the_discriminator() -> None:
    sizes = load_family("electra").sizes
    for name, width in (("small", 64), ("large", 256)):  # Clark et al. 2020, table 6
        small = generator_config(sizes[name])
        assert (small.hidden_size, small.num_attention_heads) == (width, width // 64)
        assert small.intermediate_size == 4 * width
        assert small.num_hidden_layers == sizes[name].num_hidden_layers
        assert small.embedding_width == sizes[name].embedding_width
    assert generator_config(sizes["base"], 1 / 3).hidden_size == 256
    assert generator_config(sizes["tiny"]).num_attention_heads == 1


def test_gradients_of_the_two_do_not_mix() -> None:
    model = electra()
    outcome = OBJECTIVE.losses(model, OBJECTIVE.prepare(batch()), CPU)
    outcome.losses["rtd"].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.discriminator.parameters())
    model = electra()
    OBJECTIVE.losses(model, OBJECTIVE.prepare(batch()), CPU).losses["mlm"].backward()
    assert all(p.grad is not None for p in model.generator.parameters())
    assert all(p.grad is None for p in model.discriminator.parameters())


def test_the_discriminator_reads_the_generators_words_and_its_own() -> None:
    model = electra()
    words = model.discriminator.bert.embeddings.word
    assert isinstance(words, SharedEmbedding)
    shared = model.generator.bert.embeddings.word.weight
    assert not words.own.any()
    assert len([name for name, _ in model.named_parameters() if "embeddings.word" in name]) == 2
    assert len([name for name in model.state_dict() if "embeddings.word" in name]) == 2
    ids = torch.tensor([3, 7])
    with torch.no_grad():
        words.own[7] += 1.0
        shared[3] *= 2.0
    torch.testing.assert_close(words(ids), torch.stack([shared[3], shared[7] + 1.0]))
    # A copy is a pair of its own.
    other = copy.deepcopy(model)
    with torch.no_grad():
        shared[3] *= 2.0
    assert not torch.equal(other.discriminator.bert.embeddings.word(ids), words(ids))


def test_a_pair_goes_on_with_the_words_that_each_had() -> None:
    model = electra()
    with torch.no_grad():
        words = model.discriminator.bert.embeddings.word
        assert isinstance(words, SharedEmbedding)
        words.own.normal_()
    generator, discriminator = model.parts()
    tokens = torch.randint(5, V, (2, 9))
    expected = discriminator(tokens)
    torch.testing.assert_close(model.discriminator(tokens), expected)
    again = Electra(generator, discriminator)  # type: ignore[arg-type]
    torch.testing.assert_close(again.discriminator(tokens), expected)
    again_words = again.discriminator.bert.embeddings.word
    assert isinstance(again_words, SharedEmbedding)
    torch.testing.assert_close(again_words.own, words.own, atol=1e-6, rtol=0)


def test_words_of_different_sizes() -> None:
    family = load_family("electra")
    generator = family.build("masked_lm", replace(CONFIG, vocab_size=V + 1))
    with pytest.raises(ModelError, match=r"\[41, 20\].*\[40, 20\]"):
        Electra(generator, family.build("replaced_token", CONFIG))  # type: ignore[arg-type]


def test_draws_follow_the_chances() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -80.0, 1.5]]).repeat(40_000, 1)
    draws = torch.randint(0, 2**24, (40_000,), generator=torch.Generator().manual_seed(1))
    drawn = draw_words(logits, draws)
    shares = torch.bincount(drawn, minlength=5) / 40_000
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.01, rtol=0)
    assert shares[3] == 0
    certain = torch.full((2, 6), -50.0)
    certain[0, 5] = certain[1, 0] = 50.0
    for draw in (0, 2**24 - 1):
        assert draw_words(certain, torch.tensor([draw, draw])).tolist() == [5, 0]
    nothing = draw_words(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))
    assert nothing.shape == (0,)
    broken = draw_words(torch.full((3, 6), float("nan")), torch.tensor([0, 2**23, 2**24 - 1]))
    assert ((broken >= 0) & (broken < 6)).all()


def test_losses_are_what_they_say() -> None:
    model = electra()
    ready = OBJECTIVE.prepare(batch())
    places, words = ready.targets["masked_places"], ready.targets["masked_words"]
    assert set(ready.input_ids[places]) == {MASK}
    assert OBJECTIVE.counts(ready) == {"mlm": len(places), "rtd": len(ready.input_ids)}
    outcome = OBJECTIVE.losses(model, ready, CPU)
    assert dict(outcome.weights) == {"rtd": 50.0}

    generator, discriminator = model.parts()
    total = {"mlm": 0.0, "rtd": 0.0}
    right = 0
    end = 0
    for length in ready.lengths:
        start, end = end, end + int(length)
        mine = (places >= start) & (places < end)
        masked = torch.as_tensor(ready.input_ids[start:end])
        logits = generator(masked[None])[0]
        at = torch.as_tensor(places[mine] - start)
        answers = torch.as_tensor(words[mine])
        total["mlm"] += F.cross_entropy(logits[at], answers, reduction="sum").item()
        drawn = draw_words(logits[at].detach(), torch.as_tensor(ready.targets["draws"][mine]))
        label = torch.zeros(end - start)
        label[at] = (drawn != answers).float()
        found = discriminator(masked.index_copy(0, at, drawn)[None])[0]
        loss = F.binary_cross_entropy_with_logits(found, label, reduction="sum")
        total["rtd"] += loss.item()
        right += int(((found > 0) == (label > 0)).sum())
    for name, value in total.items():
        assert outcome.losses[name].item() == pytest.approx(value, rel=1e-4)
    assert int(outcome.correct["rtd"]) == right


def test_a_word_that_was_guessed_is_not_replaced() -> None:
    model = electra()
    with torch.no_grad():
        model.generator.words.bias[7] = 1e4  # whatever is hidden, it says 7
    rows = [[1, 7, 7, 9, 9, 2]] * 30
    same = pack_sequences(rows, [[0] * 6] * 30, np.arange(30))
    same.targets["special"] = np.isin(same.input_ids, [1, 2]).astype(np.int64)
    ready = OBJECTIVE.prepare(same)
    nine = ready.targets["masked_places"][ready.targets["masked_words"] == 9]
    seen = torch.as_tensor(same.input_ids.copy())
    seen[nine] = 7
    label = torch.zeros(180)
    label[nine] = 1.0
    found = model.parts()[1](seen.view(30, 6))
    expected = F.binary_cross_entropy_with_logits(found.flatten(), label, reduction="sum")
    losses = OBJECTIVE.losses(model, ready, CPU).losses
    assert losses["rtd"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_batch_in_which_nothing_is_hidden() -> None:
    model = electra()
    rows = [[1, 2], [1, 2]]
    empty = pack_sequences(rows, [[0, 0]] * 2, [0, 1])
    empty.targets["special"] = np.ones(4, dtype=np.int64)
    ready = OBJECTIVE.prepare(empty)
    assert OBJECTIVE.counts(ready) == {"mlm": 0, "rtd": 4}
    outcome = OBJECTIVE.losses(model, ready, CPU)
    (outcome.losses["mlm"] + outcome.losses["rtd"]).backward()
    assert outcome.losses["mlm"].item() == 0.0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_both_are_what_transformers_reads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = electra().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    family = load_family("electra")
    tokens = torch.randint(5, V, (3, 11))
    parts = zip(
        model.parts(), ("masked_lm", "replaced_token"), ("MaskedLM", "PreTraining"), strict=True
    )
    for plain, kind, name in parts:
        write_model(tmp_path / kind, Checkpoint(plain, kind, family))
        theirs, told = getattr(transformers, f"ElectraFor{name}").from_pretrained(
            tmp_path / kind, output_loading_info=True
        )
        assert not any(told[reason] for reason in ("missing_keys", "unexpected_keys"))
        with torch.no_grad():
            torch.testing.assert_close(plain(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.discriminator(tokens), plain(tokens))
