"""The network's public contract, and its blocks against independent implementations."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from bert.errors import ModelError
from bert.model.attention import PLAIN_LONGEST, MultiHeadAttention
from bert.model.config import BertConfig
from bert.model.embeddings import BertEmbeddings, sinusoids
from bert.model.encoder import BERT
from bert.model.heads import (
    HEADS,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bert.model.layer import LayerNorm, PositionwiseFeedForward, TransformerBlock
from bert.model.packing import Packed, pack

V, H, N, S = 50, 32, 4, 12
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": H,
    "num_hidden_layers": 2,
    "num_attention_heads": N,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


def encoder(**changes: Any) -> BERT:
    torch.manual_seed(0)
    # Weights larger than at the start of training, so that mistakes show.
    return BERT(**{**SIZES, "initializer_range": 0.2, **changes}).eval()


ENCODER = encoder()
IDS = torch.randint(0, V, (3, S), generator=torch.Generator().manual_seed(1))
TYPES = (torch.arange(S) > 5).long().expand(3, S)
MASK = torch.ones_like(IDS)


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "inner", "count"),
    [(12, 768, 12, 3072, 109_482_240), (24, 1024, 16, 4096, 335_141_888)],
)
def test_parameter_counts_are_those_of_the_paper(
    layers: int, hidden: int, heads: int, inner: int, count: int
) -> None:
    with torch.device("meta"):
        model = BERT(
            vocab_size=30522,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
        )
    assert sum(p.numel() for p in model.parameters()) == count


def test_defaults_are_bert_base() -> None:
    config = BertConfig()
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (
        12,
        768,
        12,
    )
    assert (config.intermediate_size, config.vocab_size) == (3072, 30522)


def test_config_and_keyword_arguments_build_the_same() -> None:
    torch.manual_seed(3)
    one = BERT(BertConfig(**SIZES))
    torch.manual_seed(3)
    other = BERT(**SIZES)
    assert one.config == other.config
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert BERT(BertConfig(**SIZES), num_hidden_layers=1).config.num_hidden_layers == 1
    with pytest.raises(ModelError):
        BERT(30522)  # type: ignore[arg-type]


def test_arguments_may_be_positional() -> None:
    assert ENCODER(IDS, TYPES, MASK).shape == (3, S, H)
    assert torch.equal(ENCODER(IDS), ENCODER(IDS, torch.zeros_like(IDS), MASK))
    assert not torch.allclose(ENCODER(IDS, TYPES, MASK), ENCODER(IDS, None, MASK))


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (BertForMaskedLM(ENCODER, V, H), (3, S, V)),
        (BertForMaskedLM(ENCODER, vocab_size=V, hidden_size=H), (3, S, V)),
        (BertForMaskedLM(ENCODER), (3, S, V)),
        (BertForPreTraining(ENCODER), (3, S, V)),
        (BertForNextSentencePrediction(ENCODER), (3, 2)),
        (BertForSequenceClassification(ENCODER, num_labels=5, hidden_size=H), (3, 5)),
        (BertForSequenceClassification(ENCODER), (3, 2)),
        (BertForTokenClassification(ENCODER, 7), (3, S, 7)),
        (BertForQuestionAnswering(ENCODER), (3, S, 2)),
    ],
)
def test_shapes_of_heads(head: nn.Module, shape: tuple[int, ...]) -> None:
    assert head.eval()(IDS, TYPES, MASK).shape == shape


def test_multiple_choice_takes_choices_and_rows_apart() -> None:
    head = BertForMultipleChoice(ENCODER).eval()
    choices = torch.stack([IDS, IDS.flip(0)], dim=1)  # [3, 2, S]
    scores = head(choices, TYPES[:, None].expand(3, 2, S), torch.ones_like(choices))
    assert scores.shape == (3, 2)
    torch.testing.assert_close(scores[0, 0], scores[2, 1])  # the same text twice
    with pytest.raises(ModelError):
        head(IDS)


def test_next_sentence_logits_of_pretraining_are_those_of_its_head() -> None:
    both = BertForPreTraining(ENCODER).eval()
    single = BertForNextSentencePrediction(ENCODER).eval()
    single.next_sentence.load_state_dict(both.next_sentence.state_dict())
    tokens, _ = pack(IDS, TYPES, MASK)
    hidden = ENCODER.encode(tokens)
    torch.testing.assert_close(both.next_sentence_logits(hidden, tokens), single(IDS, TYPES, MASK))


def test_word_prediction_is_tied_to_the_embedding() -> None:
    model = BertForMaskedLM(encoder())
    ids = IDS.clamp(max=V - 2)  # without the last word
    before = model.eval()(ids)
    with torch.no_grad():
        model.bert.embeddings.word.weight[V - 1] += 1.0
    change = model(ids) - before
    assert (change[..., : V - 1] == 0).all()
    assert (change[..., V - 1] != 0).all()
    names = [name for name, p in model.named_parameters() if p.shape == (V, H)]
    assert names == ["bert.embeddings.word.weight"]


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_wrong_sizes_are_told(kind: str) -> None:
    assert HEADS[kind].kind == kind
    if kind not in ("next_sentence", "replaced_token"):
        with pytest.raises(ModelError, match="64"):
            HEADS[kind](ENCODER, hidden_size=64)
    if kind in ("masked_lm", "pretraining"):
        with pytest.raises(ModelError, match="51"):
            HEADS[kind](ENCODER, vocab_size=V + 1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "inputs",
    [
        (IDS[0],),
        (IDS, TYPES[:, :3]),
        (IDS, TYPES, MASK[:2]),
        (IDS, None, MASK[:, None, :]),
        (IDS[None],),
    ],
)
def test_shapes_that_do_not_agree(inputs: tuple[Tensor, ...]) -> None:
    with pytest.raises(ModelError):
        ENCODER(*inputs)


def test_too_long_is_told_by_every_way_in() -> None:
    long = torch.zeros(2, 17, dtype=torch.long)
    assert ENCODER(long[:, :16]).shape == (2, 16, H)
    with pytest.raises(ModelError, match="17"):
        ENCODER(long)
    with pytest.raises(ModelError, match="17"):
        ENCODER(long, None, (torch.arange(17) < 3).long().expand(2, 17))
    with pytest.raises(ModelError, match="17"):
        ENCODER.embeddings(long)
    for head in (BertForMaskedLM(ENCODER), BertForSequenceClassification(ENCODER)):
        with pytest.raises(ModelError, match="17"):
            head(long)


def test_sinusoidal_positions_are_the_formula_and_stay() -> None:
    embeddings = BertEmbeddings(V, 8, 20, positions="sinusoidal")
    for position in (0, 1, 7, 19):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            found = embeddings.position.weight[position, 2 * i : 2 * i + 2].tolist()
            assert found == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-5)
    model = BERT(**{**SIZES, "positions": "sinusoidal"})
    torch.testing.assert_close(
        model.embeddings.position.weight.detach(), sinusoids(16, H), atol=0, rtol=0
    )
    model(IDS).sum().backward()
    assert not model.embeddings.position.weight.requires_grad
    assert model.embeddings.position.weight.grad is None
    assert model.embeddings.word.weight.grad is not None


def one_by_one(model: BERT, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
    """Every row alone, its real tokens only, through blocks that know no packing."""
    result = torch.zeros(*ids.shape, H)
    for row in range(len(ids)):
        places = mask[row].nonzero().flatten()
        if len(places):
            hidden = model.embeddings(ids[row, places], types[row, places], places)[None]
            for layer in model.layers:
                hidden = layer(hidden)
            result[row, places] = hidden[0]
    return result


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """[B, S] padded right, padded left, or with holes; rows may be empty."""
    rows, length = draw(st.integers(1, 6)), draw(st.integers(1, 16))
    mask = torch.zeros(rows, length, dtype=torch.long)
    for row in range(rows):
        shape, n = draw(st.sampled_from(["right", "left", "holes"])), draw(st.integers(0, length))
        if shape == "right":
            mask[row, :n] = 1
        elif shape == "left":
            mask[row, length - n :] = 1
        else:
            bits = draw(st.integers(0, 2**length - 1))
            mask[row] = torch.tensor([bits >> i & 1 for i in range(length)])
    return mask


@settings(max_examples=60, deadline=None)
@given(masks(), st.integers(0, 2**31), st.sampled_from([torch.long, torch.bool, torch.float32]))
def test_a_padded_batch_is_its_rows_one_by_one(mask: Tensor, seed: int, kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, mask.shape, generator=draw)
    types = torch.randint(0, 2, mask.shape, generator=draw)
    with torch.no_grad():
        found = ENCODER(ids, types, mask.to(kind))
        expected = one_by_one(ENCODER, ids, types, mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        # What stands at padding changes nothing.
        other = ids.masked_fill(mask == 0, 0)
        torch.testing.assert_close(ENCODER(other, types, mask), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("empty_rows", [[1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("kind", ["encoder", *sorted(HEADS)])
def test_rows_of_padding_alone_give_no_nan(kind: str, empty_rows: list[int]) -> None:
    base = encoder().train()
    model: nn.Module = base if kind == "encoder" else HEADS[kind](base)
    mask = MASK.clone()
    mask[empty_rows] = 0
    inputs = [IDS, TYPES, mask]
    if kind == "choice":
        inputs = [x[:, None] for x in inputs]
    output = model(*inputs)
    assert output.isfinite().all()
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_layer_norm_is_that_of_torch() -> None:
    ours, theirs = LayerNorm(H, 1e-5), nn.LayerNorm(H, 1e-5)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, H) * 4 + 1
    torch.testing.assert_close(ours(x), theirs(x))
    y = LayerNorm(H)(x)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones(3, 5), atol=1e-4, rtol=0)


def naive_attention(block: MultiHeadAttention, x: Tensor, visible: Tensor) -> Tensor:
    """One head and one query at a time; visible [B, S, S]."""
    size = H // N
    query, key, value = (x @ block.qkv.weight.T + block.qkv.bias).chunk(3, dim=-1)
    result = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for head in range(N):
            part = slice(head * size, (head + 1) * size)
            for i in range(x.shape[1]):
                seen = visible[b, i].nonzero().flatten()
                scores = key[b, seen, part] @ query[b, i, part] / math.sqrt(size)
                weights = scores.exp() / scores.exp().sum()
                result[b, i, part] = weights @ value[b, seen, part]
    return result @ block.output.weight.T + block.output.bias


def test_attention_is_the_formula() -> None:
    torch.manual_seed(5)
    block = MultiHeadAttention(H, N, dropout_rate=0.0)
    x = torch.randn(2, 7, H)
    keys = torch.tensor([[1, 1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    pairs = torch.rand(2, 7, 7) < 0.5
    pairs |= torch.eye(7, dtype=torch.bool)
    for mask, visible in (
        (None, torch.ones(2, 7, 7)),
        (keys, keys[:, None].expand(2, 7, 7)),
        (keys.bool(), keys[:, None].expand(2, 7, 7)),
        (pairs, pairs),
        (pairs.float(), pairs),
    ):
        expected = naive_attention(block, x, visible)
        torch.testing.assert_close(block(x, mask), expected, atol=1e-5, rtol=0)
    assert block(x, torch.zeros(2, 7)).isfinite().all()
    with pytest.raises(ModelError):
        block(x, torch.ones(2, 1, 7, 7))
    with pytest.raises(ModelError):
        MultiHeadAttention(30, 4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=9))
def test_packed_attention_is_padded_attention(lengths: list[int]) -> None:
    torch.manual_seed(6)
    block = MultiHeadAttention(H, N).eval()
    longest = max(*lengths, 1)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), longest, H)
    packed = block(x[mask], Packed.of(tuple(lengths)))
    assert packed.shape == (sum(lengths), H)
    torch.testing.assert_close(packed, block(x, mask)[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [16, PLAIN_LONGEST + 16])  # both kernels
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_close(length: int, masked: bool) -> None:
    torch.manual_seed(7)
    block = MultiHeadAttention(H, N, dropout_rate=0.0)
    x = torch.randn(2, length, H)
    mask = torch.rand(2, length) < 0.7 if masked else None
    exact = block(x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = block(x, mask)
    assert rough.dtype == torch.bfloat16
    # bf16 keeps 8 bits: 0.4% a rounding, a handful of roundings on values of about 1.
    assert (rough.float() - exact).abs().max() < 0.02
    assert (rough.float() - exact).abs().mean() < 0.004


def test_encoder_in_bf16_is_close() -> None:
    exact = ENCODER(IDS, TYPES, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        rough = ENCODER(IDS, TYPES, MASK).float()
    # Normalised rows of size 1 a value, after two layers of roundings of 0.4%.
    assert (rough - exact).square().mean().sqrt() < 0.02


def test_dropout_acts_in_training_only() -> None:
    model = encoder(dropout_rate=0.5)
    assert torch.equal(model(IDS), model(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))


def test_transformer_block_is_post_norm() -> None:
    block = TransformerBlock(H, N, 48, activation="gelu").eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, H)
    middle = block.attention_norm(x + block.attention(x))
    inner = middle @ block.feed_forward.intermediate.weight.T + block.feed_forward.intermediate.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    outer = inner @ block.feed_forward.output.weight.T + block.feed_forward.output.bias
    torch.testing.assert_close(
        block(x), block.feed_forward_norm(middle + outer), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_activations(activation: str) -> None:
    block = PositionwiseFeedForward(H, 48, 0.0, activation)
    x = torch.randn(4, H)
    inner = block.intermediate(x)
    expected = {
        "gelu": inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))),
        "gelu_new": 0.5
        * inner
        * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3))),
        "relu": inner.clamp(min=0),
    }[activation]
    torch.testing.assert_close(block(x), block.output(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 30, "num_attention_heads": 4},
        {"vocab_size": 0},
        {"num_hidden_layers": -1},
        {"intermediate_size": 1.5},
        {"max_position_embeddings": True},
        {"type_vocab_size": -1},
        {"embedding_size": 0},
        {"vocab_size": 2**40},
        {"hidden_size": 2**20, "num_attention_heads": 1},
        {"num_hidden_layers": 10**6},
        {"local_window": 0},
        {"shared_layers": True, "norm_first": True},
        {"layer_norm_eps": 0.0},
        {"rope_theta": float("inf")},
        {"pooling": "last"},
        {"positions": "counted", "pad_token_id": 30, "max_position_embeddings": 20},
        {"dropout_rate": 1.0},
        {"dropout_rate": -0.1},
        {"attention_dropout_rate": 2},
        {"positions": "absolute"},
        {"positions": "rotary", "hidden_size": 15, "num_attention_heads": 3},
        {"positions": "sinusoidal", "hidden_size": 5, "num_attention_heads": 1},
        {"activation": "swish"},
        {"pad_token_id": 50},
        {"pad_token_id": -1},
    ],
)
def test_impossible_configurations(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        BertConfig(**{**SIZES, **changes})
    assert caught.value.exit_code == 4
    said = str(caught.value).replace("inusoidal", "positions").replace("otary", "positions")
    assert any(name in said for name in changes)
