"""The encoder: embeddings, L layers and the pooler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bert.errors import ModelError
from bert.model.config import BertConfig
from bert.model.embeddings import BertEmbeddings
from bert.model.layer import TransformerBlock
from bert.model.packing import Tokens, pack, unpack


def initialize(module: nn.Module, initializer_range: float) -> None:
    """Draw every matrix from a normal truncated at two deviations; biases start at zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            bound = 2 * initializer_range
            nn.init.trunc_normal_(part.weight, std=initializer_range, a=-bound, b=bound)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
    for part in module.modules():  # last, because they are drawn above like every embedding
        if isinstance(part, BertEmbeddings):
            part.reset_positions()


class BERT(nn.Module):
    """Bidirectional encoder representations from transformers (Devlin et al. 2018).

    ::

        input_ids, token_type_ids -> BertEmbeddings -> L x TransformerBlock -> [B, S, H]
                                                       first token -> pooler -> [B, H]

    Takes a ``BertConfig`` or the same keyword arguments::

        BERT(vocab_size=30522, hidden_size=768, num_hidden_layers=12, ...)
    """

    def __init__(self, config: BertConfig | None = None, **sizes: Any) -> None:
        super().__init__()
        if config is not None and not isinstance(config, BertConfig):
            raise ModelError(
                f"BERT takes a BertConfig or keyword arguments, not {config!r}.",
                fix="BERT(vocab_size=..., hidden_size=..., ...)",
            )
        self.config = config = replace(config or BertConfig(), **sizes)
        self.embeddings = BertEmbeddings(
            config.vocab_size,
            config.hidden_size,
            config.max_position_embeddings,
            config.type_vocab_size,
            config.dropout_rate,
            config.positions,
            config.layer_norm_eps,
        )
        self.layers = nn.ModuleList(
            TransformerBlock(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.dropout_rate,
                config.attention_dropout_rate,
                config.activation,
                config.layer_norm_eps,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        initialize(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """A padded batch of token numbers [B, S] -> hidden states [B, S, H].

        ``attention_mask`` is non-zero where a token is real. The hidden states of padding
        are zero.

        Raises:
            ModelError: shapes that do not agree, or more than ``max_position_embeddings``.
        """
        self.check_length(input_ids)
        tokens, places = pack(input_ids, token_type_ids, attention_mask)
        return unpack(self.encode(tokens), places, *input_ids.shape)

    def check_length(self, input_ids: Tensor) -> None:
        """Raise a ModelError where [..., S] token numbers are longer than the positions."""
        if input_ids.shape[-1] > self.config.max_position_embeddings:
            raise ModelError(
                f"A text of {input_ids.shape[-1]} tokens is longer than the "
                f"{self.config.max_position_embeddings} positions of the model.",
                fix="truncate it, or split it into windows",
            )

    def encode(self, tokens: Tokens) -> Tensor:
        """Packed tokens [T] -> hidden states [T, H]."""
        hidden: Tensor = self.embeddings(
            tokens.input_ids, tokens.token_type_ids, tokens.position_ids
        )
        for layer in self.layers:
            hidden = layer(hidden, tokens.packed)
        return hidden

    def pool(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """``tanh(W first + b)`` of each sequence's first token: [T, H] -> [B, H]."""
        return torch.tanh(self.pooler(tokens.packed.first(hidden)))
