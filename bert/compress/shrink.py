"""An ordinary, smaller network cut out of a trained one: fewer layers, narrower feed-forward.

Attention heads stay: in ``config.json`` the number of heads times their size is the width of the
model, so that a network with fewer of them would be one that nobody else can read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from bert.checkpoint import Checkpoint
from bert.errors import UsageError
from bert.inference.int8 import encoder_of
from bert.model.config import BertConfig
from bert.model.layer import PositionwiseFeedForward
from bert.tasks.task import Sample, Task

ROWS_AT_ONCE = 8  # whose gradients are taken together
# The width of a cut feed-forward is a multiple of this, which matrix products like.
WIDTH_STEP = 8


def spread(config: BertConfig, count: int) -> list[int]:
    """The numbers of ``count`` layers, evenly spread, the first and the last among them.

    Where layers are of two kinds (``global_every``) each stays of its kind.

    Raises:
        UsageError: the model does not have so many.
    """
    layers = config.num_hidden_layers
    if not 1 <= count <= layers:
        raise UsageError(
            f"The model has {layers} layers; {count} cannot be kept of them.",
            where=f"layers={count}",
            fix=f"give 1 to {layers - 1}" if layers > 1 else "leave layers= out",
        )
    chosen: list[int] = []
    for number in range(count):
        ideal = number * (layers - 1) / max(count - 1, 1)
        free = range(chosen[-1] + 1 if chosen else 0, layers - (count - 1 - number))
        alike = [i for i in free if config.is_local(i) == config.is_local(number)]
        # Of two equally near ones the later, which is nearer to the answer.
        chosen.append(min(alike or free, key=lambda i: (abs(i - ideal), -i)))
    return chosen


def importance(
    task: Task, model: nn.Module, samples: Sequence[Sample], device: torch.device
) -> list[Tensor]:
    """How much each neuron of the feed-forward matters: [F] for each layer with weights.

    A neuron's output is multiplied by a mask of 1; the score is ``sum |d loss / d mask|`` over
    small batches, the first-order estimate of what its removal changes (Michel et al. 2019,
    section 4.1, there for heads; Molchanov et al. 2017).

    Args:
        task: of the model.
        model: in evaluation mode; it is not changed.
        samples: rows with answers.
        device: of the model.
    """
    with _masked(model) as masks:
        scores = [torch.zeros_like(mask) for mask in masks]
        for begin in range(0, len(samples), ROWS_AT_ONCE):
            part = samples[begin : begin + ROWS_AT_ONCE]
            batch = task.prepare(task.batch(part, np.arange(begin, begin + len(part)), 0, 0))
            outcome = task.losses(model, batch, device)
            loss = torch.stack(list(outcome.losses.values())).sum()
            for score, gradient in zip(scores, torch.autograd.grad(loss, masks), strict=True):
                score += gradient.abs()
    return scores


@contextmanager
def _masked(model: nn.Module) -> Iterator[list[Tensor]]:
    """While it lasts, each layer's feed-forward neurons are multiplied by a mask [F] of 1."""
    masks, handles = [], []
    for output in (part.output for part in _feed_forwards(model)):
        mask = torch.ones(output.in_features, device=output.weight.device, requires_grad=True)
        masks.append(mask)
        handles.append(
            output.register_forward_pre_hook(lambda _, given, mask=mask: (given[0] * mask,))
        )
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()


def _feed_forwards(model: nn.Module) -> list[PositionwiseFeedForward]:
    """That of each layer with weights."""
    found = [layer.feed_forward for layer in encoder_of(model).layers]
    assert all(isinstance(part, PositionwiseFeedForward) for part in found)
    return cast(list[PositionwiseFeedForward], found)


def narrowed(width: int, share: float) -> int:
    """The width that is left of a feed-forward when a share of its neurons is removed."""
    return max(WIDTH_STEP, round(width * (1 - share) / WIDTH_STEP) * WIDTH_STEP)


def smaller(
    checkpoint: Checkpoint, layers: int | None, width: int | None, scores: Sequence[Tensor] = ()
) -> Checkpoint:
    """The same model with fewer layers and fewer neurons in each feed-forward.

    Args:
        checkpoint: the original, which is not changed.
        layers: how many of them are kept; None for all.
        width: of the feed-forward; None for all of it.
        scores: ``importance`` of the neurons; those of the highest are kept, in their order.

    Raises:
        UsageError: there are not so many layers.
    """
    model = copy.deepcopy(checkpoint.model)
    encoder = encoder_of(model)
    config = encoder.config
    if width is not None:
        for part, score in zip(_feed_forwards(model), scores, strict=True):
            _narrow(part, score.topk(width).indices.sort().values.cpu())
        config = replace(config, intermediate_size=width)
    if layers is not None:
        chosen = spread(config, layers)
        if not config.shared_layers:
            encoder.layers = nn.ModuleList(encoder.layers[i] for i in chosen)
        config = replace(config, num_hidden_layers=layers)
    # Built anew, so that it is what its configuration says to the unit.
    built = checkpoint.family.build(checkpoint.kind, config, len(checkpoint.labels))
    built.load_state_dict(model.state_dict())
    return replace(checkpoint, model=built.eval())


def _narrow(feed_forward: PositionwiseFeedForward, kept: Tensor) -> None:
    """Keep some neurons of a feed-forward only."""
    first, second = feed_forward.intermediate, feed_forward.output
    # Gated, the first map has two rows for each neuron.
    rows = torch.cat([kept + at for at in range(0, first.out_features, second.in_features)])
    first.weight = nn.Parameter(first.weight.detach()[rows])
    if first.bias is not None:
        first.bias = nn.Parameter(first.bias.detach()[rows])
    second.weight = nn.Parameter(second.weight.detach()[:, kept])
