"""Dropout (Srivastava et al. 2014), with random bits that a CPU draws quickly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(hidden: Tensor, rate: float) -> Tensor:
    """Zero a share ``rate`` of the elements and scale the rest up: [...] -> [...].

    On a CPU torch draws one random number for each element, which costs more than the matrix
    products of a small network. Here one 64-bit number serves eight elements, so that the
    rate there is a multiple of 1/256 (0.1 becomes 0.102); the scale is exact for it. For
    32 x 4 x 128 x 128 attention probabilities in bf16 on 2 cores: 3.8 ms forward and
    backward instead of 13.7 (``benchmarks/kernels.py``).
    """
    if rate == 0.0:
        return hidden
    if hidden.device.type != "cpu":
        return F.dropout(hidden, rate)
    dropped = min(round(rate * 256), 255)
    count = hidden.numel()
    bits = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.uint8)[:count].view(hidden.shape) >= dropped
    return hidden * (kept.to(hidden.dtype) * (256 / (256 - dropped)))


class Dropout(nn.Module):
    """``dropout`` while training, nothing otherwise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, hidden: Tensor) -> Tensor:
        """[...] -> [...]."""
        return dropout(hidden, self.rate) if self.training else hidden
