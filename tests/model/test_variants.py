"""What families add to the blocks: rotary positions, windows, gates, pre-norm, summaries."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from bert.model.attention import MultiHeadAttention, rotation
from bert.model.embeddings import BertEmbeddings
from bert.model.encoder import BERT
from bert.model.heads import BertForReplacedTokenDetection
from bert.model.layer import PositionwiseFeedForward, TransformerBlock
from bert.model.packing import Packed, pack

H, N, S = 32, 4, 12
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def rows(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, H, generator=torch.Generator().manual_seed(seed))


def attention() -> MultiHeadAttention:
    torch.manual_seed(3)
    return MultiHeadAttention(H, N).eval()


@given(st.integers(-50, 400))
@settings(deadline=None, max_examples=20)
def test_rotary_attention_knows_distances_only(shift: int) -> None:
    block, hidden, places = attention(), rows(S)[None], torch.arange(S)
    here = block(hidden, positions=rotation(places, H // N, 10000.0))
    there = block(hidden, positions=rotation(places + shift, H // N, 10000.0))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(here, block(hidden), atol=1e-2)


def test_rotation_turns_a_pair_by_its_angle() -> None:
    turn = rotation(torch.tensor([3]), 4, 100.0)  # rates 1 and 1/10
    angles = torch.tensor([[3.0, 0.3, 3.0, 0.3]])
    torch.testing.assert_close(turn, torch.stack((angles.cos(), angles.sin())))


@given(LENGTHS, st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_a_window_is_the_dense_mask_of_near_places(lengths: list[int], window: int) -> None:
    packed = Packed.of(tuple(lengths))
    places = (
        torch.cat([torch.arange(n) for n in lengths]) if sum(lengths) else torch.zeros(0).long()
    )
    block, hidden = attention(), rows(sum(lengths))
    near = block(hidden, packed.within(places, window))
    for sequence, result in zip(hidden.split(lengths), near.split(lengths), strict=True):
        step = torch.arange(len(sequence))
        seen = (step[:, None] - step[None, :]).abs() <= window
        if len(sequence):
            expected = block(sequence[None], seen[None])[0]
            torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@given(LENGTHS)
@settings(deadline=None, max_examples=40)
def test_summaries_of_sequences(lengths: list[int]) -> None:
    packed, hidden = Packed.of(tuple(lengths)), rows(sum(lengths))
    parts = hidden.split(lengths)
    means = torch.stack([part.mean(0) if len(part) else torch.zeros(H) for part in parts])
    torch.testing.assert_close(packed.mean(hidden), means)
    firsts = torch.stack([part[0] if len(part) else torch.zeros(H) for part in parts])
    assert torch.equal(packed.first(hidden), firsts)


@given(st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=5), st.integers(0, 4))
@settings(deadline=None, max_examples=60)
def test_counted_positions_pass_over_padding(texts: list[list[int]], pad: int) -> None:
    packed = Packed.of(tuple(map(len, texts)))
    ids = torch.tensor([number for text in texts for number in text], dtype=torch.long)
    expected = []
    for text in texts:
        count = 0
        for number in text:
            count += number != pad
            expected.append(pad if number == pad else pad + count)
    assert packed.counted(ids, pad).tolist() == expected


def test_gated_feed_forward_is_the_formula() -> None:
    block = PositionwiseFeedForward(H, 20, gated=True, bias=False).eval()
    x = rows(5)
    first, gate = (part @ x.T for part in block.intermediate.weight.chunk(2))
    expected = block.output.weight @ (F.gelu(first) * gate)
    torch.testing.assert_close(block(x), expected.T)
    assert block.output.bias is None


def test_pre_norm_block_adds_to_what_it_was_given() -> None:
    block = TransformerBlock(H, N, 48, norm_first=True).eval()
    x = rows(S)[None]
    middle = x + block.attention(block.attention_norm(x))
    expected = middle + block.feed_forward(block.feed_forward_norm(middle))
    torch.testing.assert_close(block(x), expected)


def test_shared_layers_are_one_used_often() -> None:
    shared = BERT(vocab_size=20, hidden_size=H, num_attention_heads=N, intermediate_size=48,
                  num_hidden_layers=3, shared_layers=True).eval()  # fmt: skip
    assert len(shared.layers) == 1
    ids = torch.randint(0, 20, (2, 6))
    tokens, _ = pack(ids, None, None)
    hidden = shared.embeddings(tokens.input_ids, tokens.token_type_ids, tokens.position_ids)
    for _ in range(3):
        hidden = shared.layers[0](hidden, tokens.packed)
    torch.testing.assert_close(shared(ids).flatten(0, 1), hidden)


def test_narrow_embeddings_are_projected() -> None:
    narrow = BertEmbeddings(20, H, 16, 0, embedding_size=8, positions="none").eval()
    ids = torch.tensor([[3, 4]])
    expected = narrow.project(narrow.norm(narrow.word(ids)))
    torch.testing.assert_close(narrow(ids), expected)
    assert narrow.position is None
    assert narrow.segment is None


def test_one_segment_takes_every_token_as_of_the_first() -> None:
    table = BertEmbeddings(20, H, 16, 1).eval()
    ids = torch.tensor([[3, 4]])
    assert torch.equal(table(ids), table(ids, torch.ones_like(ids)))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_without_a_pooler_the_summary_stands_for_the_sequence(pooling: str) -> None:
    bare = BERT(vocab_size=20, hidden_size=H, num_attention_heads=N, intermediate_size=48,
                num_hidden_layers=1, pooler=False, pooling=pooling).eval()  # fmt: skip
    tokens, _ = pack(torch.randint(0, 20, (2, 6)), None, None)
    hidden = bare.encode(tokens)
    rows_of = hidden.view(2, 6, H)
    expected = rows_of[:, 0] if pooling == "first" else rows_of.mean(1)
    torch.testing.assert_close(bare.pool(hidden, tokens), expected)


def test_replaced_token_detection_gives_one_number_a_token() -> None:
    torch.manual_seed(0)
    head = BertForReplacedTokenDetection(
        BERT(vocab_size=20, hidden_size=H, num_attention_heads=N, num_hidden_layers=1)
    ).eval()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    found = head(torch.randint(0, 20, (2, 3)), None, mask)
    assert found.shape == (2, 3)
    assert not found[mask == 0].any()
    assert found[mask == 1].all()


@given(LENGTHS)
@settings(deadline=None, max_examples=40)
def test_gradients_of_packed_attention_are_those_of_each_sequence(lengths: list[int]) -> None:
    block, weight = attention(), rows(sum(lengths), seed=2)
    packed_in, single_in = (rows(sum(lengths)).requires_grad_() for _ in range(2))
    (block(packed_in, Packed.of(tuple(lengths))) * weight).sum().backward()
    for start, length in zip(torch.tensor([0, *lengths]).cumsum(0).tolist(), lengths, strict=False):
        part = slice(start, start + length)
        if length:
            (block(single_in[None, part])[0] * weight[part]).sum().backward()
    if sum(lengths):
        assert packed_in.grad is not None
        assert single_in.grad is not None
        torch.testing.assert_close(packed_in.grad, single_in.grad, atol=1e-5, rtol=1e-4)
