"""What a token is to the first layer: its word, its segment and its position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
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


class FewRowsEmbedding(nn.Module):
    """An embedding [V, E] of which only the rows that training texts use are trained.

    The others have no gradient, so an optimiser that passes over them only moves memory: most
    of a small encoder's weights are word embeddings, and few rows of text use few of them. To
    ``state_dict`` it looks like the embedding that it was made of.

    Args:
        whole: the embedding, whose weight is taken over.
        used: [n] its rows that are trained, each once; ids that come in training.
    """

    def __init__(self, whole: nn.Embedding, used: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(whole.weight.detach(), requires_grad=False)
        self.rows = nn.Parameter(self.weight[used])
        self.used = used
        # An id that was not announced is out of range rather than a wrong word.
        self.places = torch.full((len(self.weight),), len(used), device=used.device)
        self.places[used] = torch.arange(len(used), device=used.device)
        self.register_state_dict_post_hook(_joined)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_divided)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> FewRowsEmbedding:
        """Before anything is evaluated, what was learnt goes to its place."""
        if not mode:
            self.join()
        return super().train(mode)

    def join(self) -> Tensor:
        """All rows [V, E], with those that are trained as they are now."""
        return self.weight.detach().index_copy_(0, self.used, self.rows.detach())

    def forward(self, input_ids: Tensor) -> Tensor:
        """[...] -> [..., E]."""
        if self.training:
            return F.embedding(self.places[input_ids], self.rows)
        return F.embedding(input_ids, self.weight)


def _joined(module: nn.Module, state: dict[str, Any], prefix: str, _: Mapping[str, Any]) -> None:
    assert isinstance(module, FewRowsEmbedding)
    state[prefix + "weight"] = module.join()
    del state[prefix + "rows"]


def _divided(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    assert isinstance(module, FewRowsEmbedding)
    if (weight := state.get(prefix + "weight")) is not None:
        state[prefix + "rows"] = weight[module.used]


def check_length(length: int, longest: int) -> None:
    """Raise a ModelError where a text of ``length`` tokens has no positions for them all."""
    if length > longest:
        raise ModelError(
            f"A text of {length} tokens is longer than the {longest} positions of the model.",
            fix="truncate it, or split it into windows",
        )
