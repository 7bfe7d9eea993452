"""ALBERT (Lan et al. 2019): one layer's weights used by all, and narrow word embeddings.

Its second pretraining task is the order of two sentences. The sizes ``base`` to ``xxlarge``
are those of its second version, without dropout.
"""

from __future__ import annotations

from bert.families.bert import FAMILY as BERT
from bert.families.family import Family, HeadSpec, linear, stacked
from bert.model.config import BertConfig
from bert.text.tokenizer import ALBERT

_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
_WORDS = {
    **linear("words.dense", "predictions.dense"),
    **linear("words.norm", "predictions.LayerNorm"),
    "words.bias": "predictions.bias",
}
_TIED_WORDS = ("predictions.decoder.weight", "predictions.decoder.bias")
_CLASSIFIER = linear("classifier", "classifier")


def _size(layers: int, hidden: int, heads: int, embedding: int = 128) -> BertConfig:
    return BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        embedding_size=embedding,
        shared_layers=True,
        activation="gelu_new",
        dropout_rate=0.0,
        classifier_dropout_rate=0.1,
    )


FAMILY = Family(
    name="albert",
    prefix="albert.",
    config={
        **{
            ours: theirs
            for ours, theirs in BERT.config.items()
            if ours not in ("positions", "classifier_dropout_rate")
        },
        "classifier_dropout_rate": "classifier_dropout_prob",
        "embedding_size": "embedding_size",
    },
    defaults={
        "shared_layers": True,
        "embedding_size": 128,
        "activation": "gelu_new",
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "classifier_dropout_rate": 0.1,
    },
    fixed={
        "position_embedding_type": "absolute",
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "tie_word_embeddings": True,
    },
    weights={
        "bert.embeddings.word.weight": "albert.embeddings.word_embeddings.weight",
        "bert.embeddings.position.weight": "albert.embeddings.position_embeddings.weight",
        "bert.embeddings.segment.weight": "albert.embeddings.token_type_embeddings.weight",
        **linear("bert.embeddings.norm", "albert.embeddings.LayerNorm"),
        **linear("bert.embeddings.project", "albert.encoder.embedding_hidden_mapping_in"),
        **stacked(
            "bert.layers.0.attention.qkv",
            f"{_LAYER}.attention.query",
            f"{_LAYER}.attention.key",
            f"{_LAYER}.attention.value",
        ),
        **linear("bert.layers.0.attention.output", f"{_LAYER}.attention.dense"),
        **linear("bert.layers.0.attention_norm", f"{_LAYER}.attention.LayerNorm"),
        **linear("bert.layers.0.feed_forward.intermediate", f"{_LAYER}.ffn"),
        **linear("bert.layers.0.feed_forward.output", f"{_LAYER}.ffn_output"),
        **linear("bert.layers.0.feed_forward_norm", f"{_LAYER}.full_layer_layer_norm"),
        **linear("bert.pooler", "albert.pooler"),
    },
    ignored=("albert.embeddings.position_ids",),
    renamed=BERT.renamed,
    heads={
        "encoder": HeadSpec("AlbertModel", pooler=True),
        "pretraining": HeadSpec(
            "AlbertForPreTraining",
            {**_WORDS, **linear("next_sentence", "sop_classifier.classifier")},
            _TIED_WORDS,
            pooler=True,
        ),
        "masked_lm": HeadSpec("AlbertForMaskedLM", _WORDS, _TIED_WORDS),
        "sequence": HeadSpec("AlbertForSequenceClassification", _CLASSIFIER, pooler=True),
        "token": HeadSpec("AlbertForTokenClassification", _CLASSIFIER),
        "span": HeadSpec("AlbertForQuestionAnswering", linear("classifier", "qa_outputs")),
        "choice": HeadSpec("AlbertForMultipleChoice", _CLASSIFIER, pooler=True),
    },
    sizes={
        "tiny": _size(2, 128, 2, embedding=64),
        "mini": _size(4, 256, 4, embedding=64),
        "base": _size(12, 768, 12),
        "large": _size(24, 1024, 16),
        "xlarge": _size(24, 2048, 16),
        "xxlarge": _size(12, 4096, 64),
    },
    tokenizer=ALBERT,
)
