"""How much memory a network needs, found by a run in which nothing is computed.

The network is built from tensors that have a shape and no content, and run as it would be;
what is alive is counted at every operation. So the figure holds for every family, head and
kernel without a formula for each. What is not in it: Python, torch itself (about 0.3 GB) and
what an allocator keeps back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bert.model.packing import Packed, Tokens
from bert.model.precision import arithmetic


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, once, until it dies."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, key, size).atexit = False

    def forget(self, key: int, size: int) -> None:
        """A storage has died."""
        self.known.discard(key)
        self.now -= size


def peak_memory(
    build: Callable[[], nn.Module], sequences: int, length: int, precision: str, *, training: bool
) -> int:
    """The most bytes that a network and its work take at one time.

    Args:
        build: makes the network, a head of ``model/heads.py`` or a bare encoder.
        sequences: texts in a batch.
        length: tokens in each.
        precision: ``fp32`` or ``bf16``.
        training: forward, backward, gradients and AdamW's two moments; else forward alone.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    cpu = torch.device("cpu")
    count = sequences * length
    packed = Packed.of((length,) * sequences)
    with torch.device("meta"):
        model = build().train(training)
    with FakeTensorMode(allow_non_fake_inputs=True), _Alive() as alive:
        model.to_empty(device=cpu)
        parameters = [value for value in model.parameters() if value.requires_grad]
        moments = [torch.zeros_like(value) for value in parameters for _ in range(2 * training)]
        zeros = torch.zeros(count, dtype=torch.long)
        tokens = Tokens(zeros, zeros, zeros, packed)
        run: Any = getattr(model, "logits", None) or model.encode
        with torch.set_grad_enabled(training), arithmetic(precision, cpu):
            output = run(tokens)
        if training:
            output.float().sum().backward()
        del moments, output
    most: int = alive.most
    return most
