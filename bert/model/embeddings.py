"""What a token is to the first layer: its word, its segment and its position."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bert.errors import ModelError
from bert.model.config import POSITIONS
from bert.model.dropout import Dropout
from bert.model.layer import LayerNorm


def sinusoids(length: int, hidden_size: int) -> Tensor:
    """Fixed positions (Vaswani et al. 2017, section 3.5): [length, H].

    ``PE(p, 2i) = sin(p / 10000^(2i/H))``, ``PE(p, 2i+1) = cos(p / 10000^(2i/H))``.
    """
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, hidden_size, 2) * (-math.log(10000.0) / hidden_size))
    table = torch.empty(length, hidden_size)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table


class BertEmbeddings(nn.Module):
    """The sum of word, position and segment embeddings, normalised (Devlin et al. 2018, fig. 2).

    ::

        word[input_ids] + position[position_ids] + segment[token_type_ids] -> norm -> dropout

    Positions are learned, or sinusoidal and fixed; there is no table of them where the layers
    deal with positions (``rotary``, ``none``), and no table of segments where
    ``type_vocab_size`` is 0. With an ``embedding_size`` of their own the tables are that wide,
    and a linear map follows (Lan et al. 2019, section 3.1).
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        dropout_rate: float = 0.1,
        positions: str = "learned",
        layer_norm_eps: float = 1e-12,
        embedding_size: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ModelError(f"positions is one of {', '.join(POSITIONS)}, not {positions!r}.")
        width = embedding_size or hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.word = nn.Embedding(vocab_size, width)
        self.position = (
            None
            if positions in ("rotary", "none")
            else nn.Embedding(max_position_embeddings, width)
        )
        self.segment = nn.Embedding(type_vocab_size, width) if type_vocab_size else None
        self.norm = LayerNorm(width, layer_norm_eps, bias)
        self.dropout = Dropout(dropout_rate)
        self.project = nn.Linear(width, hidden_size) if width != hidden_size else nn.Identity()
        self.fixed_positions = positions == "sinusoidal"
        self.reset_positions()

    def reset_positions(self) -> None:
        """Write the sinusoids, where positions are fixed, and keep them from being trained."""
        if self.fixed_positions and self.position is not None:
            table = sinusoids(*self.position.weight.shape)
            self.position.weight = nn.Parameter(table, requires_grad=False)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """[...] token numbers -> [..., H].

        Without ``position_ids`` the last dimension counts from 0. A model with one segment or
        none takes every token as of the first.

        Raises:
            ModelError: more positions than ``max_position_embeddings``.
        """
        summed = self.word(input_ids)
        if self.position is not None:
            if position_ids is None:
                length = input_ids.shape[-1]
                check_length(length, self.max_position_embeddings)
                position_ids = torch.arange(length, device=input_ids.device)
            summed = summed + self.position(position_ids)
        if self.segment is not None:
            if token_type_ids is None or self.segment.num_embeddings == 1:
                summed = summed + self.segment.weight[0]
            else:
                summed = summed + self.segment(token_type_ids)
        hidden: Tensor = self.project(self.dropout(self.norm(summed)))
        return hidden


def check_length(length: int, longest: int) -> None:
    """Raise a ModelError where a text of ``length`` tokens has no positions for them all."""
    if length > longest:
        raise ModelError(
            f"A text of {length} tokens is longer than the {longest} positions of the model.",
            fix="truncate it, or split it into windows",
        )
