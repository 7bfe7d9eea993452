"""BERT (Devlin et al. 2018); the small sizes are those of Turc et al. 2019."""

from __future__ import annotations

from bert.families.family import Family, HeadSpec, linear, stacked
from bert.model.config import BertConfig

_LAYER = "bert.encoder.layer.{layer}"
_WORDS = {
    **linear("words.dense", "cls.predictions.transform.dense"),
    **linear("words.norm", "cls.predictions.transform.LayerNorm"),
    "words.bias": "cls.predictions.bias",
}
_TIED_WORDS = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
_NEXT_SENTENCE = linear("next_sentence", "cls.seq_relationship")
_CLASSIFIER = linear("classifier", "classifier")


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
        "classifier_dropout_rate": "classifier_dropout",
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
        "tie_word_embeddings": True,
    },
    weights={
        "bert.embeddings.word.weight": "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position.weight": "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.segment.weight": "bert.embeddings.token_type_embeddings.weight",
        **linear("bert.embeddings.norm", "bert.embeddings.LayerNorm"),
        **stacked(
            "bert.layers.{layer}.attention.qkv",
            f"{_LAYER}.attention.self.query",
            f"{_LAYER}.attention.self.key",
            f"{_LAYER}.attention.self.value",
        ),
        **linear("bert.layers.{layer}.attention.output", f"{_LAYER}.attention.output.dense"),
        **linear("bert.layers.{layer}.attention_norm", f"{_LAYER}.attention.output.LayerNorm"),
        **linear("bert.layers.{layer}.feed_forward.intermediate", f"{_LAYER}.intermediate.dense"),
        **linear("bert.layers.{layer}.feed_forward.output", f"{_LAYER}.output.dense"),
        **linear("bert.layers.{layer}.feed_forward_norm", f"{_LAYER}.output.LayerNorm"),
        **linear("bert.pooler", "bert.pooler.dense"),
    },
    ignored=("bert.embeddings.position_ids",),
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    heads={
        "encoder": HeadSpec("BertModel", pooler=True),
        "pretraining": HeadSpec(
            "BertForPreTraining", {**_WORDS, **_NEXT_SENTENCE}, _TIED_WORDS, pooler=True
        ),
        "masked_lm": HeadSpec("BertForMaskedLM", _WORDS, _TIED_WORDS),
        "next_sentence": HeadSpec("BertForNextSentencePrediction", _NEXT_SENTENCE, pooler=True),
        "sequence": HeadSpec("BertForSequenceClassification", _CLASSIFIER, pooler=True),
        "token": HeadSpec("BertForTokenClassification", _CLASSIFIER),
        "span": HeadSpec("BertForQuestionAnswering", linear("classifier", "qa_outputs")),
        "choice": HeadSpec("BertForMultipleChoice", _CLASSIFIER, pooler=True),
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
