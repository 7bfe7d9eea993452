"""Optimiser, learning-rate schedule and budget."""

from __future__ import annotations

import math
import re
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
    model: nn.Module,
    name: str,
    learning_rate: float,
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    frozen_layers: int = 0,
) -> torch.optim.Optimizer:
    """The optimiser of this name over a model's weights.

    ``adamw`` (Loshchilov & Hutter 2019) is that of BERT, with bias correction and without
    decay on biases and norms. ``muon`` (Jordan et al. 2024) takes the matrices of the layers
    and leaves embeddings, heads, biases and norms to AdamW; its updates are scaled to the
    size of AdamW's (Liu et al. 2025), so that both share one learning rate.

    Args:
        model: its weights are frozen here where that is asked.
        name: one of ``OPTIMIZERS``.
        learning_rate: of the weights nearest to the output.
        weight_decay: of matrices.
        layer_decay: a layer learns at this share of the rate of the one above it, the
            embeddings at that of the lowest layer (Howard & Ruder 2018).
        frozen_layers: so many of the lowest layers, and the embeddings, do not learn.

    Raises:
        UsageError: there is no such optimiser, or not so many layers, or nothing to learn.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"There is no optimizer {name!r}.", fix=f"one of {', '.join(OPTIMIZERS)}")
    depths = _depths(model)
    layers = max(depths.values())
    below_head = max((d for key, d in depths.items() if ".layers." in f".{key}"), default=0)
    if frozen_layers > below_head:
        raise UsageError(
            f"frozen_layers={frozen_layers}, but the network has {below_head} layers.",
            fix=f"frozen_layers={below_head} leaves only the head to learn",
        )
    for key, parameter in model.named_parameters():
        if frozen_layers and depths[key] <= frozen_layers:
            parameter.requires_grad_(False)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise UsageError(
            f"frozen_layers={frozen_layers} leaves nothing to learn for this task.",
            fix=f"frozen_layers={max(below_head - 1, 0)}",
        )
    inside = {key for key, p in trained.items() if p.dim() == 2 and ".layers." in f".{key}"}
    matrices = [p for key, p in trained.items() if name == "muon" and key in inside]
    rest = {key: p for key, p in trained.items() if name != "muon" or key not in inside}
    scales = {key: layer_decay ** (layers - max(depths[key], 1)) for key in rest}
    groups = [
        {
            "params": [p for key, p in rest.items() if scales[key] == scale and (p.dim() > 1) == m],
            "weight_decay": weight_decay if m else 0.0,
            "scale": scale,
        }
        for scale in sorted(set(scales.values()))
        for m in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    fused = {p.device.type for p in rest.values()} <= {"cpu", "cuda"}
    adamw = torch.optim.AdamW(groups, lr=learning_rate, eps=1e-6, fused=fused)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return _Together([muon, adamw])


def _depths(model: nn.Module) -> dict[str, int]:
    """How far each weight is from the input: 0 for embeddings, then layers, then what is above."""
    depths = {}
    for key, _ in model.named_parameters():
        place = f".{key}"  # a bare encoder's has nothing before it
        layer = re.search(r"\.layers\.(\d+)\.", place)
        # What DeBERTa knows of distances comes before its layers.
        below = re.search(r"\.(embeddings|distance|distance_norm)\.", place)
        depths[key] = int(layer[1]) + 1 if layer else 0 if below else -1
    top = max(depths.values()) + 1
    return {key: top if depth < 0 else depth for key, depth in depths.items()}


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
