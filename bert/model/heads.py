"""What stands on the encoder: heads return logits, losses live in objectives and tasks.

Every head takes ``(input_ids, token_type_ids, attention_mask)``, each [B, S], and has a
``logits`` method for packed tokens that training and prediction use.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert.errors import ModelError
from bert.model.dropout import Dropout
from bert.model.encoder import BERT, initialize
from bert.model.layer import ACTIVATION, LayerNorm
from bert.model.packing import Tokens, pack, unpack


class Head(nn.Module):
    """An encoder with something on top.

    Class attributes: ``kind``, the name of the head in the family tables, and ``padded``,
    True where there is one output a token (put back into [B, S, ...]), False where there is
    one a sequence.
    """

    kind: ClassVar[str]
    padded: ClassVar[bool]

    def __init__(self, bert: BERT, hidden_size: int | None = None) -> None:
        super().__init__()
        if hidden_size is not None and hidden_size != bert.config.hidden_size:
            raise ModelError(
                f"hidden_size is {hidden_size}, but the encoder is {bert.config.hidden_size} wide."
            )
        self.bert = bert

    def logits(self, tokens: Tokens) -> Tensor:
        """Packed tokens [T] -> [T, ...] or [B, ...]."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """A padded batch [B, S] -> [B, S, ...] or [B, ...]; zeros at padding."""
        self.bert.check_length(input_ids)
        tokens, places = pack(input_ids, token_type_ids, attention_mask)
        logits = self.logits(tokens)
        return unpack(logits, places, *input_ids.shape) if self.padded else logits

    def _initialize(self, *modules: nn.Module) -> None:
        for module in modules:
            initialize(module, self.bert.config.initializer_range)


class WordPrediction(nn.Module):
    """Which word stands here: ``norm(gelu(W h + b)) E^T + c``, E the word embeddings.

    The output matrix is the input embedding itself (Devlin et al. 2018, appendix A; weight
    tying: Press & Wolf 2017). [M, H] -> [M, V].
    """

    def __init__(self, bert: BERT) -> None:
        super().__init__()
        config = bert.config
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = ACTIVATION[config.activation]

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """hidden [M, H], embedding [V, H] -> [M, V]."""
        return F.linear(self.norm(self.activation(self.dense(hidden))), embedding, self.bias)


class BertForMaskedLM(Head):
    """Predicts the word at every position: [B, S] -> [B, S, V].

    ``vocab_size`` and ``hidden_size`` may be given, as textbooks do; they must be the encoder's.
    """

    kind = "masked_lm"
    padded = True

    def __init__(
        self, bert: BERT, vocab_size: int | None = None, hidden_size: int | None = None
    ) -> None:
        super().__init__(bert, hidden_size)
        if vocab_size is not None and vocab_size != bert.config.vocab_size:
            raise ModelError(
                f"vocab_size is {vocab_size}, but the encoder has {bert.config.vocab_size} words."
            )
        self.words = WordPrediction(bert)
        self._initialize(self.words)

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states at the positions of interest: [M, H] -> [M, V]."""
        logits: Tensor = self.words(hidden, self.bert.embeddings.word.weight)
        return logits

    def logits(self, tokens: Tokens) -> Tensor:
        """[T] -> [T, V]. Training asks ``word_logits`` at the masked positions only."""
        return self.word_logits(self.bert.encode(tokens))


class BertForNextSentencePrediction(Head):
    """Does the second sentence follow the first: [B, S] -> [B, 2], index 0 for yes."""

    kind = "next_sentence"
    padded = False

    def __init__(self, bert: BERT) -> None:
        super().__init__(bert)
        self.next_sentence = nn.Linear(bert.config.hidden_size, 2)
        self._initialize(self.next_sentence)

    def next_sentence_logits(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """[T, H] -> [B, 2]."""
        logits: Tensor = self.next_sentence(self.bert.pool(hidden, tokens))
        return logits

    def logits(self, tokens: Tokens) -> Tensor:
        """[T] -> [B, 2]."""
        return self.next_sentence_logits(self.bert.encode(tokens), tokens)


class BertForPreTraining(BertForMaskedLM):
    """Both heads of pretraining (Devlin et al. 2018, section 3.1) on one encoder.

    ``model(...)`` returns the word logits [B, S, V]; ``next_sentence_logits`` the other.
    """

    kind = "pretraining"

    def __init__(
        self, bert: BERT, vocab_size: int | None = None, hidden_size: int | None = None
    ) -> None:
        super().__init__(bert, vocab_size, hidden_size)
        self.next_sentence = nn.Linear(bert.config.hidden_size, 2)
        self._initialize(self.next_sentence)

    def next_sentence_logits(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """[T, H] -> [B, 2], index 0 for "follows"."""
        logits: Tensor = self.next_sentence(self.bert.pool(hidden, tokens))
        return logits


class BertForSequenceClassification(Head):
    """A label for a text or a pair: pooler -> dropout -> linear, [B, S] -> [B, L]."""

    kind = "sequence"
    padded = False

    def __init__(self, bert: BERT, num_labels: int = 2, hidden_size: int | None = None) -> None:
        super().__init__(bert, hidden_size)
        self.num_labels = num_labels
        self.dropout = Dropout(bert.config.dropout_rate)
        self.classifier = nn.Linear(bert.config.hidden_size, num_labels)
        self._initialize(self.classifier)

    def logits(self, tokens: Tokens) -> Tensor:
        """[T] -> [B, L]."""
        pooled = self.bert.pool(self.bert.encode(tokens), tokens)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


class BertForTokenClassification(Head):
    """A label for every token: [B, S] -> [B, S, L]."""

    kind = "token"
    padded = True

    def __init__(self, bert: BERT, num_labels: int = 2, hidden_size: int | None = None) -> None:
        super().__init__(bert, hidden_size)
        self.num_labels = num_labels
        self.dropout = Dropout(bert.config.dropout_rate)
        self.classifier = nn.Linear(bert.config.hidden_size, num_labels)
        self._initialize(self.classifier)

    def logits(self, tokens: Tokens) -> Tensor:
        """[T] -> [T, L]."""
        logits: Tensor = self.classifier(self.dropout(self.bert.encode(tokens)))
        return logits


class BertForQuestionAnswering(Head):
    """Where the answer starts and ends: [B, S] -> [B, S, 2]."""

    kind = "span"
    padded = True

    def __init__(self, bert: BERT, hidden_size: int | None = None) -> None:
        super().__init__(bert, hidden_size)
        self.span = nn.Linear(bert.config.hidden_size, 2)
        self._initialize(self.span)

    def logits(self, tokens: Tokens) -> Tensor:
        """[T] -> [T, 2]: start and end."""
        logits: Tensor = self.span(self.bert.encode(tokens))
        return logits


class BertForMultipleChoice(Head):
    """A score for each of C choices: [B, C, S] -> [B, C]."""

    kind = "choice"
    padded = False

    def __init__(self, bert: BERT, hidden_size: int | None = None) -> None:
        super().__init__(bert, hidden_size)
        self.dropout = Dropout(bert.config.dropout_rate)
        self.classifier = nn.Linear(bert.config.hidden_size, 1)
        self._initialize(self.classifier)

    def logits(self, tokens: Tokens) -> Tensor:
        """[T] -> [B * C, 1]."""
        pooled = self.bert.pool(self.bert.encode(tokens), tokens)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, C, S] -> [B, C]."""
        if input_ids.dim() != 3:
            raise ModelError(f"input_ids has shape {list(input_ids.shape)}, not [B, choices, S].")
        batch, choices, length = input_ids.shape
        flat = [
            None if value is None else value.reshape(batch * choices, length)
            for value in (input_ids, token_type_ids, attention_mask)
        ]
        assert flat[0] is not None
        return super().forward(flat[0], flat[1], flat[2]).view(batch, choices)


HEADS: dict[str, type[Head]] = {
    head.kind: head
    for head in (
        BertForPreTraining,
        BertForMaskedLM,
        BertForNextSentencePrediction,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertForQuestionAnswering,
        BertForMultipleChoice,
    )
}
