"""RoBERTa (Liu et al. 2019): BERT without next sentences, over byte-level pieces.

Positions are counted from ``pad_token_id + 1``, so that the first two rows of the published
table of 514 stand for no position.
"""

from __future__ import annotations

from dataclasses import replace

from bert.families.bert import FAMILY as BERT
from bert.families.family import Family, HeadSpec, linear, under
from bert.text.tokenizer import BYTE_LEVEL

_CLASSIFIER = linear("classifier", "classifier")


FAMILY = Family(
    name="roberta",
    prefix="roberta.",
    config={ours: theirs for ours, theirs in BERT.config.items() if ours != "positions"},
    defaults={"positions": "counted", "pad_token_id": 1},
    fixed=BERT.fixed,
    weights=under("roberta", BERT.weights),
    ignored=("roberta.embeddings.position_ids",),
    renamed=BERT.renamed,
    heads={
        "encoder": HeadSpec("RobertaModel", pooler=True),
        "masked_lm": HeadSpec(
            "RobertaForMaskedLM",
            {
                **linear("words.dense", "lm_head.dense"),
                **linear("words.norm", "lm_head.layer_norm"),
                "words.bias": "lm_head.bias",
            },
            ("lm_head.decoder.weight", "lm_head.decoder.bias"),
            options={"activation": "gelu"},
        ),
        "sequence": HeadSpec(
            "RobertaForSequenceClassification",
            {
                **linear("transform.dense", "classifier.dense"),
                **linear("classifier", "classifier.out_proj"),
            },
            options={"transform": "tanh"},
        ),
        "token": HeadSpec("RobertaForTokenClassification", _CLASSIFIER),
        "span": HeadSpec("RobertaForQuestionAnswering", linear("classifier", "qa_outputs")),
        "choice": HeadSpec("RobertaForMultipleChoice", _CLASSIFIER, pooler=True),
    },
    sizes={
        name: replace(
            config,
            positions="counted",
            pad_token_id=1,
            max_position_embeddings=514,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
        for name, config in BERT.sizes.items()
    },
    tokenizer=BYTE_LEVEL,
)
