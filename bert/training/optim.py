"""Optimiser, learning-rate schedule and budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bert.errors import UsageError

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("linear", "cosine", "trapezoidal")


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


def schedule(name: str, progress: float, warmup: float) -> float:
    """The factor on the peak learning rate, from 0 to 1.

    It rises linearly at first and then falls to zero: ``linear`` evenly (Devlin et al. 2018,
    appendix A.2), ``cosine`` along half a wave (Loshchilov & Hutter 2017), ``trapezoidal`` in
    the last fifth of the budget only, after a plateau (Zhai et al. 2022).

    Args:
        name: one of ``SCHEDULES``.
        progress: share of the budget used up.
        warmup: share of the budget in which the rate rises.
    """
    if progress < warmup:
        return progress / warmup
    left = (1.0 - progress) / (1.0 - warmup)
    if name == "cosine":
        return 0.5 - 0.5 * math.cos(math.pi * left)
    if name == "trapezoidal":
        return min(1.0, (1.0 - progress) / min(0.2, 1.0 - warmup))
    return left


def build_optimizer(
    model: nn.Module, name: str, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of this name over a model's weights.

    ``adamw`` (Loshchilov & Hutter 2019) is that of BERT, with bias correction and without
    decay on biases and norms. ``muon`` (Jordan et al. 2024) takes the matrices of the layers
    and leaves embeddings, heads, biases and norms to AdamW; its updates are scaled to the
    size of AdamW's (Liu et al. 2025), so that both share one learning rate.

    Raises:
        UsageError: there is no such optimiser.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"There is no optimizer {name!r}.", fix=f"one of {', '.join(OPTIMIZERS)}")
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    inside = {key for key, p in trained.items() if p.dim() == 2 and ".layers." in key}
    matrices = [p for key, p in trained.items() if name == "muon" and key in inside]
    rest = [p for key, p in trained.items() if name != "muon" or key not in inside]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = {p.device.type for p in rest} <= {"cpu", "cuda"}
    adamw = torch.optim.AdamW(groups, lr=learning_rate, eps=1e-6, fused=fused)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return _Together([muon, adamw])


class _Together(torch.optim.Optimizer):
    """Optimisers of different weights as one, sharing its groups and its state."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()
