"""Multi-head self-attention, and the rule that chooses its kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert.errors import ModelError
from bert.model.dropout import dropout
from bert.model.packing import Packed

# Forward and backward of attention, in milliseconds, on 2 cores with AVX-512 bf16
# (``benchmarks/attention.py``), B x N x S x D:
#
#                     bf16: matmul, softmax, matmul   SDPA     fp32: the same    SDPA
#   64 x  4 x  64 x 64                          6.9    24.2              14.1    11.6
#   32 x 12 x 128 x 64                           31      87                69      49
#    8 x 12 x 512 x 64                          138     175               281     186
#
# SDPA's bf16 backward is the bottleneck on a CPU. At length 512 the two are equal forward
# (57 and 56), and SDPA does not keep [B, N, S, S]; in fp32 it wins. With dropout the plain
# way is taken always, for the quick bits of ``dropout``; SDPA was not measured with it.
PLAIN_LONGEST = 384


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """``softmax(Q K^T / sqrt(D)) V`` (Vaswani et al. 2017, equation 1).

    query, key, value: [B, N, S, D]; mask, broadcast to [B, N, S, S]: boolean, True where a key
    may be seen, or numbers to be added to the scores; rate: dropout on the attention
    probabilities. Returns [B, N, S, D].
    """
    bias = mask
    if mask is not None and mask.dtype == torch.bool:
        # A finite bias: a row without any visible key must not become NaN.
        bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
        bias = bias.masked_fill(~mask, torch.finfo(query.dtype).min)
    short = query.dtype == torch.bfloat16 and query.shape[-2] <= PLAIN_LONGEST
    if query.device.type == "cpu" and (short or rate):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # [B, N, S, S]
        if bias is not None:
            scores = scores + bias
        return dropout(scores.softmax(dim=-1), rate) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate)


def rotation(
    position_ids: Tensor, head_size: int, theta: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Cosines and sines of rotary positions (Su et al. 2021, section 3.2.2).

    Pair i of a head's D elements turns by ``position / theta^(2i/D)``; the pair is elements
    i and i + D/2. [...] positions -> [2, ..., D].
    """
    rate = theta ** (-torch.arange(0, head_size, 2, device=position_ids.device) / head_size)
    angle = position_ids[..., None].float() * rate  # [..., D/2]
    angle = torch.cat((angle, angle), dim=-1)
    return torch.stack((angle.cos(), angle.sin())).to(dtype)


def _rotate(heads: Tensor, turn: Tensor) -> Tensor:
    """Turn queries or keys [..., N, D] by the ``rotation`` [2, ..., D] of their positions."""
    cosine, sine = turn[:, ..., None, :]  # each [..., 1, D]
    first, second = heads.chunk(2, dim=-1)
    turned: Tensor = heads * cosine + torch.cat((-second, first), dim=-1) * sine
    return turned.to(heads.dtype)


class MultiHeadAttention(nn.Module):
    """Self-attention with N heads of size D = H / N (Vaswani et al. 2017, section 3.2.2).

    ::

        x -> Q, K, V (one product) -> split into N heads -> softmax(Q K^T / sqrt(D)) V
          -> join the heads -> output product

    The mask is a type: a ``Packed`` for packed rows [T, H]; for a padded batch [B, S, H] a
    tensor [B, S] (non-zero where a key is real) or [B, S, S] (who sees whom), or None.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        dropout_rate: float = 0.1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ModelError(
                f"hidden_size {hidden_size} cannot be shared out evenly among "
                f"{num_attention_heads} attention heads."
            )
        self.num_attention_heads = num_attention_heads
        self.dropout_rate = dropout_rate
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.output = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(
        self, hidden: Tensor, mask: Packed | Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """[T, H] with a ``Packed``, or [B, S, H] with a tensor mask or none -> the same shape.

        ``positions`` is the ``rotation`` of the tokens, [2, T, D] or [2, (B,) S, D], if any.
        """
        qkv = self.qkv(hidden)  # [..., 3H]
        if positions is not None:
            size = hidden.shape[-1] // self.num_attention_heads
            split = qkv.unflatten(-1, (3, self.num_attention_heads, size))  # [..., 3, N, D]
            query, key, value = split.unbind(-3)
            turned = (_rotate(query, positions), _rotate(key, positions), value)
            qkv = torch.stack(turned, dim=-3).flatten(-3)
        if isinstance(mask, Packed):
            joined = mask.by_group(self._heads, qkv, hidden.shape[-1])
        else:
            if mask is not None:
                if mask.dim() not in (2, 3):
                    raise ModelError(f"The mask has shape {list(mask.shape)}, not [B, S(, S)].")
                mask = mask != 0
                mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
            joined = self._heads(qkv, mask)
        output: Tensor = self.output(joined)
        return output

    def _heads(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """[B, S, 3H] -> [B, S, H]."""
        batch, length, width = qkv.shape
        heads = self.num_attention_heads
        split = qkv.view(batch, length, 3, heads, width // 3 // heads)  # [B, S, 3, N, D]
        query, key, value = split.permute(2, 0, 3, 1, 4)  # 3 x [B, N, S, D]
        rate = self.dropout_rate if self.training else 0.0
        attended = attend(query, key, value, mask, rate)  # [B, N, S, D]
        return attended.transpose(1, 2).reshape(batch, length, width // 3)  # [B, S, H]
