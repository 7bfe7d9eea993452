"""DeBERTa-v3 (He et al. 2021a, 2021b): content and position attend to each other apart.

The attention is this family's own: a score is the sum of content to content, content to
position and position to content, where a position is the distance between two tokens, and
far distances share a bucket. There is no absolute position, no segment and no pooler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bert.errors import ModelError
from bert.families.bert import FAMILY as BERT_FAMILY
from bert.families.family import Family, HeadSpec, linear, stacked, under
from bert.model.attention import attend
from bert.model.config import BertConfig
from bert.model.dropout import Dropout
from bert.model.encoder import BERT, initialize
from bert.model.layer import LayerNorm
from bert.model.packing import Packed, Tokens
from bert.text.tokenizer import WORDPIECE, TokenizerForm

_LAYER = "deberta.encoder.layer.{layer}"
_CLASSIFIER = linear("classifier", "classifier")
_POOLED = {**linear("transform.dense", "pooler.dense"), **_CLASSIFIER}


@dataclass(frozen=True)
class DebertaConfig(BertConfig):
    """What DeBERTa has beside the rest.

    Args:
        position_buckets: how many distances to each side are told apart; half of them are
            exact, the others grow logarithmically up to ``max_relative_positions``.
        max_relative_positions: the longest distance that has a bucket of its own.
    """

    position_buckets: int = 256
    max_relative_positions: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("position_buckets", "max_relative_positions"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 4 <= value <= 2**20:
                raise ModelError(f"{name} must be a whole number from 4 on, not {value!r:.40}.")
        if self.max_relative_positions <= self.position_buckets // 2 + 1:
            raise ModelError(
                f"max_relative_positions {self.max_relative_positions} leaves no distance beyond "
                f"half of position_buckets {self.position_buckets}."
            )


def bucket(distance: Tensor, buckets: int, longest: int) -> Tensor:
    """Distances in tokens -> numbers from -buckets to buckets, of the same shape.

    Distances up to half of the buckets have their own; beyond, the logarithm of the distance
    is divided evenly (the log-bucket of the published code of He et al. 2021a).
    """
    exact = buckets // 2
    # All in fp32: where a quotient is whole, its last bit decides the bucket.
    whole = torch.log(torch.tensor((longest - 1) / exact))
    far = torch.log(distance.abs().clamp(min=exact) / exact) / whole
    grown = (torch.ceil(far * (exact - 1)) + exact) * distance.sign()
    return torch.where(distance.abs() <= exact, distance, grown.long())


class Relative(NamedTuple):
    """What the attention is told of positions.

    Args:
        table: [2K, H] embeddings of the K buckets to each side.
        rows: for each group of sequences, the row of the table for every pair of tokens:
            [b or 1, S, S].
    """

    table: Tensor
    rows: tuple[Tensor, ...]


class DisentangledAttention(nn.Module):
    """Attention by content and by distance (He et al. 2021a, equation 4).

    ::

        score(i, j) = (Qi Kj + Qi Pk[d] + Kj Pq[d]) / sqrt(3 D),  d = bucket(i - j)

    P are the embeddings of distances, turned into keys and queries by the same weights as the
    content (``share_att_key``).
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        rate = config.attention_dropout_rate
        self.dropout_rate = config.dropout_rate if rate is None else rate
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.table_dropout = Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor, mask: Packed, positions: Relative) -> Tensor:
        """[T, H] -> [T, H]."""
        width = hidden.shape[-1]
        qkv = self.qkv(hidden)  # [T, 3H]
        table = self.qkv(self.table_dropout(positions.table))  # [2K, 3H]
        queries, keys, _ = (self._split(part) for part in table.chunk(3, dim=-1))  # [N, 2K, D]
        rows = iter(positions.rows)

        def heads(part: Tensor, seen: Tensor | None) -> Tensor:
            return self._heads(part, seen, next(rows), queries, keys)

        output: Tensor = self.output(mask.by_group(heads, qkv, width))
        return output

    def _split(self, hidden: Tensor) -> Tensor:
        """[..., S, H] -> [..., N, S, D]."""
        return hidden.view(*hidden.shape[:-1], self.num_attention_heads, -1).transpose(-3, -2)

    def _heads(
        self, qkv: Tensor, seen: Tensor | None, rows: Tensor, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """[B, S, 3H] -> [B, S, H]."""
        query, key, value = (self._split(part) for part in qkv.chunk(3, dim=-1))  # [B, N, S, D]
        shape = (*query.shape[:-1], query.shape[-2])  # [B, N, S, S]
        index = rows[:, None].expand(shape)
        to_position = (query @ keys.transpose(-1, -2)).gather(-1, index)
        back = index.transpose(-1, -2)
        from_position = (key @ queries.transpose(-1, -2)).gather(-1, back).transpose(-1, -2)
        bias = (to_position + from_position) * (3 * query.shape[-1]) ** -0.5
        if seen is not None:
            bias = bias.masked_fill(~seen, torch.finfo(bias.dtype).min)
        rate = self.dropout_rate if self.training else 0.0
        attended = attend(query * 3**-0.5, key, value, bias, rate)
        return attended.transpose(1, 2).flatten(-2)


class DebertaEncoder(BERT):
    """The encoder with disentangled attention in every layer."""

    config_class: ClassVar[type[BertConfig]] = DebertaConfig

    def __init__(self, config: DebertaConfig | None = None, **sizes: Any) -> None:
        super().__init__(config, **sizes)
        settings = self.config
        assert isinstance(settings, DebertaConfig)
        for layer in self.layers:
            layer.attention = DisentangledAttention(settings)
        self.distance = nn.Embedding(2 * settings.position_buckets, settings.hidden_size)
        self.distance_norm = LayerNorm(settings.hidden_size, settings.layer_norm_eps)
        initialize(self, settings.initializer_range)

    def surroundings(self, tokens: Tokens) -> Iterator[tuple[Packed, Relative]]:
        """For each layer: who sees whom, and the distances between them."""
        settings = self.config
        assert isinstance(settings, DebertaConfig)
        rows = []
        for group in tokens.packed.groups:
            places = group.of(tokens.position_ids)  # [b, S]
            apart = places[:, :, None] - places[:, None, :]  # [b, S, S]
            number = bucket(apart, settings.position_buckets, settings.max_relative_positions)
            last = 2 * settings.position_buckets - 1
            rows.append((number + settings.position_buckets).clamp(0, last))
        table = self.distance_norm(self.distance.weight)
        relative = Relative(table, tuple(rows))
        for _ in self.layers:
            yield tokens.packed, relative


def _spelled(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that are written in several ways, in one."""
    plain = dict(stored)
    kinds = plain.get("pos_att_type")
    if isinstance(kinds, str):
        plain["pos_att_type"] = [kind.strip() for kind in kinds.lower().split("|")]
    if isinstance(plain.get("pos_att_type"), list):
        plain["pos_att_type"] = sorted(map(str, plain["pos_att_type"]))
    if plain.get("max_relative_positions", -1) == -1:
        plain["max_relative_positions"] = plain.get("max_position_embeddings", 512)
    # The word prediction of version 3 has names of its own; the arithmetic is the same.
    plain["legacy"] = True
    for name, needed in _NEEDED.items():
        if name not in plain:
            raise ModelError(f"{name} is missing; DeBERTa-v3 has {needed!r}.")
    return plain


# Where config.json is silent, these mean another network, so they must be there.
_NEEDED: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 256,
}


def _normalizer(settings: Mapping[str, Any], charsmap: bytes | None) -> list[dict[str, Any]]:
    # The character map of spm.model is not used, as in transformers 5.
    lower = [{"type": "Lowercase"}] if settings.get("do_lower_case", False) else []
    return [
        *lower,
        {"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "},
        {"type": "NFC"},
        {"type": "Strip", "strip_left": False, "strip_right": True},
    ]


def _pre_tokenizer(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    punctuation = {"type": "Punctuation", "behavior": "Isolated"}
    prepend = "always" if settings.get("add_prefix_space", True) else "first"
    return [
        *([punctuation] if settings.get("split_by_punct", False) else []),
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": prepend, "split": True},
    ]


def _size(layers: int, hidden: int, heads: int) -> BertConfig:
    return DebertaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        **_DEFAULTS,
    )


_DEFAULTS: dict[str, Any] = {
    "type_vocab_size": 0,
    "positions": "none",
    "layer_norm_eps": 1e-7,
}

FAMILY = Family(
    name="deberta_v2",
    prefix="deberta.",
    config={
        **{
            ours: theirs
            for ours, theirs in BERT_FAMILY.config.items()
            if ours not in ("positions", "type_vocab_size")
        },
        "classifier_dropout_rate": "cls_dropout",
        "position_buckets": "position_buckets",
        "max_relative_positions": "max_relative_positions",
    },
    defaults=_DEFAULTS,
    fixed={
        **{name: value for name, value in _NEEDED.items() if name != "position_buckets"},
        "type_vocab_size": 0,
        "conv_kernel_size": 0,
        "pooler_hidden_act": "gelu",
        "legacy": True,
        "tie_word_embeddings": True,
    },
    weights={
        "bert.embeddings.word.weight": "deberta.embeddings.word_embeddings.weight",
        **linear("bert.embeddings.norm", "deberta.embeddings.LayerNorm"),
        "bert.distance.weight": "deberta.encoder.rel_embeddings.weight",
        **linear("bert.distance_norm", "deberta.encoder.LayerNorm"),
        **under(
            "deberta",
            {k: v for k, v in BERT_FAMILY.weights.items() if k.startswith("bert.layers")},
        ),
        **stacked(
            "bert.layers.{layer}.attention.qkv",
            f"{_LAYER}.attention.self.query_proj",
            f"{_LAYER}.attention.self.key_proj",
            f"{_LAYER}.attention.self.value_proj",
        ),
    },
    ignored=("deberta.embeddings.position_ids",),
    # The published checkpoints of version 3 have other names for the word prediction.
    renamed={
        "lm_predictions.lm_head.": "cls.predictions.",
        ".predictions.dense.": ".predictions.transform.dense.",
        ".predictions.LayerNorm.": ".predictions.transform.LayerNorm.",
    },
    heads={
        "encoder": HeadSpec("DebertaV2Model"),
        "masked_lm": HeadSpec(
            "DebertaV2ForMaskedLM",
            BERT_FAMILY.heads["masked_lm"].weights,
            BERT_FAMILY.heads["masked_lm"].tied,
        ),
        "sequence": HeadSpec(
            "DebertaV2ForSequenceClassification", _POOLED, options={"transform": "gelu"}
        ),
        "token": HeadSpec("DebertaV2ForTokenClassification", _CLASSIFIER),
        "span": HeadSpec("DebertaV2ForQuestionAnswering", linear("classifier", "qa_outputs")),
        "choice": HeadSpec("DebertaV2ForMultipleChoice", _POOLED, options={"transform": "gelu"}),
    },
    sizes={
        "tiny": _size(2, 128, 2),
        "mini": _size(4, 256, 4),
        "xsmall": _size(12, 384, 6),
        "small": _size(6, 768, 12),
        "base": _size(12, 768, 12),
        "large": _size(24, 1024, 16),
    },
    tokenizer=TokenizerForm(
        model="Unigram",
        classes=("DebertaV2Tokenizer",),
        files=("spm.model",),
        special_tokens={**WORDPIECE.special_tokens, "bos_token": "[CLS]", "eos_token": "[SEP]"},
        normalizer=_normalizer,
        pre_tokenizer=_pre_tokenizer,
    ),
    encoder=DebertaEncoder,
    spelled=_spelled,
)
