"""Optimiser, learning-rate schedule and budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bert.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or minutes by the clock.

    Raises:
        UsageError: neither or both are given, or not above zero.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise UsageError(
                "Training needs a budget: either steps or minutes.", fix="--minutes 10"
            )
        if (self.steps or self.minutes or 0) <= 0:
            raise UsageError("The budget must be above zero.", fix="--minutes 10")

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is used up, from 0 to 1."""
        if self.steps is not None:
            return min(step / self.steps, 1.0)
        assert self.minutes is not None
        return min(seconds / (60 * self.minutes), 1.0)

    def spent(self, step: int, seconds: float, step_seconds: float) -> bool:
        """Whether to stop before another step, which would take about ``step_seconds``."""
        if self.steps is not None:
            return step >= self.steps
        assert self.minutes is not None
        return step > 0 and seconds + step_seconds / 2 >= 60 * self.minutes


def linear_schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then linear decay to zero (Devlin et al. 2018, appendix A.2).

    Args:
        progress: share of the budget used up.
        warmup: share of the budget in which the rate rises.

    Returns:
        A factor on the peak learning rate, from 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    return (1.0 - progress) / (1.0 - warmup)


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with bias correction; no decay on biases and norms."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    on_fused = {p.device.type for p in decayed + plain} <= {"cpu", "cuda"}
    return torch.optim.AdamW(groups, lr=learning_rate, eps=1e-6, fused=on_fused)
