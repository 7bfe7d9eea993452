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


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """``softmax(Q K^T / sqrt(D)) V`` (Vaswani et al. 2017, equation 1).

    query, key, value: [B, N, S, D]; mask: boolean, broadcast to [B, N, S, S], True where a
    key may be seen; rate: dropout on the attention probabilities. Returns [B, N, S, D].
    """
    bias = None
    if mask is not None:
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


class MultiHeadAttention(nn.Module):
    """Self-attention with N heads of size D = H / N (Vaswani et al. 2017, section 3.2.2).

    ::

        x -> Q, K, V (one product) -> split into N heads -> softmax(Q K^T / sqrt(D)) V
          -> join the heads -> output product

    The mask is a type: a ``Packed`` for packed rows [T, H]; for a padded batch [B, S, H] a
    tensor [B, S] (non-zero where a key is real) or [B, S, S] (who sees whom), or None.
    """

    def __init__(
        self, hidden_size: int, num_attention_heads: int, dropout_rate: float = 0.1
    ) -> None:
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ModelError(
                f"hidden_size {hidden_size} cannot be shared out evenly among "
                f"{num_attention_heads} attention heads."
            )
        self.num_attention_heads = num_attention_heads
        self.dropout_rate = dropout_rate
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, mask: Packed | Tensor | None = None) -> Tensor:
        """[T, H] with a ``Packed``, or [B, S, H] with a tensor mask or none -> the same shape."""
        qkv = self.qkv(hidden)  # [..., 3H]
        if isinstance(mask, Packed):
            joined = self._packed(qkv, mask)
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
        attended = _attend(query, key, value, mask, rate)  # [B, N, S, D]
        return attended.transpose(1, 2).reshape(batch, length, width // 3)  # [B, S, H]

    def _packed(self, qkv: Tensor, packed: Packed) -> Tensor:
        """[T, 3H] -> [T, H], each group of sequences on its own."""
        width = qkv.shape[-1]
        outputs = [
            self._heads(
                qkv[group.rows].view(group.sequences, group.length, width), group.mask
            ).view(-1, width // 3)
            for group in packed.groups
        ]
        if not outputs:  # every sequence is empty
            return qkv[:, : width // 3]
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return joined if packed.restore is None else joined[packed.restore]
