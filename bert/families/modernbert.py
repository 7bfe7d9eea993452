"""ModernBERT (Warner et al. 2024).

Against BERT: rotary positions, the norm before each part, gated feed-forward, no biases, no
segments, and two layers of three in which a token sees its neighbourhood only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bert.errors import ModelError
from bert.families.family import Family, HeadSpec
from bert.model.config import BertConfig
from bert.text.tokenizer import AS_WRITTEN

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_HEAD = {"transform.dense.weight": "head.dense.weight", "transform.norm.weight": "head.norm.weight"}
_LABELS = {
    **_HEAD,
    "classifier.weight": "classifier.weight",
    "classifier.bias": "classifier.bias",
}
_OPTIONS = {"transform": "gelu", "normed": True}
_LAYER = "model.layers.{layer}"


def _spelled(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Both generations of ``config.json``, in the terms of the older one."""
    plain = dict(stored)
    ropes = plain.pop("rope_parameters", None)
    if isinstance(ropes, dict):
        for kind, ours in ((_GLOBAL, "global_rope_theta"), (_LOCAL, "local_rope_theta")):
            rope = ropes.get(kind) or {}
            if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
                raise ModelError(
                    f"rope_parameters of {kind} are {rope!r:.60}; only rope_type 'default' is "
                    "supported."
                )
            plain[ours] = rope.get("rope_theta", plain.get(ours))
    kinds = plain.pop("layer_types", None)
    if isinstance(kinds, list):
        again = [i for i, kind in enumerate(kinds) if i and kind == _GLOBAL]
        every = again[0] if again else max(len(kinds), 1)
        if kinds != [_LOCAL if i % every else _GLOBAL for i in range(len(kinds))] or len(
            kinds
        ) != plain.get("num_hidden_layers", len(kinds)):
            raise ModelError(
                "layer_types does not have full_attention in every n-th layer from the first on."
            )
        plain["global_attn_every_n_layers"] = every
    window = plain.pop("local_attention", 128)
    plain["local_window"] = window // 2 if isinstance(window, int) else window
    pooling = plain.pop("classifier_pooling", "cls")
    plain["pooling"] = "first" if pooling == "cls" else pooling
    return plain


def _respelled(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    written = dict(stored)
    written["local_attention"] = 2 * written.pop("local_window")
    written["classifier_pooling"] = "cls" if written["pooling"] == "first" else written["pooling"]
    del written["pooling"]
    return written


def _size(layers: int, hidden: int, heads: int, intermediate: int) -> BertConfig:
    return BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=8192,
        **_DEFAULTS,
    )


_DEFAULTS: dict[str, Any] = {
    "type_vocab_size": 0,
    "dropout_rate": 0.0,
    "positions": "rotary",
    "layer_norm_eps": 1e-5,
    "norm_first": True,
    "bias": False,
    "gated": True,
    "rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "local_window": 64,
    "global_every": 3,
}

FAMILY = Family(
    name="modernbert",
    prefix="model.",
    config={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_position_embeddings",
        "dropout_rate": ("mlp_dropout", "embedding_dropout"),
        "attention_dropout_rate": "attention_dropout",
        "classifier_dropout_rate": "classifier_dropout",
        "activation": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "initializer_range": "initializer_range",
        "pad_token_id": "pad_token_id",
        "pooling": "pooling",
        "rope_theta": "global_rope_theta",
        "local_rope_theta": "local_rope_theta",
        "local_window": "local_window",
        "global_every": "global_attn_every_n_layers",
    },
    defaults={"max_position_embeddings": 8192, "pad_token_id": 50283, **_DEFAULTS},
    fixed={
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "classifier_activation": "gelu",
        "rope_scaling": None,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    },
    weights={
        "bert.embeddings.word.weight": "model.embeddings.tok_embeddings.weight",
        "bert.embeddings.norm.weight": "model.embeddings.norm.weight",
        "bert.layers.{layer}.attention_norm.weight": f"{_LAYER}.attn_norm.weight",
        "bert.layers.{layer}.attention.qkv.weight": f"{_LAYER}.attn.Wqkv.weight",
        "bert.layers.{layer}.attention.output.weight": f"{_LAYER}.attn.Wo.weight",
        "bert.layers.{layer}.feed_forward_norm.weight": f"{_LAYER}.mlp_norm.weight",
        "bert.layers.{layer}.feed_forward.intermediate.weight": f"{_LAYER}.mlp.Wi.weight",
        "bert.layers.{layer}.feed_forward.output.weight": f"{_LAYER}.mlp.Wo.weight",
        "bert.norm.weight": "model.final_norm.weight",
    },
    heads={
        "encoder": HeadSpec("ModernBertModel"),
        "masked_lm": HeadSpec(
            "ModernBertForMaskedLM",
            {
                "words.dense.weight": "head.dense.weight",
                "words.norm.weight": "head.norm.weight",
                "words.bias": "decoder.bias",
            },
            ("decoder.weight",),
            options={"activation": "gelu"},
        ),
        "sequence": HeadSpec("ModernBertForSequenceClassification", _LABELS, options=_OPTIONS),
        "token": HeadSpec("ModernBertForTokenClassification", _LABELS, options=_OPTIONS),
        "span": HeadSpec("ModernBertForQuestionAnswering", _LABELS, options=_OPTIONS),
        "choice": HeadSpec("ModernBertForMultipleChoice", _LABELS, options=_OPTIONS),
    },
    sizes={
        "tiny": _size(2, 128, 2, 192),
        "mini": _size(4, 256, 4, 384),
        "small": _size(6, 512, 8, 768),
        "base": _size(22, 768, 12, 1152),
        "large": _size(28, 1024, 16, 2624),
    },
    tokenizer=AS_WRITTEN,
    spelled=_spelled,
    respelled=_respelled,
)
