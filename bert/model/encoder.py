"""The encoder: embeddings, L layers and the pooler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bert.errors import ModelError
from bert.model.attention import rotation
from bert.model.config import BertConfig
from bert.model.embeddings import BertEmbeddings, check_length
from bert.model.layer import LayerNorm, TransformerBlock
from bert.model.packing import Packed, Tokens, pack, unpack


def initialize(module: nn.Module, initializer_range: float) -> None:
    """Draw every matrix from a normal truncated at two deviations; biases start at zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            bound = 2 * initializer_range
            nn.init.trunc_normal_(part.weight, std=initializer_range, a=-bound, b=bound)
        if isinstance(part, nn.Linear) and part.bias is not None:
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

    config_class: ClassVar[type[BertConfig]] = BertConfig

    def __init__(self, config: BertConfig | None = None, **sizes: Any) -> None:
        super().__init__()
        if config is not None and not isinstance(config, self.config_class):
            raise ModelError(
                f"{type(self).__name__} takes a {self.config_class.__name__} or keyword "
                f"arguments, not {config!r}.",
                fix=f"{type(self).__name__}(vocab_size=..., hidden_size=..., ...)",
            )
        self.config = config = replace(config or self.config_class(), **sizes)
        self.embeddings = BertEmbeddings(
            config.vocab_size,
            config.hidden_size,
            config.max_position_embeddings,
            config.type_vocab_size,
            config.dropout_rate,
            config.positions,
            config.layer_norm_eps,
            config.embedding_size,
            config.bias,
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
                config.norm_first,
                config.bias,
                config.gated,
            )
            for _ in range(1 if config.shared_layers else config.num_hidden_layers)
        )
        self.norm: nn.Module = nn.Identity()
        if config.norm_first:
            # The embeddings are normalised already.
            self.layers[0].attention_norm = nn.Identity()
            self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, config.bias)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.pooler else None
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
            ModelError: shapes that do not agree, or texts longer than the model takes.
        """
        self.check_length(input_ids)
        tokens, places = pack(input_ids, token_type_ids, attention_mask)
        return unpack(self.encode(tokens), places, *input_ids.shape)

    def check_length(self, input_ids: Tensor) -> None:
        """Raise a ModelError where [..., S] token numbers are longer than the model takes."""
        check_length(input_ids.shape[-1], self.config.longest_text)

    def encode(self, tokens: Tokens) -> Tensor:
        """Packed tokens [T] -> hidden states [T, H]."""
        check_length(max(tokens.packed.lengths, default=0), self.config.longest_text)
        if self.config.positions == "counted":
            counted = tokens.packed.counted(tokens.input_ids, self.config.pad_token_id)
            tokens = tokens._replace(position_ids=counted)
        given, tokens = tokens, tokens.filled()
        hidden: Tensor = self.embeddings(
            tokens.input_ids, tokens.token_type_ids, tokens.position_ids
        )
        for index, (mask, position) in enumerate(self.surroundings(tokens)):
            hidden = self.layers[index % len(self.layers)](hidden, mask, position)
        normed: Tensor = self.norm(hidden)
        return normed if tokens is given else normed[: len(given.input_ids)]

    def surroundings(self, tokens: Tokens) -> Iterator[tuple[Packed, Any]]:
        """For each layer: who sees whom, and what its attention is told of positions."""
        config = self.config
        near = around = turn = None
        if config.local_window is not None:
            near = tokens.packed.within(tokens.position_ids, config.local_window)
        if config.positions == "rotary":
            size = config.hidden_size // config.num_attention_heads
            turn = rotation(tokens.position_ids, size, config.rope_theta)
            around = rotation(tokens.position_ids, size, config.local_rope_theta)
        for layer in range(config.num_hidden_layers):
            if near is not None and config.is_local(layer):
                yield near, around
            else:
                yield tokens.packed, turn

    def summary(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Each sequence's first token, or the mean of all (``pooling``): [T, H] -> [B, H]."""
        if self.config.pooling == "mean":
            return tokens.packed.mean(hidden)
        return tokens.packed.first(hidden)

    def pool(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """What stands for each sequence: [T, H] -> [B, H].

        ``tanh(W first + b)`` where the encoder has a pooler, the ``summary`` where it has none.
        """
        if self.pooler is None:
            return self.summary(hidden, tokens)
        return torch.tanh(self.pooler(tokens.packed.first(hidden)))
