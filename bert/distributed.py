"""Several processes that train as one.

``torchrun`` starts the processes and tells each its rank. One process takes the same path
with a world of size 1, in which nothing is sent.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bert import log
from bert.errors import BertError, UsageError

STRATEGIES = ("ddp", "fsdp")
# How long a process waits for the others: rank 0 may be reading a corpus.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is.

    Args:
        rank: from 0; rank 0 alone writes files and speaks.
        size: processes in all.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def gathered(self, values: Sequence[float]) -> list[list[float]]:
        """The values of every rank, in the order of the ranks; all give equally many."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine)
        return [row.tolist() for row in rows]

    def told(self, value: Any) -> Any:
        """What rank 0 has here."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Rank 0 goes through the block alone, then the others, who find what it has built."""
        if not self.first:
            self.told(None)
        yield
        if self.first:
            self.told(None)

    def share(self, things: Any) -> Any:
        """This rank's part of an array, the parts being as equal as they can be."""
        count = len(things)
        return things[self.rank * count // self.size : (self.rank + 1) * count // self.size]


ALONE = World()
_PLAIN = (torch.Tensor, nn.Parameter)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that ``torchrun`` has started, or this process alone; inside a world, that one.

    Args:
        device: on which one process would compute; with several GPUs each gets its own.

    Raises:
        UsageError: there are more processes on this machine than GPUs.
        BertError: another process has ended while this one waited for it.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if dist.is_initialized():
        yield World(rank, size, torch.device("cuda", local) if device.type == "cuda" else device)
        return
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"There are more processes than the {torch.cuda.device_count()} GPUs here.",
                fix=f"torchrun --nproc-per-node {torch.cuda.device_count()}",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Figures and decisions travel between CPUs, gradients between the devices.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    log.speak(rank == 0)
    try:
        yield World(rank, size, device)
    except BaseException as error:
        log.speak(True)
        _leave_at_once(error)
        if isinstance(error, RuntimeError) and "gloo/transport" in str(error):
            raise BertError(
                f"Another of the {size} processes has ended.",
                where=f"rank {rank}",
                fix="see what that one says; --resume goes on from the last checkpoint",
            ) from error
        raise
    log.speak(True)
    dist.destroy_process_group()


_left: list[BaseException] = []


def _leave_at_once(error: BaseException) -> None:
    """See to it that this process, when it has told of an error, ends without more ado.

    A thread of gloo that drops a tensor waits for the interpreter's lock; what drops the group
    holds that lock and waits for its threads: both for ever. So nothing is dropped. The error
    holds all that there was in its frames.
    """
    _left.append(error)
    code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)


def wrap(module: nn.Module, world: World, strategy: str = "ddp") -> nn.Module:
    """The module whose gradients are the mean over all ranks.

    ``ddp`` keeps all weights on every rank; ``fsdp`` shares weights, gradients and moments
    out among them, layer by layer (a module list named ``layers``).

    Raises:
        UsageError: there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}.")
    if world.size == 1:
        return module
    if strategy == "ddp":
        return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    from torch.distributed.fsdp import fully_shard

    for name, part in module.named_modules():
        if name.endswith("layers") and isinstance(part, nn.ModuleList):
            for layer in part:
                fully_shard(layer)
    fully_shard(module)
    return module


def unsynchronised(module: nn.Module) -> AbstractContextManager[None]:
    """While more micro-batches follow, gradients are not exchanged."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        waiting: AbstractContextManager[None] = module.no_sync()
        return waiting
    return nullcontext()


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor with all its parts, wherever they are; every rank must ask for it."""
    if type(value) in _PLAIN:  # without an import that takes a second
        return value
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        full: torch.Tensor = value.full_tensor()
        return full
    return value


def laid_out(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of another, and shared out among the ranks as that one is."""
    if type(like) in _PLAIN:
        return value.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)
