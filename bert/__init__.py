"""Your own BERT from your own text and labels.

``bert.load(directory)`` gives the network, ``bert.Predictor(directory)`` what takes texts and
gives answers. Names are imported when they are first used: ``import bert`` does not import
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module it lives in.
_HOMES = {
    "BERT": "bert.model.encoder",
    "BertConfig": "bert.model.config",
    "BertEmbeddings": "bert.model.embeddings",
    "BertError": "bert.errors",
    "BertForMaskedLM": "bert.model.heads",
    "BertForMultipleChoice": "bert.model.heads",
    "BertForNextSentencePrediction": "bert.model.heads",
    "BertForPreTraining": "bert.model.heads",
    "BertForQuestionAnswering": "bert.model.heads",
    "BertForSequenceClassification": "bert.model.heads",
    "BertForTokenClassification": "bert.model.heads",
    "DataError": "bert.errors",
    "LayerNorm": "bert.model.layer",
    "ModelError": "bert.errors",
    "MultiHeadAttention": "bert.model.attention",
    "PositionwiseFeedForward": "bert.model.layer",
    "Predictor": "bert.predictor",
    "TransformerBlock": "bert.model.layer",
    "UsageError": "bert.errors",
    "load": "bert.checkpoint",
}
__all__ = sorted([*_HOMES, "__version__"])

if TYPE_CHECKING:
    from bert.checkpoint import load as load
    from bert.errors import BertError as BertError
    from bert.errors import DataError as DataError
    from bert.errors import ModelError as ModelError
    from bert.errors import UsageError as UsageError
    from bert.model.attention import MultiHeadAttention as MultiHeadAttention
    from bert.model.config import BertConfig as BertConfig
    from bert.model.embeddings import BertEmbeddings as BertEmbeddings
    from bert.model.encoder import BERT as BERT
    from bert.model.heads import BertForMaskedLM as BertForMaskedLM
    from bert.model.heads import BertForMultipleChoice as BertForMultipleChoice
    from bert.model.heads import BertForNextSentencePrediction as BertForNextSentencePrediction
    from bert.model.heads import BertForPreTraining as BertForPreTraining
    from bert.model.heads import BertForQuestionAnswering as BertForQuestionAnswering
    from bert.model.heads import BertForSequenceClassification as BertForSequenceClassification
    from bert.model.heads import BertForTokenClassification as BertForTokenClassification
    from bert.model.layer import LayerNorm as LayerNorm
    from bert.model.layer import PositionwiseFeedForward as PositionwiseFeedForward
    from bert.model.layer import TransformerBlock as TransformerBlock
    from bert.predictor import Predictor as Predictor


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bert' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
