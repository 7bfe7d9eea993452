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
from bert.model.config import BertConfig
from bert.model.dropout import Dropout
from bert.model.encoder import BERT, initialize
from bert.model.layer import ACTIVATION, LayerNorm
from bert.model.packing import Tokens, pack, unpack


class Head(nn.Module):
    """An encoder with something on top.

    Class attributes: ``kind``, the name of the head in the family tables; ``padded``, True
    where there is one output a token (put back into [B, S, ...]), False where there is one a
    sequence; ``labelled``, True where the outputs are labels of one's own.
    """

    kind: ClassVar[str]
    padded: ClassVar[bool]
    labelled: ClassVar[bool] = False

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


class Transform(nn.Module):
    """What a family puts between the encoder and a head: ``norm(act(W h + b))``.

    ``activation`` is a name in ``ACTIVATION``; the norm is there where ``normed`` says so.
    [..., H] -> [..., width].
    """

    def __init__(self, config: BertConfig, width: int, activation: str, normed: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.activation = ACTIVATION[activation]
        self.norm = (
            LayerNorm(width, config.layer_norm_eps, config.bias) if normed else nn.Identity()
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., width]."""
        transformed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return transformed


class WordPrediction(Transform):
    """Which word stands here: ``norm(gelu(W h + b)) E^T + c``, E the word embeddings.

    The output matrix is the input embedding itself (Devlin et al. 2018, appendix A; weight
    tying: Press & Wolf 2017). [M, H] -> [M, V].
    """

    def __init__(self, config: BertConfig, activation: str | None = None) -> None:
        super().__init__(
            config, config.embedding_width, activation or config.activation, normed=True
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """hidden [M, H], embedding [V, E] -> [M, V]."""
        return F.linear(super().forward(hidden), embedding, self.bias)


class BertForMaskedLM(Head):
    """Predicts the word at every position: [B, S] -> [B, S, V].

    ``vocab_size`` and ``hidden_size`` may be given, as textbooks do; they must be the encoder's.
    """

    kind = "masked_lm"
    padded = True

    def __init__(
        self,
        bert: BERT,
        vocab_size: int | None = None,
        hidden_size: int | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__(bert, hidden_size)
        if vocab_size is not None and vocab_size != bert.config.vocab_size:
            raise ModelError(
                f"vocab_size is {vocab_size}, but the encoder has {bert.config.vocab_size} words."
            )
        self.words = WordPrediction(bert.config, activation)
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
        self,
        bert: BERT,
        vocab_size: int | None = None,
        hidden_size: int | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__(bert, vocab_size, hidden_size, activation)
        self.next_sentence = nn.Linear(bert.config.hidden_size, 2)
        self._initialize(self.next_sentence)

    def next_sentence_logits(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """[T, H] -> [B, 2], index 0 for "follows"."""
        logits: Tensor = self.next_sentence(self.bert.pool(hidden, tokens))
        return logits


class BertForReplacedTokenDetection(Head):
    """Was this token replaced: [B, S] -> [B, S] logits of yes (Clark et al. 2020).

    The discriminator of ELECTRA; its generator is a ``BertForMaskedLM``.
    """

    kind = "replaced_token"
    padded = True

    def __init__(self, bert: BERT) -> None:
        super().__init__(bert)
        config = bert.config
        self.transform = Transform(config, config.hidden_size, config.activation, normed=False)
        self.replaced = nn.Linear(config.hidden_size, 1)
        self._initialize(self.transform, self.replaced)

    def logits(self, tokens: Tokens) -> Tensor:
        """[T] -> [T, 1]."""
        logits: Tensor = self.replaced(self.transform(self.bert.encode(tokens)))
        return logits

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, S] -> [B, S]; zeros at padding."""
        return super().forward(input_ids, token_type_ids, attention_mask).squeeze(-1)


class LinearHead(Head):
    """A linear map to L outputs, over each token or over what stands for each sequence.

    ::

        a token, or the pooled sequence -> transform? -> dropout -> linear

    Families differ in what comes before the linear map: the pooler of the encoder, a
    ``Transform`` of the head's own (``transform``: its activation; ``normed``: whether a norm
    follows), or nothing.
    """

    def __init__(
        self,
        bert: BERT,
        num_labels: int = 2,
        hidden_size: int | None = None,
        transform: str | None = None,
        normed: bool = False,
    ) -> None:
        super().__init__(bert, hidden_size)
        config = bert.config
        self.num_labels = num_labels
        self.transform = (
            None if transform is None else Transform(config, config.hidden_size, transform, normed)
        )
        rate = config.classifier_dropout_rate
        self.dropout = Dropout(config.dropout_rate if rate is None else rate)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self._initialize(self.classifier, *([self.transform] if self.transform else []))

    def features(self, tokens: Tokens) -> Tensor:
        """What the linear map is given: [T] -> [T, H], or [B, H]."""
        hidden = self.bert.encode(tokens)
        if not self.padded:
            own = self.transform is not None  # which takes the place of the encoder's pooler
            pick = self.bert.summary if own else self.bert.pool
            hidden = pick(hidden, tokens)
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden

    def logits(self, tokens: Tokens) -> Tensor:
        """[T] -> [T, L], or [B, L] where there is one output a sequence."""
        logits: Tensor = self.classifier(self.dropout(self.features(tokens)))
        return logits


class BertForSequenceClassification(LinearHead):
    """A label for a text or a pair: pooler -> dropout -> linear, [B, S] -> [B, L]."""

    kind = "sequence"
    padded = False
    labelled = True


class BertForTokenClassification(LinearHead):
    """A label for every token: [B, S] -> [B, S, L]."""

    kind = "token"
    padded = True
    labelled = True


class BertForQuestionAnswering(LinearHead):
    """Where the answer starts and ends: [B, S] -> [B, S, 2]."""

    kind = "span"
    padded = True

    def __init__(
        self,
        bert: BERT,
        hidden_size: int | None = None,
        transform: str | None = None,
        normed: bool = False,
    ) -> None:
        super().__init__(bert, 2, hidden_size, transform, normed)
        self.dropout = Dropout(0.0)  # none in the paper's


class BertForMultipleChoice(LinearHead):
    """A score for each of C choices: [B, C, S] -> [B, C]."""

    kind = "choice"
    padded = False

    def __init__(
        self,
        bert: BERT,
        hidden_size: int | None = None,
        transform: str | None = None,
        normed: bool = False,
    ) -> None:
        super().__init__(bert, 1, hidden_size, transform, normed)

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
        BertForReplacedTokenDetection,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertForQuestionAnswering,
        BertForMultipleChoice,
    )
}
