"""DistilBERT (Sanh et al. 2019): half of BERT's layers, no segments and no pooler."""

from __future__ import annotations

from dataclasses import replace

from bert.families.bert import FAMILY as BERT
from bert.families.family import Family, HeadSpec, linear, stacked

_LAYER = "distilbert.transformer.layer.{layer}"
_TRANSFORMED = {
    **linear("transform.dense", "pre_classifier"),
    **linear("classifier", "classifier"),
}

FAMILY = Family(
    name="distilbert",
    prefix="distilbert.",
    config={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "max_position_embeddings": "max_position_embeddings",
        "dropout_rate": "dropout",
        "attention_dropout_rate": "attention_dropout",
        "classifier_dropout_rate": "seq_classif_dropout",
        "activation": "activation",
        "initializer_range": "initializer_range",
        "pad_token_id": "pad_token_id",
    },
    defaults={"type_vocab_size": 0, "classifier_dropout_rate": 0.2},
    fixed={"tie_word_embeddings": True},
    weights={
        "bert.embeddings.word.weight": "distilbert.embeddings.word_embeddings.weight",
        "bert.embeddings.position.weight": "distilbert.embeddings.position_embeddings.weight",
        **linear("bert.embeddings.norm", "distilbert.embeddings.LayerNorm"),
        **stacked(
            "bert.layers.{layer}.attention.qkv",
            f"{_LAYER}.attention.q_lin",
            f"{_LAYER}.attention.k_lin",
            f"{_LAYER}.attention.v_lin",
        ),
        **linear("bert.layers.{layer}.attention.output", f"{_LAYER}.attention.out_lin"),
        **linear("bert.layers.{layer}.attention_norm", f"{_LAYER}.sa_layer_norm"),
        **linear("bert.layers.{layer}.feed_forward.intermediate", f"{_LAYER}.ffn.lin1"),
        **linear("bert.layers.{layer}.feed_forward.output", f"{_LAYER}.ffn.lin2"),
        **linear("bert.layers.{layer}.feed_forward_norm", f"{_LAYER}.output_layer_norm"),
    },
    ignored=("distilbert.embeddings.position_ids",),
    renamed=BERT.renamed,
    heads={
        "encoder": HeadSpec("DistilBertModel"),
        "masked_lm": HeadSpec(
            "DistilBertForMaskedLM",
            {
                **linear("words.dense", "vocab_transform"),
                **linear("words.norm", "vocab_layer_norm"),
                "words.bias": "vocab_projector.bias",
            },
            ("vocab_projector.weight",),
        ),
        "sequence": HeadSpec(
            "DistilBertForSequenceClassification", _TRANSFORMED, options={"transform": "relu"}
        ),
        "token": HeadSpec("DistilBertForTokenClassification", linear("classifier", "classifier")),
        "span": HeadSpec("DistilBertForQuestionAnswering", linear("classifier", "qa_outputs")),
        "choice": HeadSpec(
            "DistilBertForMultipleChoice", _TRANSFORMED, options={"transform": "relu"}
        ),
    },
    sizes={
        name: replace(
            BERT.sizes[name],
            num_hidden_layers=layers,
            type_vocab_size=0,
            classifier_dropout_rate=0.2,
        )
        for name, layers in {"mini": 2, "small": 2, "medium": 4, "base": 6}.items()
    },
)
