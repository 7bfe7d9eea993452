"""ELECTRA (Clark et al. 2020): a discriminator that finds the words a generator put in.

Both are encoders of this family: the generator has the ``masked_lm`` head, the discriminator
``replaced_token``. Word embeddings may be narrower than the layers, and are projected then.
"""

from __future__ import annotations

from dataclasses import replace

from bert.families.bert import FAMILY as BERT
from bert.families.family import Family, HeadSpec, linear, under

FAMILY = Family(
    name="electra",
    prefix="electra.",
    config={
        **{ours: theirs for ours, theirs in BERT.config.items() if ours != "positions"},
        "embedding_size": "embedding_size",
    },
    defaults={"embedding_size": 128},
    fixed={
        **BERT.fixed,
        "summary_type": "first",
        "summary_use_proj": True,
        "summary_activation": "gelu",
    },
    weights={
        **under("electra", BERT.weights),
        **linear("bert.embeddings.project", "electra.embeddings_project"),
    },
    ignored=("electra.embeddings.position_ids",),
    renamed=BERT.renamed,
    heads={
        "encoder": HeadSpec("ElectraModel"),
        "replaced_token": HeadSpec(
            "ElectraForPreTraining",
            {
                **linear("transform.dense", "discriminator_predictions.dense"),
                **linear("replaced", "discriminator_predictions.dense_prediction"),
            },
        ),
        "masked_lm": HeadSpec(
            "ElectraForMaskedLM",
            {
                **linear("words.dense", "generator_predictions.dense"),
                **linear("words.norm", "generator_predictions.LayerNorm"),
                "words.bias": "generator_lm_head.bias",
            },
            ("generator_lm_head.weight",),
            options={"activation": "gelu"},
        ),
        "sequence": HeadSpec(
            "ElectraForSequenceClassification",
            {
                **linear("transform.dense", "classifier.dense"),
                **linear("classifier", "classifier.out_proj"),
            },
            options={"transform": "gelu"},
        ),
        "token": HeadSpec("ElectraForTokenClassification", linear("classifier", "classifier")),
        "span": HeadSpec("ElectraForQuestionAnswering", linear("classifier", "qa_outputs")),
        "choice": HeadSpec(
            "ElectraForMultipleChoice",
            {
                **linear("transform.dense", "sequence_summary.summary"),
                **linear("classifier", "classifier"),
            },
            options={"transform": "gelu"},
        ),
    },
    sizes={
        **{name: BERT.sizes[name] for name in ("tiny", "mini", "medium", "base", "large")},
        # As published: 12 layers of 256 over embeddings of 128.
        "small": replace(
            BERT.sizes["base"],
            hidden_size=256,
            num_attention_heads=4,
            intermediate_size=1024,
            embedding_size=128,
        ),
    },
)
