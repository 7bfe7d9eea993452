"""The building blocks of a transformer layer, by their textbook names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert.model.attention import MultiHeadAttention
from bert.model.dropout import Dropout
from bert.model.packing import Packed


def _gelu_new(hidden: Tensor) -> Tensor:
    return F.gelu(hidden, approximate="tanh")


# Gaussian error linear unit (Hendrycks & Gimpel 2016): exact, and the tanh form of ALBERT.
# tanh is for heads alone.
ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_new,
    "relu": F.relu,
    "tanh": torch.tanh,
}


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016): ``(x - mean) / sqrt(variance + eps) * weight + bias``.

    Mean and variance are taken over the last dimension. [..., H] -> [..., H].
    """

    def __init__(self, hidden_size: int, eps: float = 1e-12, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return F.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)


class PositionwiseFeedForward(nn.Module):
    """Two linear maps with an activation between, the same at every position.

    ``FFN(x) = W2 gelu(W1 x + b1) + b2`` (Vaswani et al. 2017, section 3.3; GELU as in
    Devlin et al. 2018). Gated, the first map has two halves, one of which scales the other:
    ``W2 (gelu(W1 x) * V1 x)`` (Shazeer 2020). [..., H] -> [..., H] through
    ``intermediate_size``.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        dropout_rate: float = 0.1,
        activation: str = "gelu",
        bias: bool = True,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.gated = gated
        self.intermediate = nn.Linear(hidden_size, intermediate_size * (1 + gated), bias=bias)
        self.output = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.dropout = Dropout(dropout_rate)
        self.activation = ACTIVATION[activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        widened = self.intermediate(hidden)
        if self.gated:
            passed, gate = widened.chunk(2, dim=-1)
            widened = self.activation(passed) * gate
        else:
            widened = self.activation(widened)
        narrowed: Tensor = self.dropout(self.output(widened))
        return narrowed


class TransformerBlock(nn.Module):
    """One layer: attention and feed-forward, each added to its input and normalised.

    ::

        x -----> attention -> dropout -> (+) -> norm -> y
        |_________________________________|

        y -----> feed-forward -> dropout -> (+) -> norm -> out
        |____________________________________|

    The norm comes after the sum ("post-norm", Vaswani et al. 2017, section 3.1). With
    ``norm_first`` it comes before each part instead, inside the loop (Xiong et al. 2020).
    Takes [T, H] with a ``Packed`` mask, or [B, S, H] with a padding mask [B, S] or none.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float | None = None,
        activation: str = "gelu",
        layer_norm_eps: float = 1e-12,
        norm_first: bool = False,
        bias: bool = True,
        gated: bool = False,
    ) -> None:
        super().__init__()
        if attention_dropout_rate is None:
            attention_dropout_rate = dropout_rate
        self.norm_first = norm_first
        self.attention: nn.Module = MultiHeadAttention(
            hidden_size, num_attention_heads, attention_dropout_rate, bias
        )
        self.attention_dropout = Dropout(dropout_rate)
        self.attention_norm: nn.Module = LayerNorm(hidden_size, layer_norm_eps, bias)
        self.feed_forward = PositionwiseFeedForward(
            hidden_size, intermediate_size, dropout_rate, activation, bias, gated
        )
        self.feed_forward_norm = LayerNorm(hidden_size, layer_norm_eps, bias)

    def forward(
        self, hidden: Tensor, mask: Packed | Tensor | None = None, positions: Any = None
    ) -> Tensor:
        """[T, H] or [B, S, H] -> the same shape.

        ``mask`` and ``positions`` are what the attention takes beside the hidden states.
        """
        if self.norm_first:
            attended = self.attention(self.attention_norm(hidden), mask, positions)
            hidden = hidden + self.attention_dropout(attended)
            added: Tensor = hidden + self.feed_forward(self.feed_forward_norm(hidden))
            return added
        attended = self.attention_dropout(self.attention(hidden, mask, positions))
        hidden = self.attention_norm(hidden + attended)
        normed: Tensor = self.feed_forward_norm(hidden + self.feed_forward(hidden))
        return normed
