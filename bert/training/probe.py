"""How large a micro-batch the memory holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bert import log
from bert.distributed import World, unsynchronised
from bert.errors import OutOfMemoryError
from bert.model.precision import arithmetic


def fitting_tokens(
    module: nn.Module,
    batch_of: Callable[[int], Any],
    tokens: int,
    least: int,
    precision: str,
    world: World,
) -> int:
    """The most tokens of a micro-batch, halved until a forward and backward pass succeeds.

    A step keeps all its samples; it only takes them in more parts.

    Args:
        module: a ``Step``; its gradients are dropped afterwards.
        batch_of: tokens -> the largest micro-batch there will be of at most so many.
        tokens: what was asked for.
        least: tokens of a single sequence, below which there is nothing to halve.
        precision: fp32 or bf16.
        world: all its processes come to the same number.

    Raises:
        OutOfMemoryError: not even a single sequence fits.
    """
    asked = tokens
    while True:
        fits = True
        try:
            with unsynchronised(module), arithmetic(precision, world.device):
                outcome = module(batch_of(tokens))
                sum(outcome.losses.values()).backward()
        except (torch.OutOfMemoryError, MemoryError):
            fits = False
        except RuntimeError as error:  # a processor's memory has no error class of its own
            if "allocate memory" not in str(error):
                raise
            fits = False
        outcome = None
        module.zero_grad(set_to_none=True)
        if all(row[0] for row in world.gathered([fits])):
            if tokens < asked:
                log.notice(
                    f"The memory holds micro-batches of {tokens:,} tokens, not of {asked:,}; a "
                    "step takes its samples in more parts and stays what it was."
                )
            return tokens
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        if tokens <= least:
            raise OutOfMemoryError(
                "The memory does not hold a single sequence of this network.",
                fix="choose a smaller --size or sequence_length, or a machine with more memory",
            )
        tokens = max(tokens // 2, least)
