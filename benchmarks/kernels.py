"""Our kernels beside torch's, forward and backward on the CPU.

python benchmarks/kernels.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bert.model.dropout import dropout
from bert.objectives.mlm import word_loss

SHAPES = ((32, 4, 128, 128), (4096, 256), (4096, 768))
WORDS = 30522
LOSSES = ((150, 256), (600, 256), (1200, 256), (600, 768))  # hidden words, width
REPEATS = 10


def torch_dropout(hidden: Tensor) -> Tensor:
    return F.dropout(hidden, 0.1)


def own_dropout(hidden: Tensor) -> Tensor:
    return dropout(hidden, 0.1)


def milliseconds(kernel: Callable[[Tensor], Tensor], hidden: Tensor) -> float:
    times = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        kernel(hidden).sum().backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[REPEATS // 2] * 1e3


def torch_loss(logits: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), words, reduction="sum")


def own_loss(logits: Tensor, words: Tensor) -> Tensor:
    return word_loss(logits, words)[0]


def loss_milliseconds(count: int, width: int, kind: torch.dtype) -> tuple[float, float]:
    """Medians of torch's and of ours, in turn, with the product that makes the logits."""
    hidden, embedding = torch.randn(count, width), torch.randn(WORDS, width) / width**0.5
    values = [value.requires_grad_() for value in (hidden, embedding, torch.zeros(WORDS))]
    words = torch.randint(0, WORDS, (count,))
    times: dict[Callable[[Tensor, Tensor], Tensor], list[float]] = {torch_loss: [], own_loss: []}
    for _ in range(REPEATS + 2):
        for kernel, taken in times.items():
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
                loss = kernel(F.linear(*values), words)
            loss.backward()  # type: ignore[no-untyped-call]
            taken.append(time.perf_counter() - start)
            for value in values:
                value.grad = None
    theirs, ours = (sorted(taken[2:])[REPEATS // 2] * 1e3 for taken in times.values())
    return theirs, ours


def told(name: str, kind: torch.dtype, theirs: float, ours: float) -> None:
    print(f"{name:>30} {kind!s:15} torch {theirs:6.1f} ms  ours {ours:6.1f} ms")


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for shape in SHAPES:
        for kind in (torch.float32, torch.bfloat16):
            hidden = torch.randn(shape, dtype=kind, requires_grad=True)
            ours, theirs = milliseconds(own_dropout, hidden), milliseconds(torch_dropout, hidden)
            told(f"dropout {shape}", kind, theirs, ours)
    for count, width in LOSSES:
        for kind in (torch.float32, torch.bfloat16):
            told(f"word loss {count} x {width}", kind, *loss_milliseconds(count, width, kind))


if __name__ == "__main__":
    main()
