"""BERT (Devlin et al. 2018); the small sizes are those of Turc et al. 2019."""

from __future__ import annotations

from bert.families.family import Family, HeadSpec
from bert.model.config import BertConfig

_WORDS = {
    "words.dense.weight": "cls.predictions.transform.dense.weight",
    "words.dense.bias": "cls.predictions.transform.dense.bias",
    "words.norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "words.norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "words.bias": "cls.predictions.bias",
}
_TIED_WORDS = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
_NEXT_SENTENCE = {
    "next_sentence.weight": "cls.seq_relationship.weight",
    "next_sentence.bias": "cls.seq_relationship.bias",
}
_CLASSIFIER = {"classifier.weight": "classifier.weight", "classifier.bias": "classifier.bias"}
_LAYER = "bert.encoder.layer.{layer}."
_SELF = _LAYER + "attention.self."


def _size(layers: int, hidden: int, heads: int) -> BertConfig:
    return BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )


FAMILY = Family(
    name="bert",
    prefix="bert.",
    config={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_position_embeddings",
        "type_vocab_size": "type_vocab_size",
        "dropout_rate": "hidden_dropout_prob",
        "attention_dropout_rate": "attention_probs_dropout_prob",
        "activation": "hidden_act",
        "layer_norm_eps": "layer_norm_eps",
        "initializer_range": "initializer_range",
        "pad_token_id": "pad_token_id",
        "positions": "positions",
    },
    fixed={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    written={"tie_word_embeddings": True},
    weights={
        "bert.embeddings.word.weight": "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position.weight": "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.segment.weight": "bert.embeddings.token_type_embeddings.weight",
        "bert.embeddings.norm.weight": "bert.embeddings.LayerNorm.weight",
        "bert.embeddings.norm.bias": "bert.embeddings.LayerNorm.bias",
        "bert.layers.{layer}.attention.qkv.weight": (
            _SELF + "query.weight",
            _SELF + "key.weight",
            _SELF + "value.weight",
        ),
        "bert.layers.{layer}.attention.qkv.bias": (
            _SELF + "query.bias",
            _SELF + "key.bias",
            _SELF + "value.bias",
        ),
        "bert.layers.{layer}.attention.output.weight": _LAYER + "attention.output.dense.weight",
        "bert.layers.{layer}.attention.output.bias": _LAYER + "attention.output.dense.bias",
        "bert.layers.{layer}.attention_norm.weight": _LAYER + "attention.output.LayerNorm.weight",
        "bert.layers.{layer}.attention_norm.bias": _LAYER + "attention.output.LayerNorm.bias",
        "bert.layers.{layer}.feed_forward.intermediate.weight": (
            _LAYER + "intermediate.dense.weight"
        ),
        "bert.layers.{layer}.feed_forward.intermediate.bias": _LAYER + "intermediate.dense.bias",
        "bert.layers.{layer}.feed_forward.output.weight": _LAYER + "output.dense.weight",
        "bert.layers.{layer}.feed_forward.output.bias": _LAYER + "output.dense.bias",
        "bert.layers.{layer}.feed_forward_norm.weight": _LAYER + "output.LayerNorm.weight",
        "bert.layers.{layer}.feed_forward_norm.bias": _LAYER + "output.LayerNorm.bias",
        "bert.pooler.weight": "bert.pooler.dense.weight",
        "bert.pooler.bias": "bert.pooler.dense.bias",
    },
    ignored=("bert.embeddings.position_ids",),
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    heads={
        "encoder": HeadSpec("BertModel", {}),
        "pretraining": HeadSpec("BertForPreTraining", {**_WORDS, **_NEXT_SENTENCE}, _TIED_WORDS),
        "masked_lm": HeadSpec("BertForMaskedLM", _WORDS, _TIED_WORDS),
        "next_sentence": HeadSpec("BertForNextSentencePrediction", _NEXT_SENTENCE),
        "sequence": HeadSpec("BertForSequenceClassification", _CLASSIFIER),
        "token": HeadSpec("BertForTokenClassification", _CLASSIFIER),
        "span": HeadSpec(
            "BertForQuestionAnswering",
            {"span.weight": "qa_outputs.weight", "span.bias": "qa_outputs.bias"},
        ),
        "choice": HeadSpec("BertForMultipleChoice", _CLASSIFIER),
    },
    sizes={
        "tiny": _size(2, 128, 2),
        "mini": _size(4, 256, 4),
        "small": _size(4, 512, 8),
        "medium": _size(8, 512, 8),
        "base": _size(12, 768, 12),
        "large": _size(24, 1024, 16),
    },
)
