"""XLM-RoBERTa (Conneau et al. 2019): RoBERTa over pieces of a hundred languages."""

from __future__ import annotations

from dataclasses import replace

from bert.families.roberta import FAMILY as ROBERTA
from bert.text.tokenizer import XLM_ROBERTA

FAMILY = replace(
    ROBERTA,
    name="xlm_roberta",
    heads={
        kind: replace(head, architecture=head.architecture.replace("Roberta", "XLMRoberta"))
        for kind, head in ROBERTA.heads.items()
    },
    tokenizer=XLM_ROBERTA,
)
